from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt, InvalidInput
from fwstore.format.rows import FragmentTable, RunTable
from fwstore.plan.box import Box, flat_boxes
from fwstore.plan.coverage import check_coverage
from fwstore.plan.grid import Grid, grid_of_layout
from fwstore.plan.layout import Layout
from fwstore.plan.reshard import ChunkRead, plan_reads, rows_of_tensor
from support.planning import Saved, grids, layouts, save, world_layouts

WORLDS = (1, 2, 3, 4, 8)
NO_RUNS, NO_FRAGMENTS = RunTable.of(), FragmentTable.of()


def check_every_rank(saved: Saved, array: NDArray[Any], division: Layout) -> None:
    for rank in division.ranks:
        wanted = division.boxes(array.shape, rank)
        for box, piece in zip(wanted, saved.load(wanted), strict=True):
            assert np.array_equal(piece, array[box.slices()])


@pytest.mark.parametrize("old", WORLDS)
@pytest.mark.parametrize("shape", [(16, 8), (13, 7)], ids=["even", "uneven"])
def test_every_world_loads_what_every_world_saved(old: int, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    for division in world_layouts(old).values():
        small = Grid(
            shape, tuple((blocks, 2) for blocks, _ in grid_of_layout(shape, 2, division).cells)
        )
        saved = save(array, small, division)
        check_coverage([small], saved.runs, saved.fragments)
        for new in WORLDS:
            for other in world_layouts(new).values():
                check_every_rank(saved, array, other)


@settings(max_examples=80)
@given(st.data())
def test_any_layout_loads_what_any_other_saved(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 7), max_size=3).map(tuple))
    array = np.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape)
    saved = save(array, data.draw(grids(shape)), data.draw(layouts(len(shape))))
    check_coverage([saved.grid], saved.runs, saved.fragments)
    check_every_rank(saved, array, data.draw(layouts(len(shape))))


@given(st.data())
def test_flat_ranges_load(data: st.DataObject) -> None:
    shape = (5, 4, 3)
    array = np.arange(60, dtype=np.uint8).reshape(shape)
    saved = save(array, data.draw(grids(shape)), data.draw(layouts(3)))
    start = data.draw(st.integers(0, 60))
    stop = data.draw(st.integers(start, 60))
    pieces = saved.load(flat_boxes(shape, start, stop))
    flat = np.concatenate([np.empty(0, np.uint8), *(piece.reshape(-1) for piece in pieces)])
    assert flat.tolist() == list(range(start, stop))


def test_a_plan_is_sorted_and_repeats_for_overlapping_pieces() -> None:
    grid = Grid((8,), ((1, 2),))
    runs = RunTable.of([(0, 0, 2, 9, 4), (0, 2, 2, 3, 0)])
    wanted = [Box((1,), (5,)), Box((0,), (2,)), Box((0,), (0,))]
    table = plan_reads(grid, runs, NO_FRAGMENTS, wanted)
    assert list(table) == [
        ChunkRead(3, 0, Box((4,), (2,)), Box((4,), (2,)), 0),
        ChunkRead(9, 4, Box((0,), (2,)), Box((1,), (1,)), 0),
        ChunkRead(9, 4, Box((0,), (2,)), Box((0,), (2,)), 1),
        ChunkRead(9, 5, Box((2,), (2,)), Box((2,), (2,)), 0),
    ]
    assert table.complete.tolist() == [True, False, True, True]
    assert table.cell.tolist() == [2, 0, 0, 1]


def test_fragments_fill_what_no_run_has() -> None:
    grid = Grid((2, 4), ((1, 2), (1, 4)))
    fragments = FragmentTable.of(
        [(0, 0, 5, 0), (0, 0, 6, 0), (0, 0, 7, 0)],
        [((0, 0), (1, 4)), ((1, 0), (1, 3)), ((1, 3), (1, 1))],
    )
    table = plan_reads(grid, NO_RUNS, fragments, [Box((0, 1), (2, 2))])
    assert list(table) == [
        ChunkRead(5, 0, Box((0, 0), (1, 4)), Box((0, 1), (1, 2)), 0),
        ChunkRead(6, 0, Box((1, 0), (1, 3)), Box((1, 1), (1, 2)), 0),
    ]


def test_fragments_that_overlap_may_serve_a_box() -> None:
    grid = Grid((4,), ((1, 4),))
    fragments = FragmentTable.of([(0, 0, 0, 0), (0, 0, 1, 0)], [((0,), (3,)), ((2,), (2,))])
    assert len(plan_reads(grid, NO_RUNS, fragments, [Box((0,), (4,))])) == 2


def test_a_wanted_element_that_nobody_saved_is_named() -> None:
    grid = Grid((2, 4), ((1, 2), (1, 4)))
    fragments = FragmentTable.of([(0, 0, 5, 0), (0, 0, 6, 0)], [((0, 0), (2, 2)), ((0, 2), (1, 2))])
    with pytest.raises(Corrupt, match=r"offsets=\(1, 2\), sizes=\(1, 1\)"):
        plan_reads(grid, NO_RUNS, fragments, [Box((0, 0), (2, 3))])
    assert len(plan_reads(grid, NO_RUNS, fragments, [Box((0, 0), (1, 4))])) == 2
    with pytest.raises(Corrupt, match="no chunk holds"):
        plan_reads(grid, NO_RUNS, NO_FRAGMENTS, [Box((0, 0), (1, 1))])
    with pytest.raises(Corrupt, match="cell 1"):
        plan_reads(
            Grid((4,), ((1, 2),)), RunTable.of([(0, 0, 1, 0, 0)]), NO_FRAGMENTS, [Box((0,), (3,))]
        )


@pytest.mark.parametrize(
    "box", [((0, 0), (1, 1)), ((1,), (2,)), ((-1,), (2,)), ((0,), (0,)), ((0,), (1 << 40,))]
)
def test_fragments_outside_their_cell_are_refused(
    box: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    fragments = FragmentTable.of([(0, 0, 0, 0)], [box])
    with pytest.raises(Corrupt):
        plan_reads(Grid((4,), ((1, 2),)), NO_RUNS, fragments, [Box((0,), (2,))])


def test_a_box_outside_the_tensor_is_refused() -> None:
    with pytest.raises(InvalidInput):
        plan_reads(Grid((4,), ((1, 2),)), NO_RUNS, NO_FRAGMENTS, [Box((3,), (2,))])


def test_scalars_and_empty_tensors() -> None:
    table = plan_reads(Grid((), ()), RunTable.of([(0, 0, 1, 2, 3)]), NO_FRAGMENTS, [Box((), ())])
    assert list(table) == [ChunkRead(2, 3, Box((), ()), Box((), ()), 0)]
    empty = Grid((0, 4), ((1, 1), (1, 4)))
    assert len(plan_reads(empty, NO_RUNS, NO_FRAGMENTS, [Box.whole((0, 4))])) == 0


def test_the_rows_of_one_tensor() -> None:
    runs = RunTable.of([(0, 0, 1, 0, 0), (2, 0, 1, 0, 1), (2, 4, 1, 0, 2), (3, 0, 1, 0, 3)])
    fragments = FragmentTable.of([(1, 0, 0, 4), (2, 7, 0, 5)], [((0,), (1,)), ((1,), (2,))])
    mine, parts = rows_of_tensor(runs, fragments, 2)
    assert mine.first_chunk.tolist() == [1, 2]
    assert parts.chunk.tolist() == [5]
    assert parts.boxes.row(0) == ((1,), (2,))
    assert len(rows_of_tensor(runs, fragments, 9)[0]) == 0
