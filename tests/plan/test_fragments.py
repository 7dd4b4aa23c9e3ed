from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fragments as table
from benchmarks.fragments import World, figures
from fwstore.plan.fragments import edges_along, fragmentation
from fwstore.plan.grid import Grid, grid_of_layout
from fwstore.plan.layout import Layout, Split, held_intervals
from fwstore.plan.regrid import plan_grid
from support.planning import grids, layout, layouts, save

CONSTANT = [(model, world) for model, worlds in table.WORLDS.items() for world in worlds]


@settings(max_examples=80)
@given(st.data())
def test_figures_are_those_of_the_chunks_that_all_ranks_write(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 7), max_size=3).map(tuple))
    division = data.draw(layouts(len(shape)))
    grid = data.draw(grids(shape))
    saved = save(np.zeros(shape, np.uint8), grid, division)
    result = fragmentation(grid, division)
    assert result.elements == int(np.prod(shape))
    assert result.chunks == len(saved.chunks)
    parts = saved.fragments.boxes
    volumes = [math.prod(parts.row(row)[1]) for row in range(len(parts))]
    assert result.fragment_elements == sum(volumes)


@given(
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=3).map(tuple),
)
def test_edges_are_where_the_owner_changes(size: int, splits: tuple[tuple[int, int], ...]) -> None:
    owner = np.full(size, -1)
    for number in range(int(np.prod([count for count, _ in splits], dtype=int))):
        cuts, rest = [], number
        for count, factor in reversed(splits):
            rest, here = divmod(rest, count)
            cuts.append((count, here, factor))
        for low, high in held_intervals(size, tuple(reversed(cuts))):
            owner[low:high] = number
    assert edges_along(size, splits).tolist() == (np.flatnonzero(np.diff(owner)) + 1).tolist()


def test_an_empty_tensor_has_no_share() -> None:
    grid = grid_of_layout((0, 4), 4, None)
    assert fragmentation(grid, layout((2, Split(0)))).share == 0


@pytest.mark.parametrize(("model", "world"), CONSTANT, ids=str)
def test_a_constant_layout_cuts_next_to_nothing(model: str, world: World) -> None:
    assert figures(model, world).percent <= 0.09


@pytest.mark.parametrize(
    ("model", "born", "world", "percent"),
    [
        ("Llama-3-70B", World(8), World(64), 0.01),
        ("Llama-3-70B", World(64), World(1024), 4.25),
        ("Llama-3-70B", World(64, 8), World(64, 4), 0.24),
        ("Llama-3-70B", World(64), World(48), 3.15),
        ("Llama-3-70B", World(128, 8), World(1024), 35.55),
        ("Llama-3-405B", World(128, 8), World(256, 4), 0.26),
        ("Llama-3-405B", World(128, 8), World(112, 8), 17.97),
        ("DeepSeek-V3", World(256, 1, 64), World(256, 1, 32), 0.01),
        ("DeepSeek-V3", World(128, 8, 64), World(1024, 1, 64), 1.65),
        ("Mixtral-8x22B", World(64, 1, 8), World(96, 1, 8), 2.05),
    ],
)
def test_changes_of_the_world_cut_what_the_simulation_of_the_design_says(
    model: str, born: World, world: World, percent: float
) -> None:
    assert figures(model, world, born).percent == pytest.approx(percent, abs=0.006)


def shards_hold_cells(grid: Grid, born: Layout, division: Layout) -> bool:
    """Return whether both layouts divide evenly and no new shard is smaller than a cell."""
    for axis, (size, (_, rows)) in enumerate(zip(grid.shape, grid.cells, strict=True)):
        parts = [math.prod(count for count, _ in one.splits(axis)) for one in (born, division)]
        if size % parts[0] or size % parts[1] or size // parts[1] < rows:
            return False
    return True


@pytest.mark.parametrize("model", list(table.MODELS))
def test_a_change_by_a_power_of_two_cuts_little_while_shards_hold_a_cell(model: str) -> None:
    kept = 0
    for born, world in table.changes(model):
        fragments, total = 0, 0
        for weight, (itemsize, copies) in itertools.product(table.MODELS[model], table.COPIES):
            before, after = table.layout_of(weight, born), table.layout_of(weight, world)
            grid = grid_of_layout(weight.shape, itemsize, before)
            if shards_hold_cells(grid, before, after):
                result = fragmentation(grid, after)
                fragments += result.fragment_elements * itemsize * copies * weight.count
                total += result.elements * itemsize * copies * weight.count
        kept += total > 0
        assert fragments < 0.01 * max(1, total)
    assert kept > 20


@pytest.mark.parametrize("model", list(table.MODELS))
def test_a_new_grid_mends_every_change_of_the_world(model: str) -> None:
    for born, world in table.changes(model):
        for weight in table.MODELS[model]:
            division = table.layout_of(weight, world)
            old = grid_of_layout(weight.shape, 2, table.layout_of(weight, born))
            new = plan_grid(old, 2, division, rewritten=True)
            best = grid_of_layout(weight.shape, 2, division)
            share = fragmentation(new, division).share
            assert share <= max(0.01, fragmentation(best, division).share)


def test_frozen_tensors_keep_their_grid() -> None:
    old = Grid((1000,), ((1, 64),))
    assert plan_grid(old, 4, layout((7, Split(0))), rewritten=False) is old


def test_a_grid_that_fits_is_kept() -> None:
    old = Grid((1024,), ((1, 64),))
    assert plan_grid(old, 4, layout((8, Split(0))), rewritten=True) is old


def test_without_a_layout_the_grid_is_kept() -> None:
    old = Grid((1024,), ((1, 64),))
    assert plan_grid(old, 4, None, rewritten=True) is old


def test_a_rewritten_tensor_takes_the_grid_of_its_layout() -> None:
    division = layout((7, Split(0)))
    old = grid_of_layout((7000, 512), 4, layout((8, Split(0))))
    new = plan_grid(old, 4, division, rewritten=True)
    assert new == grid_of_layout((7000, 512), 4, division)
    assert fragmentation(new, division).share == 0


def test_a_large_world_is_counted_without_visiting_its_ranks() -> None:
    ranks = tuple(range(100_000))
    division = Layout((12_500, 8), (Split(0, factor=8), Split(0, outer=True)), ranks)
    shape = (800_000, 4096)
    assert fragmentation(grid_of_layout(shape, 2, division), division).fragment_elements == 0
