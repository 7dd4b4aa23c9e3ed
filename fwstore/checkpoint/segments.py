"""Where the chunks of a rank lie in its live memory.

Invariant: a segment's chunks stand in the order of their cells, and the bytes of each are the C-order
bytes of its box; a segment never crosses a piece. Pure: no byte is read or copied here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import InternalError
from fwstore.plan.box import Box

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TensorChunks:
    """The chunks of one tensor that a rank must bring, sorted by cell.

    Attributes:
        tensor: Index of the tensor in the catalogue of the rank.
        itemsize: Bytes of one element.
        cells: Cell numbers, shape (chunks,).
        offsets: Start of every chunk in the global tensor, shape (chunks, dimensions).
        sizes: Extent of every chunk, shape (chunks, dimensions).
        fragment: True where a chunk is only a part of its cell, shape (chunks,).
    """

    tensor: int
    itemsize: int
    cells: npt.NDArray[np.uint64]
    offsets: Integers
    sizes: Integers
    fragment: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def lengths(self) -> Integers:
        """Raw bytes of every chunk, shape (chunks,)."""
        product: Integers = np.prod(self.sizes, axis=1, dtype=np.int64)
        return product * self.itemsize

    def take(self, index: npt.NDArray[np.intp]) -> TensorChunks:
        """Return some of the chunks, in the order of the index."""
        return TensorChunks(
            self.tensor,
            self.itemsize,
            self.cells[index],
            self.offsets[index],
            self.sizes[index],
            self.fragment[index],
        )

    def box(self, number: int) -> Box:
        """Return the global box of one chunk."""
        return Box(
            tuple(int(x) for x in self.offsets[number]), tuple(int(x) for x in self.sizes[number])
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive chunks of one piece.

    Attributes:
        chunks: The chunks, in cell order.
        piece: Index of the piece that holds them.
        start: First byte in the piece's memory when the chunks are one contiguous range of a C-contiguous
            piece, else -1.
        size_bytes: Raw bytes of all chunks; kept, because every save asks for it several times.
    """

    chunks: TensorChunks
    piece: int
    start: int
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_bytes", int(self.chunks.lengths.sum()))

    def of_tensor(self, number: int) -> Segment:
        """Return the same segment of another tensor that is cut alike; nothing is computed again."""
        if number == self.chunks.tensor:
            return self
        one = self.chunks
        chunks = TensorChunks(number, one.itemsize, one.cells, one.offsets, one.sizes, one.fragment)
        found = object.__new__(Segment)
        for name, kept in (
            ("chunks", chunks),
            ("piece", self.piece),
            ("start", self.start),
            ("size_bytes", self.size_bytes),
        ):
            object.__setattr__(found, name, kept)
        return found


def split_segments(
    chunks: TensorChunks, pieces: Sequence[tuple[Box, bool]], segment_bytes: int
) -> Iterator[Segment]:
    """Yield the segments of a tensor's chunks.

    Args:
        chunks: What the rank must bring.
        pieces: The box of every piece of the rank and whether its memory is C-contiguous.
        segment_bytes: Segments end before they exceed this, unless a single chunk does.

    Raises:
        InternalError: A chunk lies in no piece: the ownership plan and the shard disagree.
    """
    owner = _piece_of_chunks(chunks, [box for box, _ in pieces])
    for number, (box, contiguous) in enumerate(pieces):
        mine = np.flatnonzero(owner == number)
        if not len(mine):
            continue
        part = chunks.take(mine)
        starts, flat = _memory_of(part, box)
        flat &= contiguous
        for first, last in _cuts(starts, part.lengths, flat, segment_bytes):
            start = int(starts[first]) if flat[first] else -1
            yield Segment(part.take(np.arange(first, last)), number, start)


def _piece_of_chunks(chunks: TensorChunks, boxes: Sequence[Box]) -> npt.NDArray[np.intp]:
    owner = np.full(len(chunks), -1, np.intp)
    for number, box in enumerate(boxes):
        low = np.array(box.offsets, np.int64)
        high = low + np.array(box.sizes, np.int64)
        inside = (chunks.offsets >= low).all(1) & (chunks.offsets + chunks.sizes <= high).all(1)
        owner[inside & (owner < 0)] = number
    if (owner < 0).any():
        missing = chunks.box(int(np.flatnonzero(owner < 0)[0]))
        raise InternalError(
            f"chunk {missing} of tensor {chunks.tensor} lies in no piece of this rank"
        )
    return owner


def _memory_of(chunks: TensorChunks, box: Box) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Return where chunks start in a C-contiguous piece and whether each is one range of it."""
    starts = np.zeros(len(chunks), np.int64)
    flat = np.ones(len(chunks), np.bool_)
    stride = chunks.itemsize
    expected = np.full(len(chunks), chunks.itemsize, np.int64)
    for axis in reversed(range(len(box.sizes))):
        starts += (chunks.offsets[:, axis] - box.offsets[axis]) * stride
        flat &= (chunks.sizes[:, axis] == 1) | (expected == stride)
        expected *= chunks.sizes[:, axis]
        stride *= box.sizes[axis]
    return starts, flat


def _cuts(
    starts: Integers, lengths: Integers, flat: npt.NDArray[np.bool_], segment_bytes: int
) -> Iterator[tuple[int, int]]:
    """Yield index ranges that are contiguous in memory and no longer than a segment may be."""
    joins = flat[1:] & flat[:-1] & (starts[1:] == starts[:-1] + lengths[:-1])
    edges = np.concatenate(([0], np.flatnonzero(~joins) + 1, [len(starts)]))
    for first, last in pairwise(edges):
        yield from _bounded(int(first), int(last), lengths, segment_bytes)


def _bounded(first: int, last: int, lengths: Integers, limit: int) -> Iterator[tuple[int, int]]:
    ends = np.cumsum(lengths[first:last])
    begin, done = first, 0
    while begin < last:
        fits = int(np.searchsorted(ends, done + limit, side="right")) + first
        end = min(last, max(fits, begin + 1))
        yield begin, end
        done = int(ends[end - 1 - first])
        begin = end
