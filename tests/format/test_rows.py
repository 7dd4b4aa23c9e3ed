"""Run and fragment tables against plain Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, InvalidInput
from fwstore.format.columnar import Table, Values, encode_table, parse_table
from fwstore.format.rows import (
    FRAGMENT_SCHEMA,
    RUN_SCHEMA,
    Boxes,
    FragmentTable,
    RunTable,
    concat_fragments,
    concat_runs,
    fragment_columns,
    merge_runs,
    parse_boxes,
    parse_fragments,
    parse_runs,
    run_columns,
    sort_fragments,
    sort_runs,
)

Run = tuple[int, int, int, int, int]
Part = tuple[tuple[int, int, int, int], tuple[tuple[int, ...], tuple[int, ...]]]


@st.composite
def disjoint_runs(draw: st.DrawFn) -> list[Run]:
    """Sorted runs: (tensor, first cell, count, pack, first chunk)."""
    runs: list[Run] = []
    for tensor in sorted(draw(st.sets(st.integers(0, 2**32 - 1) | st.integers(0, 5), max_size=4))):
        cell = draw(st.integers(0, 2**40))
        for _ in range(draw(st.integers(1, 5))):
            cell += draw(st.sampled_from([0, 0, 1, 1000]))
            count = draw(st.integers(1, 9))
            runs.append((tensor, cell, count, draw(st.integers(0, 3)), draw(st.integers(0, 40))))
            cell += count
    return runs


@st.composite
def parts(draw: st.DrawFn, ranks: tuple[int, ...] = (0, 1, 3)) -> list[Part]:
    found = []
    numbers = st.tuples(
        st.integers(0, len(ranks) - 1), st.integers(0, 9), st.integers(0, 2), st.integers(0, 99)
    )
    for row in draw(st.lists(numbers, max_size=12, unique=True)):
        rank = ranks[row[0]]
        sides = st.tuples(*[st.integers(0, 2**40)] * rank)
        sizes = st.tuples(*[st.integers(1, 2**20)] * rank)
        found.append((row, (draw(sides), draw(sizes))))
    return found


def run_rows(table: RunTable) -> list[Run]:
    columns = (table.tensor, table.first_cell, table.count, table.pack, table.first_chunk)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def part_rows(table: FragmentTable) -> list[Part]:
    columns = (table.tensor, table.cell, table.pack, table.chunk)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [(row, table.boxes.row(number)) for number, row in enumerate(rows)]


def fragments(rows: list[Part]) -> FragmentTable:
    return FragmentTable.of([row for row, _ in rows], [box for _, box in rows])


@given(disjoint_runs())
def test_runs_come_back(rows: list[Run]) -> None:
    stored = encode_table("test", RUN_SCHEMA, run_columns(RunTable.of(rows)))
    assert run_rows(parse_runs(parse_table("test", RUN_SCHEMA, stored))) == rows


@given(parts())
def test_fragments_come_back(rows: list[Part]) -> None:
    rows.sort()
    stored = encode_table("test", FRAGMENT_SCHEMA, fragment_columns(fragments(rows)))
    table = parse_table("test", FRAGMENT_SCHEMA, stored)
    assert part_rows(parse_fragments(table, np.array([0, 1, 3], np.int64), 0)) == rows


@given(st.lists(disjoint_runs(), max_size=3), st.randoms())
def test_runs_are_joined_and_sorted(tables: list[list[Run]], random: object) -> None:
    joined = concat_runs([RunTable.of(rows) for rows in tables])
    flat = [row for rows in tables for row in rows]
    assert run_rows(joined) == flat
    assert run_rows(sort_runs(joined)) == sorted(flat, key=lambda row: row[:2])
    assert joined.first_cell.dtype == np.uint64
    assert joined.pack.dtype == np.uint32


@given(st.lists(parts(), max_size=3))
def test_fragments_are_joined_and_sorted(tables: list[list[Part]]) -> None:
    joined = concat_fragments([fragments(rows) for rows in tables])
    flat = [row for rows in tables for row in rows]
    assert part_rows(joined) == flat
    assert part_rows(sort_fragments(joined)) == sorted(flat, key=lambda row: row[0])


@given(disjoint_runs())
def test_merging_adjacent_runs_keeps_every_cell(rows: list[Run]) -> None:
    def cells(runs: list[Run]) -> list[tuple[int, int, int, int]]:
        return [
            (t, cell + i, pack, chunk + i)
            for t, cell, count, pack, chunk in runs
            for i in range(count)
        ]

    merged = run_rows(merge_runs(RunTable.of(rows)))
    assert cells(merged) == cells(rows)
    for left, right in pairwise(merged):
        continues = left[0] == right[0] and left[3] == right[3]
        assert not (continues and left[1] + left[2] == right[1] and left[4] + left[2] == right[4])


def test_a_long_row_of_single_cells_becomes_one_run() -> None:
    rows = [(7, 100 + number, 1, 2, 5 + number) for number in range(1000)]
    assert run_rows(merge_runs(RunTable.of(rows))) == [(7, 100, 1000, 2, 5)]


@given(parts())
def test_boxes_are_taken_by_row(rows: list[Part]) -> None:
    table = fragments(rows)
    order = np.arange(len(rows))[::-1]
    assert part_rows(table.take(order)) == rows[::-1]
    keep = np.arange(len(rows)) % 2 == 0
    assert part_rows(table.take(keep)) == rows[::2]


def test_volumes_are_products() -> None:
    boxes = Boxes.of([((), ()), ((0, 0), (2, 3)), ((), ()), ((1,), (5,)), ((), ())])
    assert boxes.volumes().tolist() == [1, 6, 1, 5, 1]
    assert Boxes.of([((), ())]).volumes().tolist() == [1]
    assert Boxes.of([]).volumes().tolist() == []


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 0, 1, 0, 0), (0, 0, 1, 0, 0)],
        [(0, 5, 1, 0, 0), (0, 4, 1, 0, 0)],
        [(0, 0, 3, 0, 0), (0, 2, 1, 0, 9)],
        [(0, 0, 0, 0, 0)],
        [(0, 2**64 - 1, 1, 0, 0)],
        [(0, 0, 2**33, 0, 0)],
        [(0, 0, 2, 0, 2**32 - 1)],
    ],
)
def test_impossible_runs_are_refused(rows: list[Run]) -> None:
    with pytest.raises(InvalidInput):
        run_columns(RunTable.of(rows))
    table = RunTable.of(rows)
    columns: dict[str, Values] = {
        "run_tensor": table.tensor,
        "run_gap": table.first_cell,
        "run_count": table.count,
        "run_pack": table.pack,
        "run_chunk": table.first_chunk,
    }
    if rows[0][1] != 5 and len(rows) != 2:
        with pytest.raises(Corrupt):
            parse_runs(Table(columns, b""))


def test_gaps_that_wrap_are_corrupt() -> None:
    columns: dict[str, Values] = dict(run_columns(RunTable.of([(0, 5, 1, 0, 0), (0, 6, 1, 0, 9)])))
    columns["run_gap"] = np.array([5, 2**64 - 3], np.uint64)
    with pytest.raises(Corrupt, match="overlap"):
        parse_runs(Table(columns, b""))
    columns["run_gap"] = np.array([5], np.uint64)
    with pytest.raises(Corrupt, match="lengths"):
        parse_runs(Table(columns, b""))


def test_impossible_fragments_are_refused() -> None:
    with pytest.raises(InvalidInput):
        fragment_columns(FragmentTable.of([(0, 1, 0, 0), (0, 1, 0, 0)], [((0,), (1,))] * 2))
    columns = fragment_columns(FragmentTable.of([(4, 1, 0, 0)], [((0,), (1,))]))
    parse_fragments(Table(columns, b""), np.array([1], np.int64), 4)
    for first, ranks in ((4, [2]), (3, [1]), (5, [1]), (4, [])):
        with pytest.raises(Corrupt):
            parse_fragments(Table(columns, b""), np.array(ranks, np.int64), first)
    with pytest.raises(InvalidInput, match="differ in number"):
        Boxes.of([((0, 0), (1,))])


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (2**63 - 1, 1), (0, -1)])
def test_impossible_boxes_are_corrupt(offset: int, size: int) -> None:
    with pytest.raises(Corrupt):
        parse_boxes(np.array([1]), np.array([offset], np.int64), np.array([size], np.int64))


def test_runs_are_sorted_by_cells_that_fill_all_bits() -> None:
    far = (1 << 64) - 2
    table = RunTable.of(
        [(1, far, 1, 0, 0), (0, far, 1, 0, 1), (1, 3, 1, 0, 2), (0, 1 << 33, 1, 0, 3)]
    )
    assert sort_runs(table).first_chunk.tolist() == [3, 1, 2, 0]
    near = RunTable.of([(1, 7, 1, 0, 0), (0, (1 << 32) - 1, 1, 0, 1), (1, 3, 1, 0, 2)])
    assert sort_runs(near).first_chunk.tolist() == [1, 2, 0]
