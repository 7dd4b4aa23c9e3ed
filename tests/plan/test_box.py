from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fwstore.plan.box import Box, flat_boxes

shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@st.composite
def boxes(draw: st.DrawFn, dims: int = 2) -> Box:
    offsets = draw(st.lists(st.integers(0, 5), min_size=dims, max_size=dims))
    sizes = draw(st.lists(st.integers(0, 4), min_size=dims, max_size=dims))
    return Box(tuple(offsets), tuple(sizes))


def test_a_tensor_without_dimensions_has_one_element() -> None:
    box = Box.whole(())
    assert box == Box((), ())
    assert box.volume == 1
    assert box.intersect(box) == box
    assert box.contains(box)
    assert np.array(7)[box.slices()] == 7


def test_an_empty_box_meets_nothing() -> None:
    empty = Box.whole((3, 0))
    assert empty.volume == 0
    assert empty.intersect(empty) is None


@given(boxes(), boxes())
def test_intersection_is_what_both_arrays_hold(left: Box, right: Box) -> None:
    one, other = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    one[left.slices()] = True
    other[right.slices()] = True
    both = left.intersect(right)
    expected = np.zeros((10, 10), bool)
    if both is not None:
        expected[both.slices()] = True
        assert left.contains(both)
        assert right.contains(both)
    assert np.array_equal(one & other, expected)


@given(boxes(), boxes())
def test_a_box_seen_from_another_selects_the_same_elements(inner: Box, outer: Box) -> None:
    if not outer.contains(inner):
        return
    array = np.arange(100).reshape(10, 10)
    part = array[outer.slices()]
    assert np.array_equal(part[inner.relative_to(outer).slices()], array[inner.slices()])


def test_contains_looks_at_both_ends() -> None:
    outer = Box((2, 2), (3, 3))
    assert outer.contains(Box((2, 4), (3, 1)))
    assert not outer.contains(Box((1, 2), (1, 1)))
    assert not outer.contains(Box((4, 4), (1, 2)))


@given(shapes, st.data())
def test_flat_boxes_are_the_range_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    total = math.prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    parts = flat_boxes(shape, start, stop)
    elements = np.arange(total).reshape(shape)
    found = [element for box in parts for element in elements[box.slices()].reshape(-1).tolist()]
    assert found == list(range(start, stop))
    assert len(parts) <= max(1, 2 * len(shape) - 1)
    assert all(box.volume for box in parts)
