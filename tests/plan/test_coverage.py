from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt
from fwstore.format.rows import (
    Boxes,
    FragmentTable,
    RunTable,
    concat_fragments,
    concat_runs,
    merge_runs,
)
from fwstore.plan.coverage import check_coverage
from fwstore.plan.grid import Grid
from support.planning import Saved, grids, layouts, save

NO_RUNS, NO_FRAGMENTS = RunTable.of(), FragmentTable.of()
LINE = Grid((8,), ((1, 2),))


@st.composite
def saved_tensors(draw: st.DrawFn) -> Saved:
    shape = draw(st.lists(st.integers(0, 7), max_size=3).map(tuple))
    array = np.zeros(shape, np.uint8)
    return save(array, draw(grids(shape)), draw(layouts(len(shape))))


def united(tensors: list[Saved], first: int) -> tuple[RunTable, FragmentTable]:
    runs = [
        RunTable(table.tensor + np.uint32(first + n), *columns(table))
        for n, table in enumerate(saved.runs for saved in tensors)
    ]
    fragments = [
        FragmentTable(
            part.tensor + np.uint32(first + n), part.cell, part.pack, part.chunk, part.boxes
        )
        for n, part in enumerate(saved.fragments for saved in tensors)
    ]
    return merge_runs(concat_runs(runs)), concat_fragments(fragments)


def columns(table: RunTable) -> Iterator[NDArray[Any]]:
    yield from (table.first_cell, table.count, table.pack, table.first_chunk)


@settings(max_examples=60)
@given(st.lists(saved_tensors(), min_size=1, max_size=3), st.integers(0, 5))
def test_what_all_ranks_saved_is_complete(tensors: list[Saved], first: int) -> None:
    runs, fragments = united(tensors, first)
    check_coverage([saved.grid for saved in tensors], runs, fragments, first_tensor=first)


@settings(max_examples=60)
@given(st.lists(saved_tensors(), min_size=1, max_size=3), st.data())
def test_a_row_less_or_twice_is_found(tensors: list[Saved], data: st.DataObject) -> None:
    runs, fragments = united(tensors, 0)
    total = len(runs) + len(fragments)
    if total == 0:
        return
    row = data.draw(st.integers(0, total - 1))
    times = data.draw(st.sampled_from([0, 2]))
    counts = np.ones(total, np.int64)
    counts[row] = times
    damaged = (
        runs.take(np.repeat(np.arange(len(runs)), counts[: len(runs)])),
        fragments.take(np.repeat(np.arange(len(fragments)), counts[len(runs) :])),
    )
    with pytest.raises(Corrupt, match=r"in no chunk|in 0 chunks|in 2 chunks|twice"):
        check_coverage([saved.grid for saved in tensors], *damaged)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(0, 0, 2, 0, 0), (0, 3, 1, 0, 2)],
            "1 cells of tensor 0 are in no chunk; the first is cell 2",
        ),
        ([(0, 1, 3, 0, 0)], "the first is cell 0, Box(offsets=(0,), sizes=(2,))"),
        ([(0, 0, 3, 0, 0)], "the first is cell 3"),
        ([(0, 0, 3, 0, 0), (0, 2, 2, 1, 0)], "cell 2 of tensor 0 is there twice"),
        ([(0, 0, 5, 0, 0)], "tensor 0 has no cells 0 to 4"),
        ([(0, 0, 4, 0, 0), (0, 2**64 - 1, 1, 0, 0)], "has no cells"),
        ([(1, 0, 4, 0, 0)], "names a tensor that is not there"),
        ([], "4 cells of tensor 0 are in no chunk"),
    ],
)
def test_flaws_of_runs_are_named(rows: list[tuple[int, int, int, int, int]], message: str) -> None:
    with pytest.raises(Corrupt, match=re.escape(message)):
        check_coverage([LINE], RunTable.of(rows), NO_FRAGMENTS)


def test_a_run_over_void_cells_is_refused() -> None:
    grid = Grid((5, 2), ((4, 2), (1, 1)))
    assert grid.real < grid.total
    whole = RunTable.of([(0, 0, grid.total, 0, 0)])
    with pytest.raises(Corrupt, match="has no cells"):
        check_coverage([grid], whole, NO_FRAGMENTS)
    real = [
        (0, number, 1, 0, number)
        for number in range(grid.total)
        if grid.cell_boxes(np.array([number], np.uint64))[1].all()
    ]
    check_coverage([grid], RunTable.of(real), NO_FRAGMENTS)
    with pytest.raises(Corrupt, match=f"the first is cell {real[-1][1]}"):
        check_coverage([grid], RunTable.of(real[:-1]), NO_FRAGMENTS)


RUN = [(0, 0, 3, 0, 0)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(3, (0,), (1,))], "Box(offsets=(1,), sizes=(1,)) of cell 3 of tensor 0 is in 0 chunks"),
        (
            [(3, (0,), (2,)), (3, (1,), (1,))],
            "Box(offsets=(1,), sizes=(1,)) of cell 3 of tensor 0 is in 2",
        ),
        ([(3, (0,), (3,))], "does not lie in its cell"),
        ([(3, (-1,), (2,))], "does not lie in its cell"),
        ([(3, (0,), (0,)), (3, (0,), (2,))], "does not lie in its cell"),
        ([(2, (0,), (2,)), (3, (0,), (2,))], "cell 2 of tensor 0 is there twice"),
        ([(4, (0,), (2,))], "has no cells 4 to 4"),
        ([(3, (0, 0), (1, 1))], "another number of dimensions"),
        ([(3, (), ())], "another number of dimensions"),
    ],
)
def test_flaws_of_fragments_are_named(
    parts: list[tuple[int, tuple[int, ...], tuple[int, ...]]], message: str
) -> None:
    table = FragmentTable.of(
        [(0, cell, 1, number) for number, (cell, _, _) in enumerate(parts)],
        [(offsets, sizes) for _, offsets, sizes in parts],
    )
    with pytest.raises(Corrupt, match=re.escape(message)):
        check_coverage([LINE], RunTable.of(RUN), table)


def test_fragments_out_of_order_are_refused() -> None:
    table = FragmentTable.of([(0, 3, 0, 0), (0, 2, 0, 1)], [((0,), (2,)), ((0,), (2,))])
    with pytest.raises(Corrupt, match="not sorted"):
        check_coverage([LINE], RunTable.of([(0, 0, 2, 0, 0)]), table)


def test_tied_and_empty_tensors_have_no_rows() -> None:
    empty = Grid((0, 3), ((1, 1), (1, 3)))
    check_coverage([None, empty, LINE], RunTable.of([(2, 0, 4, 0, 0)]), NO_FRAGMENTS)
    with pytest.raises(Corrupt, match="has no cells"):
        check_coverage([None], RunTable.of([(0, 0, 1, 0, 0)]), NO_FRAGMENTS)


def test_messages_use_the_names_of_the_caller() -> None:
    with pytest.raises(Corrupt, match="layers/12"):
        check_coverage([LINE], NO_RUNS, NO_FRAGMENTS, first_tensor=12, name=lambda n: f"layers/{n}")


def test_grids_too_large_to_number_are_refused() -> None:
    huge = Grid((1 << 61,), ((1, 1),))
    with pytest.raises(Corrupt, match="more cells"):
        check_coverage([huge] * 4, NO_RUNS, NO_FRAGMENTS)


def test_many_small_fragments_of_many_cells() -> None:
    grid = Grid((64, 96), ((1, 16), (1, 24)))
    cells = np.repeat(np.arange(grid.total), 16 * 24)
    rows, columns_ = np.divmod(np.arange(16 * 24), 24)
    offsets = np.tile(np.stack([rows, columns_], axis=1), (grid.total, 1))
    count = len(cells)
    table = FragmentTable(
        np.zeros(count, np.uint32),
        cells.astype(np.uint64),
        np.zeros(count, np.uint32),
        np.arange(count, dtype=np.uint32),
        Boxes(np.arange(count + 1) * 2, offsets.reshape(-1), np.ones(2 * count, np.int64)),
    )
    check_coverage([grid], NO_RUNS, table)
    with pytest.raises(Corrupt, match="of cell 5 of tensor 0 is in 0 chunks"):
        check_coverage([grid], NO_RUNS, table.take(np.delete(np.arange(count), 5 * 384 + 77)))
