from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import InvalidInput
from fwstore.plan.coalesce import Request, plan_coalesce

ranges = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60)), max_size=40)


@given(ranges, st.integers(0, 20), st.integers(1, 100))
def test_every_range_lies_in_one_bounded_request(
    wanted: list[tuple[int, int]], gap: int, limit: int
) -> None:
    requests = plan_coalesce(wanted, gap_bytes=gap, request_bytes=limit)
    served = sorted(index for request in requests for index in request.indices)
    assert served == list(range(len(wanted)))
    assert [request.offset for request in requests] == sorted(r.offset for r in requests)
    for request in requests:
        inside = sorted(wanted[index] for index in request.indices)
        assert request.offset == inside[0][0]
        assert request.offset + request.length == max(start + size for start, size in inside)
        assert request.length <= limit or len(request.indices) == 1
        for index in request.indices[1:]:
            # What an overlapping range covers is no gap, be it in another request.
            start = wanted[index][0]
            others = wanted[:index] + wanted[index + 1 :]
            assert max(s + size for s, size in others if s <= start) >= start - gap


def test_neighbours_within_the_gap_share_a_request() -> None:
    requests = plan_coalesce([(100, 10), (0, 10), (14, 10)], gap_bytes=4, request_bytes=1000)
    assert requests == [Request(0, 24, (1, 2)), Request(100, 10, (0,))]


def test_requests_end_before_they_grow_too_large() -> None:
    wanted = [(10 * number, 10) for number in range(7)]
    requests = plan_coalesce(wanted, gap_bytes=0, request_bytes=30)
    assert [(r.offset, r.length) for r in requests] == [(0, 30), (30, 30), (60, 10)]


def test_a_range_larger_than_a_request_is_read_at_once() -> None:
    assert plan_coalesce([(5, 900)], gap_bytes=0, request_bytes=10) == [Request(5, 900, (0,))]


def test_no_ranges_need_no_request() -> None:
    assert plan_coalesce([], gap_bytes=1, request_bytes=1) == []


def test_an_array_of_ranges_will_do() -> None:
    table = np.array([[0, 4], [4, 4]])
    assert plan_coalesce(table, gap_bytes=0, request_bytes=8) == [Request(0, 8, (0, 1))]


@pytest.mark.parametrize("wanted", [(-1, 4), (4, -1), (2**63 - 2, 4)])
def test_impossible_ranges_are_refused(wanted: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput):
        plan_coalesce([wanted], gap_bytes=0, request_bytes=8)
