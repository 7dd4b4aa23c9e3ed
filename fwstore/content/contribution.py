"""What one rank tells the leader of a save: its tensors, its packs and where its cells lie.

Invariant: a parsed contribution obeys the rules of the tables that it is made of and refers only to what it
lists itself; parsing allocates in proportion to the message, which is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from fwstore.base.errors import Corrupt, LimitExceeded
from fwstore.base.units import MIB
from fwstore.content.places import Places
from fwstore.format.columnar import encode_table, parse_table
from fwstore.format.envelope import check_envelope, magic
from fwstore.format.manytables import I64, NumberSchema, Tables, parse_tables
from fwstore.format.packtable import PACK_SCHEMA, PackInfo, pack_columns, parse_packs
from fwstore.format.root import LineageRef
from fwstore.format.rows import (
    FRAGMENT_SCHEMA,
    RUN_SCHEMA,
    U32,
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
_ROWS_SCHEMA: NumberSchema = {**PACK_SCHEMA, **RUN_SCHEMA, **FRAGMENT_SCHEMA}


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """The tensors that many ranks name alike.

    Attributes:
        tensors: Sorted by stored path.
        dimensions: How many each of them has.
    """

    tensors: tuple[TensorInfo, ...]
    dimensions: I64


Dictionaries = dict[tuple[bytes, ...], Dictionary]


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


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a rank sends; tables are parsed later, those of many ranks at once."""

    rank: int
    bytes_written: int
    bytes_reused: int
    lineages: tuple[LineageRef, ...]
    dictionaries: tuple[bytes, ...]
    rows: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


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
    message = Message(
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
    return join_messages([decode_message(stored)], known)


def decode_message(stored: bytes) -> Message:
    """Return a message taken apart; what it holds is not parsed yet.

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
    if min(message.rank, message.bytes_written, message.bytes_reused) < 0:
        raise Corrupt("a contribution holds a negative number")
    return message


def join_messages(messages: Sequence[Message], known: Dictionaries) -> Contribution:
    """Return one contribution of all ranks whose messages have the same dictionaries and lineages.

    Args:
        messages: At least one; rows are parsed by columns, however many there are.
        known: Dictionaries parsed before.

    Raises:
        Corrupt: The rows of a message are malformed or refer to what the message does not list.
        Unsupported: They are of another format version.
    """
    first = messages[0]
    if first.dictionaries not in known:
        known[first.dictionaries] = _parse_tensors(first.dictionaries)
    dictionary = known[first.dictionaries]
    tables = parse_tables(_ROWS_KIND, _ROWS_SCHEMA, [message.rows for message in messages])
    packs = _parse_packs(tables, len(first.lineages))
    return Contribution(
        rank=first.rank,
        tensors=dictionary.tensors,
        lineages=first.lineages,
        packs=packs,
        runs=_parse_runs(tables, len(dictionary.tensors)),
        fragments=_parse_fragments(tables, dictionary.dimensions),
        bytes_written=sum(message.bytes_written for message in messages),
        bytes_reused=sum(message.bytes_reused for message in messages),
    )


def _parse_packs(tables: Tables, lineages: int) -> tuple[PackInfo, ...]:
    _check_lengths(tables, PACK_SCHEMA)
    packs = parse_packs(tables)
    if any(pack.lineage >= lineages for pack in packs):
        raise Corrupt("a contribution names a pack of a lineage that it does not list")
    return packs


def _parse_runs(tables: Tables, tensors: int) -> RunTable:
    _check_lengths(tables, RUN_SCHEMA)
    counts = tables.counts["run_tensor"]
    runs = parse_runs(tables, _borders(counts))
    check_numbers(runs.tensor, 0, tensors)
    return replace(runs, pack=_through(runs.pack, counts, tables))


def _parse_fragments(tables: Tables, dimensions: I64) -> FragmentTable:
    _check_lengths(tables, list(FRAGMENT_SCHEMA)[:4])
    _check_lengths(tables, ("fragment_offsets", "fragment_sizes"))
    counts = tables.counts["fragment_tensor"]
    fragments = parse_fragments(tables, dimensions, 0, _borders(counts))
    boxes = fragments.boxes.starts[np.cumsum(counts)]
    if not np.array_equal(boxes, np.cumsum(tables.counts["fragment_sizes"])):
        raise Corrupt("the boxes of a contribution are not those of its fragments")
    return replace(fragments, pack=_through(fragments.pack, counts, tables))


def _check_lengths(tables: Tables, names: Iterable[str]) -> None:
    """Refuse tables whose columns differ in length, also where all tables together would not show it."""
    counts = [tables.counts[name] for name in names]
    if not all(np.array_equal(counts[0], other) for other in counts[1:]):
        raise Corrupt("the columns of a contribution differ in length")


def _borders(counts: I64) -> I64:
    """Return the rows, but for the first, with which tables of so many rows begin."""
    starts = np.unique(np.cumsum(counts)[:-1])
    inside: I64 = starts[(starts > 0) & (starts < counts.sum())]
    return inside


def _through(pack: U32, counts: I64, tables: Tables) -> U32:
    """Return the packs of the rows of many tables, numbered through."""
    packs = tables.counts["pack_rank"]
    if bool((pack >= np.repeat(packs, counts)).any()):
        raise Corrupt("a contribution refers to a pack that it does not list")
    return pack + np.repeat(np.cumsum(packs) - packs, counts).astype(np.uint32)


def _encode_tensors(tensors: Sequence[TensorInfo]) -> list[bytes]:
    try:
        return [encode_table(_TENSORS_KIND, TENSOR_SCHEMA, tensor_columns(tensors))]
    except LimitExceeded:
        if len(tensors) < 2:
            raise
        middle = len(tensors) // 2
        return _encode_tensors(tensors[:middle]) + _encode_tensors(tensors[middle:])


def _parse_tensors(dictionaries: Sequence[bytes]) -> Dictionary:
    tensors: list[TensorInfo] = []
    for stored in dictionaries:
        tensors += parse_tensors(parse_table(_TENSORS_KIND, TENSOR_SCHEMA, stored))
    return Dictionary(tuple(tensors), np.array([len(info.shape) for info in tensors], np.int64))
