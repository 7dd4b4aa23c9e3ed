"""Dividing a capacity: all of it, fairly, whatever is wanted."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.plan.shares import share_out

_WANTS = st.one_of(st.floats(0, 1e12), st.just(math.inf))


@given(st.floats(1, 1e12), st.dictionaries(st.text(max_size=2), _WANTS, min_size=1, max_size=9))
def test_shares_are_the_capacity_and_fair(capacity: float, wanted: dict[str, float]) -> None:
    shares = share_out(capacity, wanted)
    assert shares.keys() == wanted.keys()
    assert sum(shares.values()) == pytest.approx(capacity)
    equal = capacity / len(wanted)
    for name, share in shares.items():
        assert share >= min(wanted[name], equal) * (1 - 1e-9)
    hungry = [share for name, share in shares.items() if wanted[name] == math.inf]
    assert max(hungry, default=0) - min(hungry, default=0) <= capacity * 1e-9


@given(
    st.floats(1, 1e12),
    st.dictionaries(st.text(max_size=2), _WANTS, min_size=1, max_size=9),
    st.data(),
)
def test_who_is_urgent_comes_first_and_a_tenth_is_left(
    capacity: float, wanted: dict[str, float], data: st.DataObject
) -> None:
    urgent = data.draw(st.sets(st.sampled_from(sorted(wanted))))
    shares = share_out(capacity, wanted, urgent)
    assert shares.keys() == wanted.keys()
    assert sum(shares.values()) == pytest.approx(capacity)
    first = sum(shares[name] for name in urgent)
    needed = sum(wanted[name] for name in urgent)
    assert first >= min(needed, 0.9 * capacity) * (1 - 1e-9)
    if len(urgent) < len(wanted):
        assert capacity - first >= 0.1 * capacity * (1 - 1e-9)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"a": math.inf}, {"a": 100}),
        ({"a": math.inf, "b": math.inf}, {"a": 50, "b": 50}),
        ({"a": math.inf, "b": 10}, {"a": 90, "b": 10}),
        ({"a": math.inf, "b": 10, "c": math.inf}, {"a": 45, "b": 10, "c": 45}),
        ({"a": 0, "b": 10}, {"a": 45, "b": 55}),
    ],
    ids=str,
)
def test_shares_of_a_hundred(wanted: dict[str, float], expected: dict[str, float]) -> None:
    assert share_out(100, wanted) == pytest.approx(expected)
