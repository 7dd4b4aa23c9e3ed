"""How an export is divided: into files, and into boxes that are read one after the other."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fwstore_migrate.exports import plan_boxes, plan_shards

_shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@given(_shapes, st.sampled_from([1, 2, 4, 8]), st.integers(1, 500))
def test_boxes_follow_each_other_in_c_order(
    shape: tuple[int, ...], itemsize: int, limit_bytes: int
) -> None:
    whole = np.arange(math.prod(shape)).reshape(shape)
    boxes = list(plan_boxes(shape, itemsize, limit_bytes))
    read = [whole[box.slices()].reshape(-1) for box in boxes]
    assert np.array_equal(np.concatenate([*read, np.zeros(0, int)]), whole.reshape(-1))
    assert all(box.volume * itemsize <= max(limit_bytes, itemsize) for box in boxes)


def test_boxes_are_not_needlessly_small() -> None:
    assert len(list(plan_boxes((1000, 1000), 4, 1_000_000))) == 4


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 100)), st.integers(1, 150))
def test_files_hold_every_tensor_once_and_are_small_enough(
    sizes: dict[str, int], shard_bytes: int
) -> None:
    files = plan_shards(sizes, shard_bytes)
    assert [name for names in files for name in names] == list(sizes)
    for names in files:
        assert len(names) == 1 or sum(sizes[name] for name in names) <= shard_bytes
