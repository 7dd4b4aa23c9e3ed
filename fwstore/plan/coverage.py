"""Whether a snapshot holds every element of its tensors exactly once.

Invariant: the check is exact and works on runs as they are, so that its cost follows the rows of the
tables and not the cells that they stand for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt
from fwstore.format.rows import FragmentTable, RunTable
from fwstore.plan.box import Box
from fwstore.plan.grid import I64, U64, Grid
from fwstore.plan.tiling import Tiles, first_flaw

Mask = NDArray[np.bool_]


def check_coverage(
    grids: Sequence[Grid | None],
    runs: RunTable,
    fragments: FragmentTable,
    *,
    first_tensor: int = 0,
    name: Callable[[int], str] = lambda number: f"tensor {number}",
) -> None:
    """Check that every element of some tensors is in exactly one chunk.

    Args:
        grids: The grid of every tensor; None for one that has no chunks of its own (tied storage).
        runs: Their whole cells, sorted by tensor and first cell.
        fragments: Their fragments, sorted by tensor and cell.
        first_tensor: Number of the first of the tensors.
        name: Gives the name of a tensor for the message.

    Raises:
        Corrupt: Something is missing, there twice, or in a cell that does not exist; the message
            names the first such place.
    """
    _Coverage(_Numbers(grids, first_tensor), runs, fragments, name).check()


class _Numbers:
    """The cells of all tensors numbered through, so that one search serves all of them."""

    def __init__(self, grids: Sequence[Grid | None], first_tensor: int) -> None:
        self.first_tensor = first_tensor
        distinct: dict[Grid | None, int] = {}
        self._form = np.array(
            [distinct.setdefault(grid, len(distinct)) for grid in grids], np.int64
        )
        self._grids = list(distinct)
        totals = [0 if grid is None else grid.total for grid in distinct]
        reals = [0 if grid is None else grid.real for grid in distinct]
        if sum(totals[form] for form in self._form.tolist()) >= 1 << 63:
            raise Corrupt("the tensors have more cells than can be numbered")
        self.total = np.array(totals, np.int64)[self._form]
        self.real = np.array(reals, np.int64)[self._form]
        self.base = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.total)])

    def grid(self, tensor: int) -> Grid | None:
        """Return the grid of a tensor."""
        return self._grids[int(self._form[tensor])]

    def by_grid(self, tensor: I64) -> Iterator[tuple[Grid, I64]]:
        """Yield every grid that rows of tensors have, and those rows."""
        forms = self._form[tensor]
        order = np.argsort(forms, kind="stable")
        edges = np.searchsorted(forms[order], np.arange(len(self._grids) + 1))
        for number, grid in enumerate(self._grids):
            if grid is not None and edges[number] < edges[number + 1]:
                yield grid, order[edges[number] : edges[number + 1]]

    def real_between(self, tensor: I64, first: U64, end: U64) -> I64:
        """Return how many cells of ranges of cell numbers are not void."""
        count = (end - first).astype(np.int64)
        for grid, rows in self.by_grid(tensor):
            if grid.real < grid.total:
                count[rows] = grid.real_before(end[rows]) - grid.real_before(first[rows])
        return count


@dataclass(frozen=True, slots=True)
class _Coverage:
    numbers: _Numbers
    runs: RunTable
    fragments: FragmentTable
    name: Callable[[int], str]

    def check(self) -> None:
        run_tensor = self._index(self.runs.tensor)
        self._check_cells(run_tensor, self.runs.first_cell, self.runs.count)
        starts = self.numbers.base[run_tensor] + self.runs.first_cell.astype(np.int64)
        ends = starts + self.runs.count.astype(np.int64)
        self._refuse_rows(run_tensor[1:], self.runs.first_cell[1:], starts[1:] < ends[:-1])

        tensor = self._index(self.fragments.tensor)
        self._check_cells(tensor, self.fragments.cell, np.ones(len(tensor), np.uint64))
        keys = self.numbers.base[tensor] + self.fragments.cell.astype(np.int64)
        if bool((keys[1:] < keys[:-1]).any()):
            raise Corrupt("the fragments are not sorted by tensor and cell")
        if len(ends):
            run = np.searchsorted(starts, keys, side="right") - 1
            self._refuse_rows(tensor, self.fragments.cell, (run >= 0) & (keys < ends[run]))
        firsts = np.flatnonzero(
            np.concatenate([np.ones(min(1, len(keys)), np.bool_), keys[1:] != keys[:-1]])
        )
        self._check_count(run_tensor, tensor[firsts], (starts, ends, keys[firsts]))
        self._check_tiling(tensor, firsts)

    def _index(self, tensor: NDArray[np.uint32]) -> I64:
        index = tensor.astype(np.int64) - self.numbers.first_tensor
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self.numbers.total):
            raise Corrupt("a row names a tensor that is not there")
        return index

    def _check_cells(self, tensor: I64, first: U64, count: U64) -> None:
        """Refuse rows that are not wholly of cells that hold elements."""
        total = self.numbers.total[tensor].astype(np.uint64)
        outside = (first >= total) | (count > total - np.minimum(first, total))
        if not bool(outside.any()):
            outside = self.numbers.real_between(tensor, first, first + count) < count.astype(
                np.int64
            )
        if bool(outside.any()):
            row = int(np.argmax(outside))
            low, high = int(first[row]), int(first[row]) + int(count[row]) - 1
            raise Corrupt(f"{self._of(int(tensor[row]))} has no cells {low} to {high}")

    def _refuse_rows(self, tensor: I64, cell: U64, twice: Mask) -> None:
        if bool(twice.any()):
            row = int(np.argmax(twice))
            raise Corrupt(f"cell {cell[row]} of {self._of(int(tensor[row]))} is there twice")

    def _check_count(self, run_tensor: I64, tensor: I64, keys: tuple[I64, I64, I64]) -> None:
        """Refuse tensors with fewer cells than their grid has; no cell is counted twice here."""
        counted = np.concatenate(
            [np.zeros(1, np.int64), np.cumsum(self.runs.count.astype(np.int64))]
        )
        edges = np.searchsorted(run_tensor, np.arange(len(self.numbers.total) + 1))
        there = np.diff(counted[edges]) + np.bincount(tensor, minlength=len(self.numbers.total))
        short = np.flatnonzero(there != self.numbers.real)
        if len(short):
            self._refuse_gap(int(short[0]), *keys)

    def _refuse_gap(self, tensor: int, starts: I64, ends: I64, cells: I64) -> None:
        """Name the first cell of a tensor that no row has."""
        base, stop = self.numbers.base[tensor], self.numbers.base[tensor + 1]
        low, high = np.sort(np.append(starts, cells)), np.sort(np.append(ends, cells + 1))
        mine = slice(*np.searchsorted(low, [base, stop]).tolist())
        gap_starts = (np.append(base, high[mine]) - base).astype(np.uint64)
        gap_ends = (np.append(low[mine], stop) - base).astype(np.uint64)
        rows = np.full(len(gap_starts), tensor, np.int64)
        lacking = self.numbers.real_between(rows, gap_starts, gap_ends)
        row = int(np.argmax(lacking > 0))
        first, end = int(gap_starts[row]), int(gap_ends[row])
        cell = (
            bisect_left(range(first, end), 1, key=lambda n: self._real(tensor, first, n + 1))
            + first
        )
        raise Corrupt(
            f"{int(lacking.sum())} cells of {self._of(tensor)} are in no chunk; the first is cell {cell}"
            f"{self._place(tensor, cell)}"
        )

    def _real(self, tensor: int, first: int, end: int) -> int:
        row = np.array([tensor], np.int64)
        return int(
            self.numbers.real_between(
                row, np.array([first], np.uint64), np.array([end], np.uint64)
            )[0]
        )

    def _check_tiling(self, tensor: I64, firsts: I64) -> None:
        """Refuse cells whose fragments do not add up to the cell."""
        boxes = self.fragments.boxes
        ranks = np.diff(boxes.starts)
        width = int(ranks.max()) if len(ranks) else 0
        target = np.ones((len(firsts), width), np.int64)
        rank_of = np.zeros(len(firsts), np.int64)
        for grid, rows in self.numbers.by_grid(tensor[firsts]):
            if len(grid.shape) > width:
                raise Corrupt("a fragment has another number of dimensions than its tensor")
            target[rows, : len(grid.shape)] = grid.cell_boxes(self.fragments.cell[firsts[rows]])[1]
            rank_of[rows] = len(grid.shape)
        counts = np.diff(np.append(firsts, len(tensor)))
        group = np.repeat(np.arange(len(firsts), dtype=np.int64), counts)
        if bool((rank_of[group] != ranks).any()):
            raise Corrupt("a fragment has another number of dimensions than its tensor")
        offsets, sizes = (
            np.zeros((len(tensor), width), np.int64),
            np.ones((len(tensor), width), np.int64),
        )
        row = np.repeat(np.arange(len(tensor)), ranks)
        column = np.arange(len(boxes.offsets)) - np.repeat(boxes.starts[:-1], ranks)
        offsets[row, column], sizes[row, column] = boxes.offsets, boxes.sizes
        outside = ((offsets < 0) | (sizes < 1) | (offsets > target[group] - sizes)).any(axis=1)
        if bool(outside.any()):
            number = int(np.argmax(outside))
            raise Corrupt(f"a fragment does not lie in its cell of {self._of(int(tensor[number]))}")
        flaw = first_flaw(Tiles(target, group, offsets, sizes))
        if flaw is not None:
            number = int(firsts[flaw.target])
            cell, rank = int(self.fragments.cell[number]), int(ranks[number])
            part = Box(flaw.box.offsets[:rank], flaw.box.sizes[:rank])
            raise Corrupt(
                f"{part} of cell {cell} of {self._of(int(tensor[number]))} is in {flaw.times} chunks"
            )

    def _place(self, tensor: int, cell: int) -> str:
        grid = self.numbers.grid(tensor)
        return "" if grid is None else f", {grid.cell_box(cell)}"

    def _of(self, tensor: int) -> str:
        return self.name(tensor + self.numbers.first_tensor)
