"""Which chunks hold what a rank wants, whatever the layout was that saved them.

Invariant: after `plan_reads` returns, every wanted element is in some planned chunk; the plan is the
same for the same tables and boxes, sorted by pack, chunk and piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt
from fwstore.format.rows import FragmentTable, RunTable
from fwstore.plan.box import Box
from fwstore.plan.grid import I64, U64, Cut, Grid
from fwstore.plan.tiling import Tiles, first_flaw

U32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """A chunk and the part of it that is wanted.

    Attributes:
        pack: Number of the pack.
        chunk: Number of the chunk in it.
        stored: What the chunk holds, in the tensor.
        wanted: What of that is wanted, in the tensor.
        piece: Index of the wanted box that it lies in.
    """

    pack: int
    chunk: int
    stored: Box
    wanted: Box
    piece: int


@dataclass(frozen=True, slots=True, eq=False)
class ReadTable:
    """The chunks to read of one tensor, as columns sorted by pack, chunk and piece.

    Attributes:
        pack: Number of the pack of every chunk.
        chunk: Number of the chunk in it.
        cell: The cell that it is, or is a part of.
        piece: Index of the wanted box.
        stored_offsets: Start in the tensor of what the chunk holds, shape (reads, dimensions).
        stored_sizes: Extent of what it holds.
        wanted_offsets: Start in the tensor of what is wanted of it.
        wanted_sizes: Extent of what is wanted.
    """

    pack: U32
    chunk: U32
    cell: U64
    piece: NDArray[np.int64]
    stored_offsets: I64
    stored_sizes: I64
    wanted_offsets: I64
    wanted_sizes: I64

    def __len__(self) -> int:
        return len(self.pack)

    def __iter__(self) -> Iterator[ChunkRead]:
        stored = _boxes(self.stored_offsets, self.stored_sizes)
        wanted = _boxes(self.wanted_offsets, self.wanted_sizes)
        columns = self.pack.tolist(), self.chunk.tolist(), stored, wanted, self.piece.tolist()
        return map(ChunkRead, *columns)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """True where all of the chunk is wanted."""
        same: NDArray[np.bool_] = (self.stored_sizes == self.wanted_sizes).all(axis=1)
        return same

    def take(self, index: NDArray[np.int64]) -> ReadTable:
        """Return some rows, in the order of the index."""
        return ReadTable(
            self.pack[index],
            self.chunk[index],
            self.cell[index],
            self.piece[index],
            self.stored_offsets[index],
            self.stored_sizes[index],
            self.wanted_offsets[index],
            self.wanted_sizes[index],
        )


def rows_of_tensor(
    runs: RunTable, fragments: FragmentTable, tensor: int
) -> tuple[RunTable, FragmentTable]:
    """Return the rows of one tensor from tables that are sorted by tensor."""
    low, high = np.searchsorted(runs.tensor, [tensor, tensor + 1]).tolist()
    first, last = np.searchsorted(fragments.tensor, [tensor, tensor + 1]).tolist()
    return runs.take(np.arange(low, high)), fragments.take(np.arange(first, last))


def plan_reads(
    grid: Grid, runs: RunTable, fragments: FragmentTable, wanted: Sequence[Box]
) -> ReadTable:
    """Return the chunks of one tensor that hold some boxes of it.

    Args:
        grid: The tensor's grid.
        runs: Its whole cells, sorted by first cell, without overlap.
        fragments: Its fragments, sorted by cell.
        wanted: The boxes; empty ones need no chunk.

    Raises:
        InvalidInput: A wanted box does not lie in the tensor.
        Corrupt: A wanted element is in no chunk, or a fragment does not lie in its cell.
    """
    parts = [
        part
        for piece, box in enumerate(wanted)
        for part in _reads_of_box(grid, (runs, fragments), box, piece)
    ]
    table = _joined(parts, len(grid.shape))
    return table.take(np.lexsort((table.piece, table.chunk, table.pack)))


def _reads_of_box(
    grid: Grid, tables: tuple[RunTable, FragmentTable], box: Box, piece: int
) -> Iterator[ReadTable]:
    runs, fragments = tables
    cut = grid.cut(box)
    run = np.searchsorted(runs.first_cell, cut.cells, side="right") - 1
    found = np.zeros(len(cut), np.bool_)
    if len(runs):
        step = cut.cells - runs.first_cell[run]
        found = (run >= 0) & (step < runs.count[run])
        rows = np.flatnonzero(found)
        offsets, sizes = grid.cell_boxes(cut.cells[rows])
        yield ReadTable(
            runs.pack[run[rows]],
            (runs.first_chunk[run[rows]] + step[rows]).astype(np.uint32),
            cut.cells[rows],
            np.full(len(rows), piece, np.int64),
            offsets,
            sizes,
            cut.offsets[rows],
            cut.sizes[rows],
        )
    missed = np.flatnonzero(~found)
    if len(missed):
        part = Cut(cut.cells[missed], cut.offsets[missed], cut.sizes[missed], cut.whole[missed])
        yield _reads_of_fragments(grid, fragments, part, piece)


def _reads_of_fragments(grid: Grid, fragments: FragmentTable, cut: Cut, piece: int) -> ReadTable:
    """Return the fragments that hold some chunks of a wanted box, which are in no run."""
    first = np.searchsorted(fragments.cell, cut.cells, side="left")
    counts = np.searchsorted(fragments.cell, cut.cells, side="right") - first
    group = np.repeat(np.arange(len(cut), dtype=np.int64), counts)
    row = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(len(group))
    offsets, sizes = _fragment_boxes(grid, fragments, row)
    low = np.maximum(offsets, cut.offsets[group])
    high = np.minimum(offsets + sizes, cut.offsets[group] + cut.sizes[group])
    kept = np.flatnonzero((high > low).all(axis=1))
    group, row, low, high = group[kept], row[kept], low[kept], high[kept]
    flaw = first_flaw(
        Tiles(cut.sizes, group, low - cut.offsets[group], high - low), twice_allowed=True
    )
    if flaw is not None:
        start = cut.offsets[flaw.target] + np.array(flaw.box.offsets, np.int64)
        missing = Box(tuple(start.tolist()), flaw.box.sizes)
        raise Corrupt(f"no chunk holds {missing} of cell {cut.cells[flaw.target]}")
    return ReadTable(
        fragments.pack[row],
        fragments.chunk[row],
        fragments.cell[row],
        np.full(len(row), piece, np.int64),
        offsets[kept],
        sizes[kept],
        low,
        high - low,
    )


def _fragment_boxes(grid: Grid, fragments: FragmentTable, row: I64) -> tuple[I64, I64]:
    """Return where some fragments lie in the tensor."""
    rank = len(grid.shape)
    part = fragments.boxes.take(row)
    if len(part.offsets) != len(row) * rank or bool((np.diff(part.starts) != rank).any()):
        raise Corrupt(
            f"a fragment of a tensor of shape {grid.shape} has another number of dimensions"
        )
    relative, sizes = part.offsets.reshape(len(row), rank), part.sizes.reshape(len(row), rank)
    origins, extents = grid.cell_boxes(fragments.cell[row])
    if bool(((relative < 0) | (sizes < 1) | (relative > extents - sizes)).any()):
        raise Corrupt(f"a fragment of a tensor of shape {grid.shape} does not lie in its cell")
    return origins + relative, sizes


def _joined(parts: Sequence[ReadTable], rank: int) -> ReadTable:
    nothing = np.empty((0, rank), np.int64)
    return ReadTable(
        np.concatenate([np.empty(0, np.uint32), *(part.pack for part in parts)]),
        np.concatenate([np.empty(0, np.uint32), *(part.chunk for part in parts)]),
        np.concatenate([np.empty(0, np.uint64), *(part.cell for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.piece for part in parts)]),
        np.concatenate([nothing, *(part.stored_offsets for part in parts)]),
        np.concatenate([nothing, *(part.stored_sizes for part in parts)]),
        np.concatenate([nothing, *(part.wanted_offsets for part in parts)]),
        np.concatenate([nothing, *(part.wanted_sizes for part in parts)]),
    )


def _boxes(offsets: I64, sizes: I64) -> Iterator[Box]:
    return map(Box, map(tuple, offsets.tolist()), map(tuple, sizes.tolist()))
