from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.base.errors import InvalidInput
from fwstore.plan.box import Box
from fwstore.plan.grid import Grid, grid_of_layout
from fwstore.plan.layout import Layout, Split
from fwstore.plan.owner import Holding, Owned, plan_owned
from support.planning import cut_of, grids, layout, layouts, splits

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def holding(
    number: int, grid: Grid, division: Layout | None, rank: int, itemsize: int = 4
) -> Holding:
    boxes = (Box.whole(grid.shape),) if division is None else division.boxes(grid.shape, rank)
    return Holding(number, itemsize, grid, division, boxes)


def count_elements(owned: Owned, number: int, times: NDArray[np.int64]) -> None:
    cut = cut_of(owned, number)
    for offsets, sizes in zip(cut.offsets.tolist(), cut.sizes.tolist(), strict=True):
        times[Box(tuple(offsets), tuple(sizes)).slices()] += 1


@settings(max_examples=60)
@given(st.data())
def test_the_ranks_write_every_element_once(data: st.DataObject) -> None:
    mesh = data.draw(layouts(0)).mesh
    ranks = tuple(range(int(np.prod(mesh))))
    tensors = []
    for _ in range(data.draw(st.integers(1, 4))):
        shape = data.draw(shapes)
        split = splits(len(shape))
        division = Layout(mesh, tuple(data.draw(split) for _ in mesh), ranks)
        tensors.append((data.draw(grids(shape)), division))
    times = [np.zeros(grid.shape, int) for grid, _ in tensors]
    for rank in ranks:
        holdings = [holding(3 * n, *tensor, rank) for n, tensor in enumerate(tensors)]
        owned = plan_owned(holdings, rank)
        for number in range(len(tensors)):
            count_elements(owned, 3 * number, times[number])
        keys = list(zip(owned.tensor.tolist(), owned.cell.tolist(), strict=True))
        assert keys == sorted(keys)
        assert owned.total_bytes == sum(
            4 * int(np.prod(owned.boxes.row(row)[1])) for row in range(len(owned))
        )
    assert all((one == 1).all() for one in times)


@given(st.data())
def test_runs_and_fragments_are_the_chunks(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 9), max_size=2).map(tuple))
    division = data.draw(layouts(len(shape)))
    grid = data.draw(grids(shape))
    owned = plan_owned([holding(2, grid, division, 0), holding(1, grid, division, 0)], 0)
    runs, fragments = owned.runs(), owned.fragments()
    cells = [
        (tensor, first + step)
        for tensor, first, count in zip(
            runs.tensor.tolist(), runs.first_cell.tolist(), runs.count.tolist(), strict=True
        )
        for step in range(count)
    ]
    whole = owned.whole
    assert cells == list(zip(owned.tensor[whole].tolist(), owned.cell[whole].tolist(), strict=True))
    for (tensor, first, count), (other, following) in zip(
        zip(runs.tensor, runs.first_cell, runs.count, strict=True),
        zip(runs.tensor[1:], runs.first_cell[1:], strict=False),
        strict=False,
    ):
        assert (tensor, first + count) != (other, following)
    assert fragments.cell.tolist() == owned.cell[~whole].tolist()
    for row in range(len(fragments.cell)):
        part = Box(*fragments.boxes.row(row))
        cell = grid.cell_box(int(fragments.cell[row]))
        assert cell.contains(part)
        assert part != cell
    assert owned.fragment_bytes == owned.total_bytes - int(owned.size_bytes[whole].sum())


@pytest.mark.parametrize("world", [2, 3, 8, 64])
def test_replicated_bytes_are_shared_evenly(world: int) -> None:
    division = Layout.replicated(tuple(range(world)))
    shapes = [(4096, 4096), (4096,), (50257, 768), (28672, 1024), (1,), ()]
    tensors = [grid_of_layout(shape, 4, division) for shape in shapes]
    sizes = [
        plan_owned(
            [holding(n, grid, division, rank) for n, grid in enumerate(tensors)], rank
        ).total_bytes
        for rank in range(world)
    ]
    assert sum(sizes) == 4 * sum(int(np.prod(shape)) for shape in shapes)
    assert max(sizes) <= 1.2 * sum(sizes) / world


def test_one_large_tensor_is_split_over_its_replicas() -> None:
    division = layout((4, None), (2, Split(0)))
    grid = grid_of_layout((4096, 1024), 4, division)
    sizes = [plan_owned([holding(0, grid, division, r)], r).total_bytes for r in range(8)]
    assert sizes == [2 << 20] * 8


def test_a_fragment_can_be_the_share_of_a_replica() -> None:
    division = layout((2, None), (2, Split(0)))
    grid = Grid((6,), ((1, 2),))
    owned = [plan_owned([holding(0, grid, division, rank)], rank) for rank in range(4)]
    assert sum(one.total_bytes for one in owned) == 24
    assert sum(one.fragment_bytes for one in owned) == 8
    assert all(one.total_bytes for one in owned)


def test_the_share_does_not_depend_on_tensors_of_others() -> None:
    shared = layout((2, None))
    grid = Grid((8,), ((1, 2),))
    alone = plan_owned([holding(5, grid, shared, 1)], 1)
    private = [holding(n, grid, None, 1) for n in (1, 9)]
    beside = plan_owned([*private, holding(5, grid, shared, 1)], 1)
    cells = {number: cut.cells.tolist() for number, cut in beside.by_tensor()}
    assert dict(alone.by_tensor())[5].cells.tolist() == cells[5] == [2, 3]
    assert cells[1] == [0, 1, 2, 3]


def test_layouts_with_the_same_replicas_share_together() -> None:
    ranks = tuple(range(4))
    rows = Layout((2, 2), (None, Split(0)), ranks)
    columns = Layout((2, 2), (None, Split(1)), tuple(range(4)))
    grid = Grid((4, 4), ((1, 4), (1, 4)))
    counts: Counter[int] = Counter()
    for rank in ranks:
        owned = plan_owned([holding(0, grid, rows, rank), holding(1, grid, columns, rank)], rank)
        counts[rank] = owned.total_bytes
    assert set(counts.values()) == {32}


def test_without_a_layout_a_rank_writes_all_it_holds() -> None:
    grid = Grid((6,), ((1, 2),))
    boxes = (Box((0,), (1,)), Box((1,), (3,)))
    owned = plan_owned([Holding(0, 2, grid, None, boxes)], 7)
    ((_, cut),) = owned.by_tensor()
    assert cut.cells.tolist() == [0, 0, 1]
    assert cut.whole.tolist() == [False, False, True]
    assert cut.offsets.reshape(-1).tolist() == [0, 1, 2]


def test_nothing_held_is_nothing_owned() -> None:
    assert len(plan_owned([], 0)) == 0
    grid = Grid((0, 3), ((1, 1), (1, 3)))
    owned = plan_owned([Holding(0, 4, grid, None, (Box.whole((0, 3)),))], 0)
    assert len(owned) == len(owned.runs().tensor) == len(owned.fragments().tensor) == 0
    assert not list(owned.by_tensor())


def test_a_tensor_given_twice_is_refused() -> None:
    one = holding(3, Grid((4,), ((1, 2),)), None, 0)
    with pytest.raises(InvalidInput, match="twice"):
        plan_owned([one, one], 0)


def test_a_rank_outside_the_layout_that_holds_something_is_refused() -> None:
    grid = Grid((4,), ((1, 2),))
    with pytest.raises(InvalidInput, match="not in its layout"):
        plan_owned([Holding(0, 4, grid, layout((2, None)), (Box.whole((4,)),))], 5)


@pytest.mark.slow
def test_a_model_of_many_tensors_in_a_large_world() -> None:
    ranks = tuple(range(100_000))
    split = Layout((3125, 4, 8), (Split(0), None, Split(0, outer=True)), ranks)
    whole = Layout((3125, 4, 8), (None, None, None), ranks)
    shapes = [(2048, 7168), (7168,), (16384, 7168), (256, 7168)]
    forms = []
    for shape in shapes:
        division = whole if len(shape) == 1 else split
        forms.append((grid_of_layout(shape, 2, division), division, division.boxes(shape, 4321)))
    holdings = [Holding(n, 2, *forms[n % len(forms)]) for n in range(184_000)]
    owned = plan_owned(holdings, 4321)
    replicas = split.replicas(4321)
    assert len(replicas) == 4
    held = sum(2 * box.volume for one in holdings if one.layout is split for box in one.boxes)
    written = [
        plan_owned(holdings[::4] + holdings[2::4] + holdings[3::4], rank).total_bytes
        for rank in replicas
    ]
    assert sum(written) == held
    assert owned.total_bytes - written[replicas.index(4321)] <= 14336 * 46_000 // 100_000 + 14336
