"""Flat cells are those whose bytes, in the order of their numbers, are the bytes of the tensor."""

from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fwstore.plan.box import Box
from fwstore.plan.flat import flat_cells
from fwstore.plan.grid import Grid
from support.planning import grids

shapes = st.lists(st.integers(0, 6), max_size=3).map(tuple)


def elements_by_cell(grid: Grid) -> list[list[int]]:
    """Return the flat numbers of the elements of every cell that is not void."""
    tensor = np.arange(int(np.prod(grid.shape))).reshape(grid.shape)
    offsets, sizes = grid.cell_boxes(np.arange(grid.total, dtype=np.uint64))
    boxes = [Box(tuple(o), tuple(s)) for o, s in zip(offsets.tolist(), sizes.tolist(), strict=True)]
    return [tensor[box.slices()].reshape(-1).tolist() for box in boxes if box.volume]


@given(st.data())
def test_flat_cells_lie_one_after_the_other(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    grid = data.draw(grids(shape))
    cells = flat_cells(shape, grid.cells)
    in_order = [*chain(*elements_by_cell(grid))] == list(range(int(np.prod(shape))))
    if cells is None:
        # Cells along two dimensions may be in order too, where one dimension has single rows.
        assert 0 in shape or not in_order or sum(real > 1 for real in grid.real_along) > 1
    else:
        assert in_order
        sizes = (np.diff(cells.bounds) * cells.row_elements).tolist()
        assert sizes == [len(found) for found in elements_by_cell(grid)]
        assert cells.bytes_before(4) == [4 * sum(sizes[:cell]) for cell in range(len(sizes) + 1)]


@given(st.data())
def test_within_names_the_whole_cells_of_a_box_that_is_flat(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    grid = data.draw(grids(shape))
    ranges = [data.draw(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted)) for n in shape]
    box = Box(tuple(low for low, _ in ranges), tuple(high - low for low, high in ranges))
    cells = flat_cells(shape, grid.cells)
    inside = None if cells is None else cells.within(box)
    if inside is None:
        return
    wanted = np.arange(int(np.prod(shape))).reshape(shape)[box.slices()].reshape(-1)
    assert wanted.tolist() == list(range(wanted[0], wanted[-1] + 1))
    whole = [
        n for n, held in enumerate(elements_by_cell(grid)) if set(held) <= set(wanted.tolist())
    ]
    assert whole == list(range(*inside))


def test_a_whole_tensor_of_one_cell_is_flat() -> None:
    for shape in [(), (1,), (5,), (1, 3), (2, 3)]:
        cells = flat_cells(shape, tuple((1, size) for size in shape))
        assert cells is not None
        assert cells.within(Box.whole(shape)) == (0, 1)


def test_a_box_outside_the_tensor_has_no_cells() -> None:
    cells = flat_cells((4, 2), ((1, 1), (1, 2)))
    assert cells is not None
    assert cells.within(Box((1, 0), (4, 2))) is None
    assert cells.within(Box((3, 0), (2, 2))) is None
