from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.plan import tiling
from fwstore.plan.box import Box
from fwstore.plan.tiling import Flaw, Tiles, first_flaw

Part = tuple[int, tuple[int, int], tuple[int, int]]


@st.composite
def tiles(draw: st.DrawFn) -> Tiles:
    target = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
    parts: list[Part] = []
    for number, extent in enumerate(target):
        for _ in range(draw(st.integers(0, 4))):
            low = [draw(st.integers(0, size - 1)) for size in extent]
            size = [draw(st.integers(1, most - at)) for most, at in zip(extent, low, strict=True)]
            parts.append((number, (low[0], low[1]), (size[0], size[1])))
    return Tiles(
        np.array(target, np.int64),
        np.array([group for group, _, _ in parts], np.int64),
        np.array([low for _, low, _ in parts], np.int64).reshape(-1, 2),
        np.array([size for _, _, size in parts], np.int64).reshape(-1, 2),
    )


def counts(boxes: Tiles, number: int) -> NDArray[np.int64]:
    times = np.zeros(boxes.target[number], int)
    for low, size in zip(*boxes.of_target(number), strict=True):
        times[tuple(slice(at, at + length) for at, length in zip(low, size, strict=True))] += 1
    return times


def check_first_flaw(boxes: Tiles, *, twice_allowed: bool) -> None:
    flaw = first_flaw(boxes, twice_allowed=twice_allowed)
    for number in range(len(boxes.target)):
        times = counts(boxes, number)
        wrong = times == 0 if twice_allowed else times != 1
        if wrong.any():
            assert flaw is not None
            assert flaw.target == number
            assert (times[flaw.box.slices()] == flaw.times).all()
            assert flaw.box.volume
            return
    assert flaw is None


@given(tiles(), st.booleans())
def test_the_first_flaw_is_found(boxes: Tiles, twice_allowed: bool) -> None:
    check_first_flaw(boxes, twice_allowed=twice_allowed)


@given(boxes=tiles(), rows=st.integers(1, 4))
def test_batches_change_nothing(boxes: Tiles, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "_BATCH_ROWS", rows)
        check_first_flaw(boxes, twice_allowed=False)


@given(boxes=tiles())
def test_too_many_corners_are_counted_the_long_way(boxes: Tiles) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "_CORNERS_MAX", 0)
        check_first_flaw(boxes, twice_allowed=False)


def test_a_gap_and_an_overlap_of_equal_volume_do_not_cancel() -> None:
    boxes = Tiles(
        np.array([[2, 2]]), np.array([0, 0]), np.array([[0, 0], [0, 1]]), np.array([[1, 2], [2, 1]])
    )
    assert first_flaw(boxes) == Flaw(0, Box((0, 1), (1, 1)), 2)


def test_a_scalar_is_tiled_by_one_box() -> None:
    nothing = np.empty((0, 0), np.int64)
    one = Tiles(
        np.empty((1, 0), np.int64),
        np.array([0]),
        np.empty((1, 0), np.int64),
        np.empty((1, 0), np.int64),
    )
    assert first_flaw(one) is None
    none = Tiles(np.empty((1, 0), np.int64), np.empty(0, np.int64), nothing, nothing)
    assert first_flaw(none) == Flaw(0, Box((), ()), 0)


def test_no_targets_have_no_flaw() -> None:
    nothing = np.empty((0, 2), np.int64)
    assert first_flaw(Tiles(nothing, np.empty(0, np.int64), nothing, nothing)) is None
