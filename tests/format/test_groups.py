"""Groups as ranges: supersets, sorted, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt
from fwstore.format.groups import GroupRange, check_ranges, group_ranges, groups_meet

groups = st.sets(st.tuples(st.integers(1, 6), st.integers(1, 30)), max_size=40)


def covers(ranges: tuple[GroupRange, ...], group: tuple[int, int]) -> bool:
    return any(one.first <= group <= one.last for one in ranges)


@given(groups, st.integers(1, 8))
def test_ranges_cover_what_they_were_made_from(wanted: set[tuple[int, int]], limit: int) -> None:
    ranges = group_ranges(wanted, limit)
    check_ranges(ranges)
    assert len(ranges) <= limit
    assert all(covers(ranges, group) for group in wanted)


@given(groups)
def test_without_the_bound_nothing_is_added(wanted: set[tuple[int, int]]) -> None:
    ranges = group_ranges(wanted, 1000)
    every = {(term, save) for term in range(1, 7) for save in range(1, 31)}
    assert {group for group in every if covers(ranges, group)} == wanted


@given(groups, groups, st.integers(1, 8))
def test_meeting_is_never_missed(
    left: set[tuple[int, int]], right: set[tuple[int, int]], limit: int
) -> None:
    meet = groups_meet(group_ranges(left, limit), group_ranges(right, limit))
    assert meet or not left & right
    assert groups_meet(group_ranges(left, 1000), group_ranges(right, 1000)) == bool(left & right)


def test_nearest_are_merged_first() -> None:
    ranges = group_ranges([(1, 1), (1, 3), (1, 9), (4, 1)], 3)
    assert ranges == (
        GroupRange((1, 1), (1, 3)),
        GroupRange((1, 9), (1, 9)),
        GroupRange((4, 1), (4, 1)),
    )


@pytest.mark.parametrize(
    "ranges",
    [
        (GroupRange((1, 2), (1, 1)),),
        (GroupRange((1, 1), (1, 2)), GroupRange((1, 3), (1, 4))),
        (GroupRange((2, 1), (2, 1)), GroupRange((1, 1), (1, 1))),
        tuple(GroupRange((1, 2 * n), (1, 2 * n)) for n in range(65)),
    ],
)
def test_ranges_of_another_form_are_corrupt(ranges: tuple[GroupRange, ...]) -> None:
    with pytest.raises(Corrupt):
        check_ranges(ranges)
