"""What one rank tells the leader of a save: its tensors, its packs and where its cells lie.

Invariant: a parsed contribution obeys the rules of the tables that it is made of and refers only to what it
lists itself; parsing allocates in proportion to the message, which is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from fwstore.base.errors import Corrupt, LimitExceeded
from fwstore.base.units import MIB
from fwstore.content.places import Places
from fwstore.format.columnar import Schema, Table, encode_table, parse_table
from fwstore.format.envelope import check_envelope, magic
from fwstore.format.packtable import PACK_SCHEMA, PackInfo, pack_columns, parse_packs
from fwstore.format.root import LineageRef
from fwstore.format.rows import (
    FRAGMENT_SCHEMA,
    RUN_SCHEMA,
    FragmentTable,
    RunTable,
    check_numbers,
    fragment_columns,
    parse_fragments,
    parse_runs,
    run_columns,
)
from fwstore.format.tensor import TENSOR_SCHEMA, TensorInfo, parse_tensors, tensor_columns

CONTRIBUTION_BYTES_MAX = 64 * MIB
_KIND, _TENSORS_KIND, _ROWS_KIND = "part", "dict", "rows"
_HEADER = struct.Struct("<8sI")
_ROWS_SCHEMA: Schema = {**PACK_SCHEMA, **RUN_SCHEMA, **FRAGMENT_SCHEMA}

Dictionaries = dict[tuple[bytes, ...], tuple[TensorInfo, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contribution:
    """What one rank brings to a snapshot.

    Attributes:
        rank: The rank.
        tensors: Every tensor that it knows, tied ones included, sorted by stored path.
        lineages: The lineages that packs name by their position here.
        packs: The packs that rows name by their position here.
        runs: Runs of whole cells.
        fragments: Parts of cells.
        bytes_written: Bytes that it stored for this snapshot.
        bytes_reused: Raw bytes that it found in the store.
    """

    rank: int
    tensors: tuple[TensorInfo, ...]
    lineages: tuple[LineageRef, ...] = ()
    packs: tuple[PackInfo, ...] = ()
    runs: RunTable
    fragments: FragmentTable
    bytes_written: int = 0
    bytes_reused: int = 0


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    rank: int
    bytes_written: int
    bytes_reused: int
    lineages: tuple[LineageRef, ...]
    dictionaries: tuple[bytes, ...]
    rows: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Message)


def contribution_of(
    rank: int,
    tensors: Sequence[TensorInfo],
    places: Places,
    *,
    bytes_written: int,
    bytes_reused: int,
) -> Contribution:
    """Return the contribution of a rank whose places number its tensors as `tensors` does."""
    used = places.used()
    runs, fragments = used.tables()
    return Contribution(
        rank=rank,
        tensors=tuple(tensors),
        lineages=used.lineages,
        packs=used.packs,
        runs=runs,
        fragments=fragments,
        bytes_written=bytes_written,
        bytes_reused=bytes_reused,
    )


def encode_contribution(contribution: Contribution) -> bytes:
    """Return a contribution as a message.

    Raises:
        InvalidInput: A part of it is not sane.
        LimitExceeded: It is larger than a leader would accept.
    """
    columns = pack_columns(contribution.packs) | run_columns(contribution.runs)
    columns |= fragment_columns(contribution.fragments)
    message = _Message(
        contribution.rank,
        contribution.bytes_written,
        contribution.bytes_reused,
        contribution.lineages,
        tuple(_encode_tensors(contribution.tensors)),
        encode_table(_ROWS_KIND, _ROWS_SCHEMA, columns),
    )
    stored = _HEADER.pack(magic(_KIND), 0) + _encoder.encode(message)
    if len(stored) > CONTRIBUTION_BYTES_MAX:
        raise LimitExceeded(
            f"rank {contribution.rank} brings {len(stored)} bytes of metadata; "
            f"at most {CONTRIBUTION_BYTES_MAX} are allowed"
        )
    return stored


def parse_contribution(stored: bytes, known: Dictionaries) -> Contribution:
    """Return the contribution of a message.

    Args:
        stored: The message.
        known: Dictionaries parsed before; ranks mostly send the same one, which is parsed once.

    Raises:
        Corrupt: The message is malformed.
        Unsupported: It comes from another version of fwstore.
    """
    check_envelope(stored, _KIND)
    if len(stored) > CONTRIBUTION_BYTES_MAX:
        raise Corrupt(
            f"a contribution of {len(stored)} bytes is larger than {CONTRIBUTION_BYTES_MAX}"
        )
    try:
        message = _decoder.decode(memoryview(stored)[_HEADER.size :])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Corrupt(f"a contribution is malformed: {error}") from error
    if message.dictionaries not in known:
        known[message.dictionaries] = _parse_tensors(message.dictionaries)
    return _checked(
        message, known[message.dictionaries], parse_table(_ROWS_KIND, _ROWS_SCHEMA, message.rows)
    )


def _checked(message: _Message, tensors: tuple[TensorInfo, ...], table: Table) -> Contribution:
    ranks = np.array([len(info.shape) for info in tensors], np.int64)
    contribution = Contribution(
        rank=message.rank,
        tensors=tensors,
        lineages=message.lineages,
        packs=parse_packs(table),
        runs=parse_runs(table),
        fragments=parse_fragments(table, ranks, 0),
        bytes_written=message.bytes_written,
        bytes_reused=message.bytes_reused,
    )
    if min(message.rank, message.bytes_written, message.bytes_reused) < 0:
        raise Corrupt("a contribution holds a negative number")
    if any(pack.lineage >= len(message.lineages) for pack in contribution.packs):
        raise Corrupt("a contribution names a pack of a lineage that it does not list")
    check_numbers(contribution.runs.tensor, 0, len(tensors))
    for column in (contribution.runs.pack, contribution.fragments.pack):
        if len(column) and int(column.max()) >= len(contribution.packs):
            raise Corrupt("a contribution refers to a pack that it does not list")
    return contribution


def _encode_tensors(tensors: Sequence[TensorInfo]) -> list[bytes]:
    try:
        return [encode_table(_TENSORS_KIND, TENSOR_SCHEMA, tensor_columns(tensors))]
    except LimitExceeded:
        if len(tensors) < 2:
            raise
        middle = len(tensors) // 2
        return _encode_tensors(tensors[:middle]) + _encode_tensors(tensors[middle:])


def _parse_tensors(dictionaries: Sequence[bytes]) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    for stored in dictionaries:
        tensors += parse_tensors(parse_table(_TENSORS_KIND, TENSOR_SCHEMA, stored))
    return tuple(tensors)
