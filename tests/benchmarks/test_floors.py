"""The raw machine gives back what it was given, and the state is as it is described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.state import BYTES_PER_WEIGHT, change, empty_like, make_state, same, size_of
from benchmarks.peers.base import Peer
from benchmarks.peers.floors import (
    Bytes,
    Direct,
    Memcpy,
    Sequential,
    TwoThreads,
    runs,
    split_buffers,
    views,
)

SIZE = 3 * BYTES_PER_WEIGHT


def buffers(*sizes: int) -> list[Bytes]:
    return [np.zeros(size, np.uint8) for size in sizes]


@pytest.mark.parametrize("make", [Memcpy, TwoThreads, Sequential, Direct])
def test_a_floor_gives_back_what_it_was_given(make: Callable[[Path], Peer], tmp_path: Path) -> None:
    state = make_state(SIZE)
    with make(tmp_path) as floor:
        floor.prepare(state)
        for step in (1, 2):
            change(state)
            floor.save(state, step)()
        into = empty_like(state)
        floor.load(into, 2)
    assert same(into, state)


def test_runs_follow_each_other_and_hold_everything() -> None:
    row = buffers(3 << 20, 20 << 20, 1, 9 << 20, 9 << 20)
    offset, seen = 0, 0
    for start, run in runs(row):
        assert start == offset
        offset += sum(buffer.nbytes for buffer in run)
        seen += len(run)
    assert (offset, seen) == (sum(buffer.nbytes for buffer in row), len(row))


def test_a_row_is_split_inside_a_buffer() -> None:
    first, rest = split_buffers(buffers(5, 5, 5), 7)
    assert [buffer.nbytes for buffer in first] == [5, 2]
    assert [buffer.nbytes for buffer in rest] == [3, 5]
    assert split_buffers(buffers(5), 5)[1] == []


def test_the_state_has_the_size_and_shape_of_a_shard() -> None:
    state = make_state(SIZE)
    assert abs(size_of(state) / SIZE - 1) < 0.01
    matrices = [tensor for tensor in state.values() if tensor.dim() == 2]
    assert len(matrices) == 3 * 4
    assert {tensor.element_size() for tensor in matrices} == {2, 4}


def test_no_two_tensors_have_equal_bytes() -> None:
    contents = [view.tobytes() for view in views(make_state(SIZE))]
    assert len(set(contents)) == len(contents)


def test_a_step_changes_every_element_or_only_those_of_some_weights() -> None:
    state, before = make_state(SIZE), make_state(SIZE)
    change(state, every=3)
    changed = {name for name in state if not same({name: state[name]}, {name: before[name]})}
    assert changed == {name for name in state if int(name.split(".")[1]) % 3 == 0}
    change(before)
    assert all((before[name] != fresh).all() for name, fresh in make_state(SIZE).items())
