"""The grid of a tensor: which cells it is cut into, and which of them a box touches.

Invariant: a grid depends on the tensor and on the layout of its first save alone, so the same bytes
have the same cell number, and hence are found again, whatever the world is later. Every element lies
in exactly one cell; the bytes of a cell are the C-order bytes of its box.

Along every dimension the tensor is cut into `blocks` of equal extent (the last may be shorter or
missing) and each block into cells of `rows` (the last may be shorter). Cells are numbered block by
block, so that the cells of one block are consecutive; a number whose cell would lie outside the tensor
is *void* and never used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import InvalidInput
from fwstore.base.units import KIB, MIB
from fwstore.plan.box import Box
from fwstore.plan.layout import Layout

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

CELL_BYTES_LOW = 256 * KIB
CELL_BYTES_HIGH = 4 * MIB


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The chunks into which a grid cuts a box, sorted by cell.

    Attributes:
        cells: Cell numbers, shape (chunks,).
        offsets: Start of every chunk in the tensor, shape (chunks, dimensions).
        sizes: Extent of every chunk, never 0, shape (chunks, dimensions).
        whole: True where the chunk is all of its cell, shape (chunks,).
    """

    cells: U64
    offsets: I64
    sizes: I64
    whole: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.cells)


@dataclass(frozen=True)
class Grid:
    """How a tensor is cut into cells.

    Attributes:
        shape: The tensor's shape.
        cells: (blocks, rows) of every dimension.
    """

    shape: tuple[int, ...]
    cells: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.cells) or any(min(pair) < 1 for pair in self.cells):
            raise InvalidInput(f"{self.cells} is no grid of a tensor of shape {self.shape}")

    @cached_property
    def block_sizes(self) -> tuple[int, ...]:
        """Extent of a full block in every dimension."""
        return tuple(
            -(-size // blocks) for size, (blocks, _) in zip(self.shape, self.cells, strict=True)
        )

    @cached_property
    def cells_of_block(self) -> tuple[int, ...]:
        """Cells of a full block along every dimension."""
        return tuple(
            -(-size // rows) for size, (_, rows) in zip(self.block_sizes, self.cells, strict=True)
        )

    @cached_property
    def total(self) -> int:
        """Cell numbers of the grid, void ones included; 0 for an empty tensor."""
        return math.prod(blocks for blocks, _ in self.cells) * math.prod(self.cells_of_block)

    @cached_property
    def real(self) -> int:
        """Cells that hold elements."""
        return math.prod(self.real_along)

    @cached_property
    def real_along(self) -> tuple[int, ...]:
        """Cells along every dimension that hold elements."""
        return tuple(
            int(self._real_cells(axis, np.array([blocks], np.int64))[0])
            for axis, (blocks, _) in enumerate(self.cells)
        )

    @cached_property
    def weights(self) -> tuple[tuple[int, int], ...]:
        """What one block and one cell further along every dimension add to a cell number."""
        pairs = []
        block, cell = math.prod(self.cells_of_block), 1
        for (blocks, _), cells in zip(self.cells[::-1], self.cells_of_block[::-1], strict=True):
            pairs.append((block, cell))
            block, cell = block * blocks, cell * cells
        return tuple(reversed(pairs))

    def cell_box(self, number: int) -> Box:
        """Return the box of a cell.

        Raises:
            InvalidInput: The grid has no such cell, or it is void.
        """
        if 0 <= number < self.total:
            offsets, sizes = self.cell_boxes(np.array([number], np.uint64))
            if bool(sizes.all()):
                return Box(tuple(offsets[0].tolist()), tuple(sizes[0].tolist()))
        raise InvalidInput(
            f"a tensor of shape {self.shape} with the grid {self.cells} has no cell {number}"
        )

    def cell_boxes(self, numbers: U64) -> tuple[I64, I64]:
        """Return offsets and sizes, both of shape (cells, dimensions), of cells with numbers < `total`.

        Some size of a void cell is 0.
        """
        offsets = np.empty((len(numbers), len(self.shape)), np.int64)
        sizes = np.empty_like(offsets)
        for axis, (block, cell) in enumerate(self._coordinates(numbers.astype(np.int64))):
            size, extent, rows = self.shape[axis], self.block_sizes[axis], self.cells[axis][1]
            first = np.minimum(block * extent + cell * rows, size)
            offsets[:, axis] = first
            sizes[:, axis] = (
                np.minimum(np.minimum(first + rows, (block + 1) * extent), size) - first
            )
        return offsets, sizes

    def cells_of_box(self, box: Box) -> U64:
        """Return the numbers of the cells that meet a box, ascending."""
        return self.cut(box).cells

    def cut(self, box: Box) -> Cut:
        """Return the chunks of a box.

        Raises:
            InvalidInput: The box does not lie in the tensor.
        """
        if len(box.sizes) != len(self.shape) or not Box.whole(self.shape).contains(box):
            raise InvalidInput(f"{box} does not lie in a tensor of shape {self.shape}")
        if box.volume == 0:
            nothing = np.empty((0, len(self.shape)), np.int64)
            return Cut(np.empty(0, np.uint64), nothing, nothing, np.empty(0, np.bool_))
        axes = [self._cut_axis(axis, box) for axis in range(len(self.shape))]
        extent = tuple(len(weights) for weights, _, _, _ in axes)
        numbers, complete = np.zeros(extent, np.int64), np.ones(extent, np.bool_)
        offsets = np.empty((numbers.size, len(axes)), np.int64)
        sizes = np.empty_like(offsets)
        for axis, (weights, starts, lengths, full) in enumerate(axes):
            along = tuple(-1 if other == axis else 1 for other in range(len(axes)))
            numbers += weights.reshape(along)
            complete &= full.reshape(along)
            offsets[:, axis] = np.broadcast_to(starts.reshape(along), extent).reshape(-1)
            sizes[:, axis] = np.broadcast_to(lengths.reshape(along), extent).reshape(-1)
        cells, whole = numbers.reshape(-1), complete.reshape(-1)
        if bool((cells[1:] > cells[:-1]).all()):
            return Cut(cells.astype(np.uint64), offsets, sizes, whole)
        order = np.argsort(cells)
        return Cut(cells[order].astype(np.uint64), offsets[order], sizes[order], whole[order])

    def real_before(self, numbers: U64) -> I64:
        """Return for every number how many cells with a smaller number are not void."""
        position = numbers.astype(np.int64)
        inside = position < self.total
        coordinates = self._coordinates(np.where(inside, position, 0))
        skipped = [self._real_cells(axis, block) for axis, (block, _) in enumerate(coordinates)]
        in_block = [
            self._real_cells(axis, block + 1) - skipped[axis]
            for axis, (block, _) in enumerate(coordinates)
        ]
        # Numbers are compared digit by digit, blocks first. Every digit adds the cells that agree with
        # all digits before it and are smaller in it, which are a product over the dimensions.
        count = np.zeros_like(position)
        agree = np.ones_like(position)
        for axis in range(len(coordinates)):
            count += agree * skipped[axis] * math.prod(self.real_along[axis + 1 :])
            agree = agree * in_block[axis]
        agree = np.ones_like(position)
        for axis, (_, cell) in enumerate(coordinates):
            rest = reduce(np.multiply, in_block[axis + 1 :], np.ones_like(position))
            count += agree * np.minimum(cell, in_block[axis]) * rest
            agree = agree * (cell < in_block[axis])
        return np.where(inside, count, self.real)

    def _coordinates(self, numbers: I64) -> list[tuple[I64, I64]]:
        """Return the block and the cell in it along every dimension."""
        per_block = math.prod(self.cells_of_block)
        block, cell = np.divmod(numbers, max(1, per_block))
        pairs = []
        for (blocks, _), cells in zip(self.cells[::-1], self.cells_of_block[::-1], strict=True):
            block, block_here = np.divmod(block, blocks)
            cell, cell_here = np.divmod(cell, max(1, cells))
            pairs.append((block_here, cell_here))
        return pairs[::-1]

    def _cut_axis(self, axis: int, box: Box) -> tuple[I64, I64, I64, NDArray[np.bool_]]:
        """Return for the cells that a box meets along a dimension: weight, start, length, whole."""
        extent, per_block, rows = (
            self.block_sizes[axis],
            self.cells_of_block[axis],
            self.cells[axis][1],
        )
        low, high = box.offsets[axis], box.offsets[axis] + box.sizes[axis]
        first = low // extent * per_block + low % extent // rows
        last = (high - 1) // extent * per_block + (high - 1) % extent // rows
        block, cell = np.divmod(np.arange(first, last + 1, dtype=np.int64), per_block)
        starts = block * extent + cell * rows
        stops = np.minimum(np.minimum(starts + rows, (block + 1) * extent), self.shape[axis])
        whole = (starts >= low) & (stops <= high)
        starts = np.maximum(starts, low)
        of_block, of_cell = self.weights[axis]
        return block * of_block + cell * of_cell, starts, np.minimum(stops, high) - starts, whole

    def _real_cells(self, axis: int, blocks: I64) -> I64:
        """Return how many cells along a dimension hold elements, in its first blocks."""
        full, rest = divmod(self.shape[axis], max(1, self.block_sizes[axis]))
        tail = np.where(blocks > full, -(-rest // self.cells[axis][1]), 0)
        return np.minimum(blocks, full) * self.cells_of_block[axis] + tail


@lru_cache(maxsize=1 << 12)
def make_grid(
    shape: tuple[int, ...], itemsize: int, blocks: tuple[int, ...], local: tuple[int, ...]
) -> Grid:
    """Return the grid of a tensor.

    Args:
        shape: The tensor's shape.
        itemsize: Bytes of one element.
        blocks: Into how many parts tensor and expert parallelism cut every dimension.
        local: Extent of the largest shard in every dimension.
    """
    rows = list(local)
    for axis, size in enumerate(local):
        row = math.prod(local[axis + 1 :]) * itemsize
        if row > CELL_BYTES_HIGH and axis + 1 < len(local):
            rows[axis] = 1
            continue
        if size * row > CELL_BYTES_LOW:
            rows[axis] = _rows_of(size, row)
        break
    return Grid(
        tuple(shape),
        tuple(
            (max(1, min(count, extent)), max(1, height))
            for extent, count, height in zip(shape, blocks, rows, strict=True)
        ),
    )


def _rows_of(size: int, row: int) -> int:
    """Return how many rows of some bytes a cell has: halves and quarters of the shard stay aligned."""
    odd = size // (size & -size)
    rows = odd if odd * row <= CELL_BYTES_HIGH else 1
    while rows * row < CELL_BYTES_LOW:
        rows *= 2
    return min(rows, size)


def grid_of_layout(shape: tuple[int, ...], itemsize: int, layout: Layout | None) -> Grid:
    """Return the grid that a tensor gets when it is first saved with a layout.

    Raises:
        InvalidInput: The layout divides a dimension that the tensor lacks.
    """
    blocks, inner = [1] * len(shape), [1] * len(shape)
    if layout is not None:
        for size, split in zip(layout.mesh, layout.placements, strict=True):
            if split is not None and split.dim >= len(shape):
                raise InvalidInput(f"{split} divides a dimension that shape {shape} lacks")
            if split is not None:
                (blocks if split.outer else inner)[split.dim] *= size
    local = tuple(
        _ceil(_ceil(size, outer), count)
        for size, outer, count in zip(shape, blocks, inner, strict=True)
    )
    return make_grid(shape, itemsize, tuple(blocks), local)


def _ceil(size: int, parts: int) -> int:
    return -(-size // parts)
