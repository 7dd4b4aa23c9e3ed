"""Layouts, a saved tensor in memory, and reading it back: what the tests of plans share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.format.rows import FragmentTable, RunTable, sort_fragments, sort_runs
from fwstore.plan.box import Box
from fwstore.plan.grid import Cut, Grid
from fwstore.plan.layout import Layout, Placement, Split
from fwstore.plan.owner import Holding, Owned, plan_owned
from fwstore.plan.reshard import plan_reads

Array = NDArray[Any]


def layout(*dimensions: tuple[int, Placement], first_rank: int = 0) -> Layout:
    """Return a layout of consecutive ranks from (extent, placement) of every mesh dimension."""
    mesh = tuple(size for size, _ in dimensions)
    ranks = tuple(range(first_rank, first_rank + int(np.prod(mesh))))
    return Layout(mesh, tuple(placement for _, placement in dimensions), ranks)


def world_layouts(world: int) -> dict[str, Layout]:
    """Return the ways in which a world divides a matrix."""
    layouts = {
        "rows": layout((world, Split(0))),
        "columns": layout((world, Split(1, outer=True))),
        "replicated": layout((world, None)),
    }
    if world % 2 == 0:
        half = world // 2
        layouts |= {
            "2-D": layout((half, Split(0)), (2, Split(1, outer=True))),
            "HSDP": layout((2, None), (half, Split(0))),
            "FSDP+TP": layout((half, Split(0, factor=2)), (2, Split(0, outer=True))),
        }
    return layouts


def splits(dims: int) -> st.SearchStrategy[Placement]:
    """Any placement of a tensor of some dimensions."""
    if not dims:
        return st.none()
    factors = st.sampled_from([1, 1, 2, 3, 4])
    parts = st.tuples(st.integers(0, dims - 1), factors, st.booleans())
    return st.none() | parts.map(lambda part: Split(*part))


@st.composite
def layouts(draw: st.DrawFn, dims: int) -> Layout:
    """A mesh of up to three dimensions with any placements, strided ones included."""
    mesh = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    split = splits(dims)
    placements = [draw(split) for _ in mesh]
    return layout(*zip(mesh, placements, strict=True))


@st.composite
def grids(draw: st.DrawFn, shape: tuple[int, ...]) -> Grid:
    """Any grid of a shape."""
    most = [max(1, size) for size in shape]
    return Grid(
        shape, tuple((draw(st.integers(1, size)), draw(st.integers(1, size))) for size in most)
    )


@dataclass(frozen=True)
class Saved:
    """A tensor in chunks: what a save leaves behind, without packs and files."""

    grid: Grid
    chunks: dict[tuple[int, int], bytes]
    runs: RunTable
    fragments: FragmentTable
    dtype: np.dtype[Any]

    def load(self, wanted: Sequence[Box]) -> list[Array]:
        """Return some boxes, read as `plan_reads` says."""
        pieces = [np.full(box.sizes, 0xEE, self.dtype) for box in wanted]
        for read in plan_reads(self.grid, self.runs, self.fragments, wanted):
            chunk = np.frombuffer(self.chunks[read.pack, read.chunk], self.dtype)
            part = chunk.reshape(read.stored.sizes)[read.wanted.relative_to(read.stored).slices()]
            target = pieces[read.piece]
            target[read.wanted.relative_to(wanted[read.piece]).slices()] = part
        return pieces


def cut_of(owned: Owned, number: int) -> Cut:
    """Return the chunks of one tensor."""
    nothing = np.zeros((0, 0), np.int64)
    none = Cut(np.zeros(0, np.uint64), nothing, nothing, np.zeros(0, np.bool_))
    return dict(owned.by_tensor()).get(number, none)


def save(array: Array, grid: Grid, division: Layout) -> Saved:
    """Return a tensor as all ranks of a layout save it, one pack per rank."""
    chunks: dict[tuple[int, int], bytes] = {}
    runs: list[tuple[int, int, int, int, int]] = []
    rows: list[tuple[int, int, int, int]] = []
    boxes: list[tuple[Sequence[int], Sequence[int]]] = []
    for rank in division.ranks:
        held = division.boxes(array.shape, rank)
        owned = plan_owned([Holding(0, array.dtype.itemsize, grid, division, held)], rank)
        cut = cut_of(owned, 0)
        for number in range(len(cut)):
            box = Box(tuple(cut.offsets[number].tolist()), tuple(cut.sizes[number].tolist()))
            assert any(piece.contains(box) for piece in held)
            chunks[rank, number] = array[box.slices()].tobytes()
            cell = int(cut.cells[number])
            if cut.whole[number]:
                assert box == grid.cell_box(cell)
                runs.append((0, cell, 1, rank, number))
            else:
                part = box.relative_to(grid.cell_box(cell))
                rows.append((0, cell, rank, number))
                boxes.append((part.offsets, part.sizes))
    return Saved(
        grid,
        chunks,
        sort_runs(RunTable.of(runs)),
        sort_fragments(FragmentTable.of(rows, boxes)),
        array.dtype,
    )
