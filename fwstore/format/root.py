"""The root of a snapshot: all that a reader needs before it asks for a leaf.

Invariant: the stored form of a root is canonical - what `parse_root` accepts is byte for byte what
`encode_root` makes - and every number in it has been checked, so that the rest may rely on it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from fwstore.base.config import LEAF_BYTES_MAX, ROOT_BYTES_MAX
from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded
from fwstore.format.columnar import TABLE_BYTES_MAX
from fwstore.format.envelope import check_envelope, magic
from fwstore.format.keys import parse_catalog_key, parse_snapshot_id
from fwstore.format.packtable import PACKS_PER_PART
from fwstore.format.paths import TensorPath, encode_path
from fwstore.format.tensor import TENSORS_MAX

KIND = "root"
_HEADER = struct.Struct("<8sII")
_UUID = re.compile(r"[0-9a-f]{32}")
_NUMBER_LIMIT = 1 << 63
_DIGEST_BYTES = 32


class LeafRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One leaf: its tensors, and its size and BLAKE3."""

    first_tensor: int
    tensors: int
    first_path: TensorPath
    last_path: TensorPath
    size: int
    digest: bytes


class PackTableRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One part of the pack table: its packs, and its size and BLAKE3."""

    first_pack: int
    packs: int
    size: int
    digest: bytes


class LineageRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A lineage by its label ``name@generation`` and its uuid of 32 hexadecimal digits."""

    label: str
    uuid: str


class SnapshotRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A snapshot by its lineage and id."""

    lineage: LineageRef
    snapshot: str


class Totals(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a snapshot holds, counted when it was written.

    Attributes:
        tensors: Tensors, tied ones included.
        packs: Packs that it refers to.
        chunks: Chunks that it refers to.
        fragments: Those of them that are parts of cells.
        bytes_logical: Bytes of all tensors, tied ones counted once.
        bytes_fragments: Those of them that lie in fragments.
        bytes_written: Bytes that were stored for this snapshot.
        bytes_reused: Logical bytes that were found in an earlier snapshot.
    """

    tensors: int = 0
    packs: int = 0
    chunks: int = 0
    fragments: int = 0
    bytes_logical: int = 0
    bytes_fragments: int = 0
    bytes_written: int = 0
    bytes_reused: int = 0


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One immutable state of a lineage.

    Attributes:
        lineage: The lineage that it belongs to.
        snapshot: Its id, which repeats step, term and save.
        step: Step of the user.
        term: Term of the job that wrote it.
        save: Number of the save in that term.
        parent: The snapshot that it continues.
        wall_time: Seconds since the Unix epoch when it was written; for display only.
        leaves: Its leaves in order of tensors.
        pack_tables: The parts of its pack table in order.
        lineages: Every lineage whose packs it uses; the pack table refers to them by index.
        state: The plain state, or None when that is stored as a tensor.
        position: Where the run stands in its data.
        metrics: Numbers of the user.
        software: Versions of what wrote it; for display only.
        totals: What it holds.
    """

    lineage: LineageRef
    snapshot: str
    step: int
    term: int
    save: int
    parent: SnapshotRef | None = None
    wall_time: float = 0.0
    leaves: tuple[LeafRef, ...] = ()
    pack_tables: tuple[PackTableRef, ...] = ()
    lineages: tuple[LineageRef, ...] = ()
    state: bytes | None = None
    position: bytes | None = None
    metrics: dict[str, float] = {}
    software: dict[str, str] = {}
    totals: Totals = Totals()


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(Root)


def encode_root(root: Root) -> bytes:
    """Return the stored form of a root.

    Raises:
        InvalidInput: A part of the root is not sane.
        LimitExceeded: The root is larger than `ROOT_BYTES_MAX`.
    """
    problem = _problem(root)
    if problem is not None:
        raise InvalidInput(f"the root of snapshot {root.snapshot} {problem}")
    try:
        stored = _encode(_decoder.decode(_encoder.encode(root)))
    except (msgspec.MsgspecError, UnicodeError, OverflowError, TypeError) as error:
        raise InvalidInput(
            f"the root of snapshot {root.snapshot} cannot be stored: {error}"
        ) from error
    if len(stored) > ROOT_BYTES_MAX:
        raise LimitExceeded(
            f"the root of snapshot {root.snapshot} has {len(stored)} bytes; at most {ROOT_BYTES_MAX} are allowed: "
            "store fewer metrics or a shorter position"
        )
    return stored


def parse_root(stored: bytes) -> Root:
    """Return the root of its stored form.

    Raises:
        Corrupt: The bytes are not a root in its canonical form.
        Unsupported: It is of another format version or needs an unknown feature.
    """
    check_envelope(stored, KIND)
    if not _HEADER.size <= len(stored) <= ROOT_BYTES_MAX:
        raise Corrupt(f"a root of {len(stored)} bytes is cut short or too large")
    if _HEADER.unpack_from(stored)[2] != len(stored) - _HEADER.size:
        raise Corrupt("a root is cut short or followed by other bytes")
    try:
        root = _decoder.decode(memoryview(stored)[_HEADER.size :])
        problem = _problem(root)
        canonical = problem is None and _encode(root) == stored
    except (
        msgspec.MsgspecError,
        UnicodeError,
        InvalidInput,
        RecursionError,
        OverflowError,
    ) as error:
        raise Corrupt(f"a root is malformed: {error}") from error
    if not canonical:
        raise Corrupt(
            f"the root of snapshot {root.snapshot[:100]!r} {problem or 'is not in its canonical form'}"
        )
    return root


def _encode(root: Root) -> bytes:
    body = _encoder.encode(root)
    return _HEADER.pack(magic(KIND), 0, len(body)) + body


def _problem(root: Root) -> str | None:
    numbers = [*_numbers(root.totals), root.step, root.term, root.save]
    references: list[LeafRef | PackTableRef] = [*root.leaves, *root.pack_tables]
    for reference in references:
        numbers += _numbers(reference)
        if len(reference.digest) != _DIGEST_BYTES:
            return "holds a digest of another length"
    if any(not 0 <= number < _NUMBER_LIMIT for number in numbers):
        return "holds a number that is negative or not below 2^63"
    return _identity_problem(root) or _leaf_problem(root.leaves) or _pack_problem(root.pack_tables)


def _numbers(part: msgspec.Struct) -> list[int]:
    values = (getattr(part, name) for name in part.__struct_fields__)
    return [value for value in values if isinstance(value, int)]


def _identity_problem(root: Root) -> str | None:
    lineages = [root.lineage, *root.lineages]
    snapshots = [root.snapshot]
    if root.parent is not None:
        lineages.append(root.parent.lineage)
        snapshots.append(root.parent.snapshot)
    for lineage in lineages:
        if (
            not _UUID.fullmatch(lineage.uuid)
            or parse_catalog_key(f"catalog/{lineage.label}") is None
        ):
            return f"names the malformed lineage {lineage.label[:100]!r}"
    try:
        identity, *_ = [parse_snapshot_id(text) for text in snapshots]
    except Corrupt as error:
        return f"names a malformed snapshot: {error}"
    if (identity.step, identity.term, identity.save) != (root.step, root.term, root.save):
        return "has another step, term or save than its id"
    return None


def _leaf_problem(leaves: Sequence[LeafRef]) -> str | None:
    for leaf in leaves:
        if not 1 <= leaf.tensors <= TENSORS_MAX or not 0 < leaf.size <= LEAF_BYTES_MAX:
            return f"has a leaf of {leaf.tensors} tensors and {leaf.size} bytes"
        if encode_path(leaf.first_path) > encode_path(leaf.last_path):
            return "has a leaf that ends before it begins"
    if leaves and leaves[0].first_tensor != 0:
        return "has no leaf for its first tensor"
    for left, right in pairwise(leaves):
        end = left.first_tensor + left.tensors
        # A tensor whose rows fill several leaves is the last of one and the first of the next.
        shared = right.first_tensor == end - 1 and right.first_path == left.last_path
        if not shared and not (
            right.first_tensor == end
            and encode_path(left.last_path) < encode_path(right.first_path)
        ):
            return "has leaves that are not in order"
    return None


def _pack_problem(parts: Sequence[PackTableRef]) -> str | None:
    first = 0
    for part in parts:
        if part.first_pack != first or not 1 <= part.packs <= PACKS_PER_PART:
            return "has parts of a pack table that are not in order"
        if not 0 < part.size <= TABLE_BYTES_MAX:
            return f"has a part of a pack table of {part.size} bytes"
        first += part.packs
    return None
