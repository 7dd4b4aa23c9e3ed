from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.base.errors import InvalidInput
from fwstore.base.units import KIB, MIB
from fwstore.format.tensor import CELL_BYTES_MAX
from fwstore.plan.box import Box
from fwstore.plan.grid import Grid, grid_of_layout, make_grid
from fwstore.plan.layout import Split
from support.planning import grids, layout

shapes = st.lists(st.integers(1, 8), max_size=3).map(tuple)


def box_of(offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> Box:
    return Box(tuple(offsets.tolist()), tuple(sizes.tolist()))


def design_rule(
    shape: tuple[int, ...], itemsize: int, blocks: tuple[int, ...], local: tuple[int, ...]
) -> list[tuple[int, int]]:
    """The rule as the format states it, word for word."""
    rows = list(local)
    low, high = 256 * KIB, 4 * MIB
    for i, d in enumerate(local):
        row = math.prod(local[i + 1 :]) * itemsize
        if row > high and i + 1 < len(local):
            rows[i] = 1
            continue
        if d * row > low:
            m = d // (d & -d)
            r = m if m * row <= high else 1
            while r * row < low:
                r *= 2
            rows[i] = min(r, d)
        break
    return list(zip(blocks, rows, strict=True))


@given(st.data())
def test_every_element_lies_in_one_cell(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    grid = data.draw(grids(shape))
    offsets, sizes = grid.cell_boxes(np.arange(grid.total, dtype=np.uint64))
    times = np.zeros(shape, int)
    real = 0
    for number in range(grid.total):
        if sizes[number].all():
            box = box_of(offsets[number], sizes[number])
            assert grid.cell_box(number) == box
            times[box.slices()] += 1
            real += 1
        else:
            with pytest.raises(InvalidInput):
                grid.cell_box(number)
    assert (times == 1).all()
    assert grid.real == real
    assert grid.real == math.prod(grid.real_along)


@given(st.data())
def test_a_cut_is_the_cells_that_meet_the_box(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    grid = data.draw(grids(shape))
    offsets = tuple(data.draw(st.integers(0, size)) for size in shape)
    sizes = tuple(
        data.draw(st.integers(0, size - first)) for size, first in zip(shape, offsets, strict=True)
    )
    box = Box(offsets, sizes)
    expected = []
    for number in range(grid.total):
        try:
            cell = grid.cell_box(number)
        except InvalidInput:
            continue
        chunk = cell.intersect(box)
        if chunk is not None:
            expected.append((number, chunk, chunk == cell))
    cut = grid.cut(box)
    found = [
        (int(cell), box_of(first, extent), bool(whole))
        for cell, first, extent, whole in zip(
            cut.cells, cut.offsets, cut.sizes, cut.whole, strict=True
        )
    ]
    assert found == expected
    assert grid.cells_of_box(box).tolist() == [number for number, _, _ in expected]


@given(st.data())
def test_real_cells_are_counted_without_visiting_them(data: st.DataObject) -> None:
    grid = data.draw(grids(data.draw(shapes)))
    numbers = np.arange(grid.total + 2, dtype=np.uint64)
    _, sizes = grid.cell_boxes(numbers[: grid.total])
    real = np.concatenate([[0], np.cumsum(sizes.all(axis=1)), [grid.real]])
    assert grid.real_before(numbers).tolist() == real.tolist()


def test_the_cells_of_a_block_are_consecutive() -> None:
    grid = Grid((8, 12), ((2, 2), (3, 4)))
    assert grid.cells_of_block == (2, 1)
    assert grid.cells_of_box(Box((0, 4), (4, 4))).tolist() == [2, 3]
    assert grid.cells_of_box(Box((4, 0), (4, 4))).tolist() == [6, 7]


def test_cells_restart_in_every_block() -> None:
    grid = Grid((10,), ((2, 3),))
    boxes = [grid.cell_box(number) for number in range(4)]
    assert boxes == [Box((0,), (3,)), Box((3,), (2,)), Box((5,), (3,)), Box((8,), (2,))]


def test_a_scalar_is_one_cell_and_an_empty_tensor_none() -> None:
    scalar = make_grid((), 4, (), ())
    assert (scalar.total, scalar.real) == (1, 1)
    assert scalar.cell_box(0) == Box((), ())
    assert scalar.cut(Box((), ())).cells.tolist() == [0]
    for shape in ((0,), (0, 5), (5, 0), (3, 0, 2)):
        empty = grid_of_layout(shape, 4, None)
        assert (empty.total, empty.real) == (0, 0)
        assert len(empty.cut(Box.whole(shape))) == 0
        assert all(min(pair) >= 1 for pair in empty.cells)
        assert empty.real_before(np.array([0], np.uint64)).tolist() == [0]


@given(
    st.lists(st.integers(1, 1 << 20), min_size=1, max_size=4).map(tuple),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.data(),
)
def test_the_rule_of_the_format(shape: tuple[int, ...], itemsize: int, data: st.DataObject) -> None:
    blocks = tuple(data.draw(st.sampled_from([1, 2, 3, 8])) for _ in shape)
    shards = tuple(data.draw(st.sampled_from([1, 2, 7, 64, 1000])) for _ in shape)
    blocks = tuple(min(one, size) for one, size in zip(blocks, shape, strict=True))
    local = tuple(
        math.ceil(math.ceil(size / block) / shard)
        for size, block, shard in zip(shape, blocks, shards, strict=True)
    )
    grid = make_grid(shape, itemsize, blocks, local)
    assert list(grid.cells) == design_rule(shape, itemsize, blocks, local)
    assert math.prod(rows for _, rows in grid.cells) * itemsize <= CELL_BYTES_MAX


def test_outer_splits_become_blocks_and_inner_ones_shards() -> None:
    split = layout((4, Split(0)), (8, Split(1, outer=True)))
    assert grid_of_layout((8192, 8192), 2, split) == make_grid(
        (8192, 8192), 2, (1, 8), (2048, 1024)
    )
    strided = layout((4, Split(0, factor=8)), (8, Split(0, outer=True)))
    assert grid_of_layout((8192, 512), 2, strided) == make_grid((8192, 512), 2, (8, 1), (256, 512))


def test_more_parts_than_elements_are_no_more_blocks_than_elements() -> None:
    grid = grid_of_layout((3, 4), 4, layout((8, Split(0, outer=True))))
    assert grid.cells[0] == (3, 1)


@pytest.mark.parametrize(
    ("shape", "cells"), [((4,), ()), ((4,), ((0, 1),)), ((4,), ((1, 0),)), ((), ((1, 1),))]
)
def test_impossible_grids_are_refused(
    shape: tuple[int, ...], cells: tuple[tuple[int, int], ...]
) -> None:
    with pytest.raises(InvalidInput):
        Grid(shape, cells)


@pytest.mark.parametrize("box", [Box((0,), (5,)), Box((-1,), (2,)), Box((0, 0), (1, 1))])
def test_boxes_outside_the_tensor_are_refused(box: Box) -> None:
    with pytest.raises(InvalidInput):
        Grid((4,), ((1, 2),)).cut(box)
