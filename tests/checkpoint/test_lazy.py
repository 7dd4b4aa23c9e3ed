"""A slice of a stored tensor is the slice of the saved one, and costs only the chunks that hold it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwstore
from fwstore import Box, InvalidInput, NotFound
from support.faults import FaultyStore

ARRAY = np.random.default_rng(4).random((7, 5, 6))
STATE: dict[str, Any] = {
    "w": ARRAY,
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.int8),
    "deep": [{"v": np.arange(10)}],
    "tied": ARRAY,
    "n": {1: np.full(2, 1.0), "1": np.full(2, 2.0)},
    "large": np.random.default_rng(5).random((4096, 256)),
}


@pytest.fixture(scope="module")
def repository() -> Iterator[fwstore.Repository]:
    with fwstore.open("memory://", limits=fwstore.Limits(threads=2)) as repository:
        with repository.run("run").writer() as writer:
            writer.save(3, STATE).result(60)
        yield repository


@pytest.fixture
def checkpoint(repository: fwstore.Repository) -> fwstore.Checkpoint:
    return repository.run("run").latest()


@pytest.mark.parametrize(
    "index",
    [
        (),
        ...,
        slice(None),
        2,
        -1,
        (3, 4, 5),
        (-7, -5, -6),
        (slice(1, 5, 2), slice(None, None, 3)),
        (..., 2),
        (1, ..., 2),
        (slice(2, 2), ...),
        (slice(5, 1), 0),
        (slice(-3, None), slice(-100, 100), slice(0, 6, 5)),
        (np.int64(2), slice(np.int64(1), None)),
        (1, 2, ..., 3),
        (1, 2, 3, ...),
    ],
)
def test_every_index_means_what_it_means_in_numpy(
    checkpoint: fwstore.Checkpoint, index: Any
) -> None:
    found = checkpoint.tensors["w"][index]
    expected = ARRAY[index]
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "index",
    [
        7,
        -8,
        (0, 0, 0, 0),
        slice(None, None, -1),
        (..., 0, ...),
        None,
        "0",
        1.0,
        [0, 1],
        np.array([0, 1]),
        True,
        (slice(0, 2), [1]),
        slice(0, 4, 0),
        slice("a", None),
    ],
)
def test_indexes_that_do_not_fit_are_refused(checkpoint: fwstore.Checkpoint, index: Any) -> None:
    with pytest.raises(InvalidInput):
        checkpoint.tensors["w"][index]


def test_small_and_empty_tensors(checkpoint: fwstore.Checkpoint) -> None:
    tensors = checkpoint.tensors
    for index in ((), ...):
        assert tensors["scalar"][index] == 2.5
    assert tensors["scalar"].shape == ()
    assert tensors["empty"][...].shape == (0, 3)
    assert tensors["empty"][:, 1].shape == (0,)
    with pytest.raises(InvalidInput):
        tensors["scalar"][0]
    with pytest.raises(InvalidInput):
        tensors["empty"][0]


def test_names_and_paths_lead_to_the_same_tensor(checkpoint: fwstore.Checkpoint) -> None:
    tensors = checkpoint.tensors
    lazy = tensors["deep/0/v"]
    assert lazy.path == ("deep", 0, "v")
    assert tensors["deep", 0, "v"].name == lazy.name == "deep/0/v"
    assert (lazy.dtype, lazy.shape, lazy.nbytes, lazy.kind) == ("int64", (10,), 80, "numpy")
    assert repr(lazy) == "LazyTensor('deep/0/v', int64[10])"
    assert tensors["tied"].alias == ("w",)
    assert np.array_equal(tensors["tied"][2:3], ARRAY[2:3])
    assert len(tensors) == len(list(tensors)) == 8
    assert ("n", 1) in tensors
    assert "deep/0/v" in tensors
    assert "deep" not in tensors
    assert ("deep",) not in tensors


def test_unknown_and_ambiguous_names_are_told(checkpoint: fwstore.Checkpoint) -> None:
    for name in ("nope", "deep", ""):
        with pytest.raises(NotFound):
            checkpoint.tensors[name]
    with pytest.raises(NotFound):
        checkpoint.tensors["n", 2]
    with pytest.raises(InvalidInput, match="several"):
        checkpoint.tensors["n/1"]
    assert [checkpoint.tensors["n", key][0] for key in (1, "1")] == [1, 2]


def test_a_slice_reads_only_the_chunks_that_hold_it(
    repository: fwstore.Repository, checkpoint: fwstore.Checkpoint
) -> None:
    assert len(checkpoint.chunks("large")) == 32
    checkpoint.tensors["large"][0]
    access = checkpoint.access
    counting = FaultyStore(access.store)
    object.__setattr__(access.origin, "stores", (counting,))
    try:
        found = checkpoint.tensors["large"][100:130, 7]
        assert checkpoint.tensors["empty"][...].size == 0
    finally:
        object.__setattr__(access.origin, "stores", (counting.inner,))
    assert np.array_equal(found, STATE["large"][100:130, 7])
    assert [operation.name for operation in counting.operations] == ["read_into"]


def test_raw_bytes_of_a_box(checkpoint: fwstore.Checkpoint) -> None:
    lazy = checkpoint.tensors["w"]
    assert lazy.read_raw().tobytes() == ARRAY.tobytes()
    box = Box((1, 0, 2), (3, 5, 1))
    assert lazy.read_raw(box).tobytes() == ARRAY[box.slices()].tobytes()
    assert checkpoint.tensors["scalar"].read_raw().tobytes() == np.array(2.5).tobytes()
    with pytest.raises(InvalidInput):
        lazy.read_raw(Box((5, 0, 0), (3, 5, 6)))


axes = st.slices(8).filter(lambda part: part.step is None or part.step > 0)


@given(st.tuples(axes | st.integers(-7, 6), axes | st.integers(-5, 4), axes | st.integers(-6, 5)))
def test_any_index_of_slices_and_integers(repository: fwstore.Repository, index: Any) -> None:
    found = repository.run("run").latest().tensors["w"][index]
    assert np.array_equal(found, ARRAY[index])
    assert found.shape == ARRAY[index].shape
