"""The footer of a pack: every chunk in it, as columns.

Invariant: the place of every chunk follows from the stored lengths alone, and they must end where the
footer begins, so a footer cannot point outside its pack.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt, InvalidInput
from fwstore.format.blocks import (
    ALIGNMENT,
    BLOCK_BYTES,
    CHUNKS_MAX,
    DIGEST_BYTES,
    FOOTER_BYTES_MAX,
    PackIdentity,
    check_lengths,
    encode_header,
    parse_header,
)
from fwstore.format.columnar import (
    FixedColumn,
    IntegerColumn,
    Schema,
    Table,
    Values,
    encode_table,
    parse_table,
)
from fwstore.format.dtypes import itemsize
from fwstore.format.rows import U32, U64, Boxes, check_numbers, parse_boxes
from fwstore.format.tensor import (
    TENSOR_SCHEMA,
    TensorInfo,
    check_boxes,
    parse_tensors,
    tensor_columns,
)

KIND = "foot"
ID_BYTES = 32
_CHUNK_COLUMNS = ("id", "digest", "codec", "raw_length", "stored_length", "tensor", "cell")
_FOOTER_SCHEMA: Schema = {
    **TENSOR_SCHEMA,
    "id": FixedColumn(ID_BYTES),
    "digest": FixedColumn(DIGEST_BYTES),
    "codec": IntegerColumn(np.uint8),
    "raw_length": IntegerColumn(np.uint64),
    "stored_length": IntegerColumn(np.uint64),
    "tensor": IntegerColumn(np.uint32, delta=True),
    "cell": IntegerColumn(np.uint64, delta=True),
    "fragment": IntegerColumn(np.uint32, delta=True),
    "fragment_offsets": IntegerColumn(np.int64),
    "fragment_sizes": IntegerColumn(np.int64),
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Chunks:
    """Where the chunks of a pack are and what proves them, as columns; row i is chunk i.

    Attributes:
        ids: BLAKE3 of the decoded bytes, shape (n, 32).
        digests: XXH3-128 of the stored bytes, shape (n, 16).
        codecs: Numbers of codecs.
        raw_lengths: Bytes after decoding.
        stored_lengths: Bytes in the pack.
        offsets: Where the stored bytes begin in the pack; derived from the lengths.
    """

    ids: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    codecs: NDArray[np.uint8]
    raw_lengths: U64
    stored_lengths: U64
    offsets: U64

    def __len__(self) -> int:
        return len(self.codecs)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Footer(Chunks):
    """Every chunk of a pack, and what of which tensor it holds.

    Attributes:
        identity: Whose pack this is.
        dictionary: The tensors that it has chunks of.
        tensors: Index into `dictionary`.
        cells: Cell of the tensor's grid.
        fragments: Numbers of the chunks that are parts of cells, ascending.
        boxes: Those parts, relative to the boxes of the cells.
    """

    identity: PackIdentity
    dictionary: tuple[TensorInfo, ...]
    tensors: U32
    cells: U64
    fragments: U32
    boxes: Boxes

    def fragment_box(self, chunk: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return offsets and sizes of a chunk inside its cell, or None when it is the whole cell."""
        row = int(np.searchsorted(self.fragments, chunk))
        found = row < len(self.fragments) and int(self.fragments[row]) == chunk
        return self.boxes.row(row) if found else None


def chunk_offsets(stored_lengths: U64) -> tuple[U64, int]:
    """Return where the stored bytes of every chunk begin, and where the footer begins."""
    align = np.uint64(ALIGNMENT - 1)
    slots = BLOCK_BYTES + ((stored_lengths + align) & ~align)
    ends = BLOCK_BYTES + np.cumsum(slots, dtype=np.uint64)
    return ends - slots + BLOCK_BYTES, int(ends[-1]) if len(ends) else BLOCK_BYTES


def encode_footer(footer: Footer) -> bytes:
    """Return the stored form of a footer; offsets are left out, since the lengths imply them.

    Raises:
        InvalidInput: A tensor, chunk or box is not sane.
    """
    try:
        _check_footer(footer)
    except Corrupt as error:
        raise InvalidInput(f"a footer cannot be stored: {error}") from error
    columns: dict[str, Values] = {
        "id": footer.ids,
        "digest": footer.digests,
        "codec": footer.codecs,
        "raw_length": footer.raw_lengths,
        "stored_length": footer.stored_lengths,
        "tensor": footer.tensors,
        "cell": footer.cells,
        "fragment": footer.fragments,
        "fragment_offsets": footer.boxes.offsets,
        "fragment_sizes": footer.boxes.sizes,
    }
    columns |= tensor_columns(footer.dictionary)
    return encode_table(KIND, _FOOTER_SCHEMA, columns, encode_header(footer.identity))


def parse_chunks(stored: bytes, footer_offset: int) -> Chunks:
    """Return the chunks of the footer that begins at `footer_offset` of its pack, and not what they hold.

    A load knows from the manifest what it wants of which chunk; the tensors are most of the work of a footer.
    The digest must have been checked against the pack table.

    Raises:
        Corrupt: The bytes are not a footer, or its chunks do not fill the pack up to the footer.
        Unsupported: It is of another format version, or has an unknown feature.
    """
    return _chunks(_parse_table(stored), footer_offset)


def parse_footer(stored: bytes, footer_offset: int) -> Footer:
    """Return the footer that begins at `footer_offset` of its pack.

    Its digest must have been checked against the pack table or the trailer.

    Raises:
        Corrupt: The bytes are not a footer, or its chunks do not fill the pack up to the footer.
        Unsupported: It is of another format version, or has an unknown feature or dtype.
    """
    table = _parse_table(stored)
    chunks = _chunks(table, footer_offset)
    dictionary = parse_tensors(table)
    tensors, fragments = table.array("tensor"), table.array("fragment")
    check_numbers(tensors, 0, len(dictionary))
    _check_ascending(fragments, len(tensors))
    ranks = np.array([len(info.shape) for info in dictionary], np.int64)
    footer = Footer(
        ids=chunks.ids,
        digests=chunks.digests,
        codecs=chunks.codecs,
        raw_lengths=chunks.raw_lengths,
        stored_lengths=chunks.stored_lengths,
        offsets=chunks.offsets,
        identity=parse_header(table.meta),
        dictionary=dictionary,
        tensors=tensors,
        cells=table.array("cell"),
        fragments=fragments,
        boxes=parse_boxes(
            ranks[tensors[fragments]],
            table.array("fragment_offsets"),
            table.array("fragment_sizes"),
        ),
    )
    _check_footer(footer)
    return footer


def _parse_table(stored: bytes) -> Table:
    if len(stored) > FOOTER_BYTES_MAX:
        raise Corrupt(f"a footer of {len(stored)} bytes is larger than {FOOTER_BYTES_MAX}")
    table = parse_table(KIND, _FOOTER_SCHEMA, stored)
    counts = {len(table.columns[name]) for name in _CHUNK_COLUMNS}
    if len(counts) != 1 or max(counts) > CHUNKS_MAX:
        raise Corrupt("the columns of a footer differ in length or are too long")
    return table


def _chunks(table: Table, footer_offset: int) -> Chunks:
    stored_lengths = table.array("stored_length")
    check_lengths(table.array("codec"), table.array("raw_length"), stored_lengths)
    offsets, end = chunk_offsets(stored_lengths)
    if end != footer_offset:
        raise Corrupt(f"the chunks of a pack end at {end} but its footer begins at {footer_offset}")
    return Chunks(
        ids=table.array("id"),
        digests=table.array("digest"),
        codecs=table.array("codec"),
        raw_lengths=table.array("raw_length"),
        stored_lengths=stored_lengths,
        offsets=offsets,
    )


def _check_footer(footer: Footer) -> None:
    tensors = footer.tensors.astype(np.int64)
    check_numbers(footer.tensors, 0, len(footer.dictionary))
    _check_ascending(footer.fragments, len(tensors))
    check_lengths(footer.codecs, footer.raw_lengths, footer.stored_lengths)
    counts = np.array([info.cell_count for info in footer.dictionary], np.uint64)
    if bool((footer.cells >= counts[tensors]).any()):
        raise Corrupt("a chunk names a cell outside the grid of its tensor")
    check_boxes(footer.dictionary, tensors[footer.fragments], footer.boxes)
    sizes = np.array([itemsize(info.dtype) for info in footer.dictionary], np.int64)[tensors]
    expected = footer.boxes.volumes() * sizes[footer.fragments]
    if not np.array_equal(footer.raw_lengths[footer.fragments].astype(np.int64), expected):
        raise Corrupt("a fragment has another length than its box")
    most = np.array([info.cell_bytes for info in footer.dictionary], np.uint64)[tensors]
    if bool((footer.raw_lengths > most).any()):
        raise Corrupt("a chunk is longer than a cell of its tensor")


def _check_ascending(fragments: U32, chunks: int) -> None:
    if len(fragments) and (
        bool((fragments[1:] <= fragments[:-1]).any()) or int(fragments[-1]) >= chunks
    ):
        raise Corrupt("the fragments of a footer are not in order")
