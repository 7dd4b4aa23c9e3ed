"""What is loaded is what was saved: bits of every dtype and geometry, ties, boxes and plain values."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwstore
from fwstore import InvalidInput, Piece, Shard, TensorSlot, UnsupportedValue
from fwstore.format.dtypes import ITEMSIZE
from fwstore.plan.box import Box, flat_boxes
from support.arrays import RNG, geometries, random_bits, same_bits, save

NUMPY_DTYPES = [name for name in ITEMSIZE if name in np.sctypeDict]


def test_numpy_has_most_dtypes() -> None:
    assert len(NUMPY_DTYPES) == 14


@pytest.mark.parametrize("blocking", [False, True])
def test_every_dtype_comes_back_bit_for_bit(run: fwstore.Run, blocking: bool) -> None:
    state: dict[str, Any] = {name: random_bits(name, (5, 7)) for name in NUMPY_DTYPES}
    checkpoint = save(run, state, blocking=blocking)
    fresh = checkpoint.load()
    into: dict[str, Any] = {name: np.zeros((5, 7), name) for name in NUMPY_DTYPES}
    held = dict(into)
    assert checkpoint.load(into=into) is into
    for name, array in state.items():
        assert same_bits(fresh[name], array), name
        assert same_bits(into[name], array), name
        assert into[name] is held[name]
        lazy = checkpoint.tensors[name]
        assert (lazy.dtype, lazy.shape) == (name, (5, 7))
        assert same_bits(lazy[1:3, ::2], array[1:3, ::2])


@pytest.mark.parametrize("blocking", [False, True])
def test_every_geometry_is_saved_in_logical_order(run: fwstore.Run, blocking: bool) -> None:
    state = geometries()
    checkpoint = save(run, state, blocking=blocking)
    found = checkpoint.load()
    assert list(found) == list(state)
    for name, array in state.items():
        assert same_bits(found[name], np.ascontiguousarray(array).reshape(array.shape)), name
        assert found[name].flags.writeable


def test_memory_maps_are_read_and_filled(run: fwstore.Run, tmp_path: Path) -> None:
    source = np.memmap(tmp_path / "source", np.float32, "w+", shape=(100, 3))
    source[:] = np.arange(300).reshape(100, 3)
    source.flush()
    reading = np.memmap(tmp_path / "source", np.float32, "r", shape=(100, 3))
    checkpoint = save(run, {"w": reading})
    target = np.memmap(tmp_path / "target", np.float32, "w+", shape=(100, 3))
    checkpoint.load(into={"w": target})
    target.flush()
    assert np.array_equal(np.fromfile(tmp_path / "target", np.float32).reshape(100, 3), source)
    with pytest.raises(InvalidInput, match="read-only"):
        checkpoint.load(into={"w": reading})


def test_ties_are_stored_once_and_tied_again(run: fwstore.Run) -> None:
    weight = random_bits("float32", (64, 64))
    state: dict[str, Any] = {
        "embed": weight,
        "blocks": [{"w": weight[:]}, weight.T],
        "head": {"out": weight},
    }
    checkpoint = save(run, state)
    assert checkpoint.describe().bytes_logical == 2 * weight.nbytes
    found = checkpoint.load()
    assert found["head"]["out"] is found["embed"] is found["blocks"][0]["w"]
    assert same_bits(found["blocks"][1], np.ascontiguousarray(weight.T))
    assert checkpoint.tensors["head/out"].alias == ("embed",)
    assert same_bits(checkpoint.tensors["head/out"][:], weight)
    only = checkpoint.load(only="head/**")
    assert "embed" not in only
    assert only["blocks"] == [{}, None]
    assert same_bits(only["head"]["out"], weight)


def test_several_boxes_and_flat_ranges_of_one_rank(run: fwstore.Run) -> None:
    whole = random_bits("float32", (12, 5))
    boxes = [Box((0, 0), (2, 5)), Box((4, 0), (2, 5)), Box((8, 0), (2, 5))]
    fused = [Piece(box, np.ascontiguousarray(whole[box.slices()])) for box in boxes]
    rest = [Box((2, 0), (2, 5)), Box((6, 0), (2, 5)), Box((10, 0), (2, 5))]
    others = [Piece(box, whole[box.slices()]) for box in rest]
    parts = [flat_boxes((12, 5), *ends) for ends in ((0, 23), (23, 41), (41, 60))]
    pieces = [Piece(box, whole[box.slices()]) for boxes in parts for box in boxes]
    checkpoint = save(
        run,
        {
            "qkv": Shard("float32", (12, 5), (*fused, *others)),
            "flat": Shard("float32", (12, 5), tuple(pieces)),
        },
    )
    found = checkpoint.load()
    assert same_bits(found["qkv"], whole)
    assert same_bits(found["flat"], whole)
    flat = np.zeros(18, np.float32)
    wanted, position = [], 0
    for box in flat_boxes((12, 5), 13, 31):
        wanted.append(Piece(box, flat[position : position + box.volume].reshape(box.sizes)))
        position += box.volume
    thin = [Piece(box, np.zeros(box.sizes, np.float32)) for box in boxes]
    into: dict[str, Any] = {
        "flat": Shard("float32", (12, 5), tuple(wanted)),
        "qkv": Shard("float32", (12, 5), tuple(thin)),
    }
    checkpoint.load(into=into)
    assert same_bits(flat, whole.reshape(-1)[13:31])
    for piece in thin:
        found = np.asarray(piece.array).view(np.float32)
        assert same_bits(found, np.ascontiguousarray(whole[piece.box.slices()]))


def test_a_shard_that_lacks_elements_is_not_committed(run: fwstore.Run) -> None:
    half = Shard("float32", (8,), (Piece(Box((0,), (4,)), np.ones(4, np.float32)),))
    with run.writer() as writer, pytest.raises(InvalidInput, match=r"exactly once: .* tensor w"):
        writer.save(0, {"w": half}).result(60)
    assert run.latest(default=None) is None


def test_dtypes_that_numpy_lacks_travel_as_bits(run: fwstore.Run) -> None:
    bits = random_bits("uint16", (9, 2))
    piece = Piece(Box.whole((9, 2)), bits)
    checkpoint = save(run, {"w": Shard("bfloat16", (9, 2), (piece,))})
    target = np.zeros((9, 2), np.uint16)
    into: dict[str, Any] = {"w": Shard("bfloat16", (9, 2), (Piece(Box.whole((9, 2)), target),))}
    checkpoint.load(into=into)
    assert same_bits(target, bits)
    with pytest.raises(fwstore.Unsupported, match="bfloat16"):
        checkpoint.load()
    assert checkpoint.tensors["w"].read_raw().tobytes() == bits.tobytes()


def test_complex_tensors_of_a_new_state_keep_their_imaginary_part(run: fwstore.Run) -> None:
    array = np.arange(4) * (1 + 2j)
    checkpoint = save(run, {"c": array, "f": np.ones(3)})
    found = checkpoint.load(dtype="float32")
    assert same_bits(found["c"], array)
    assert found["f"].dtype == np.float32
    assert checkpoint.load(dtype="complex64")["c"].tolist() == array.tolist()


def test_new_states_of_another_floating_dtype(run: fwstore.Run) -> None:
    weight = RNG.standard_normal(7)
    checkpoint = save(run, {"w": weight, "n": np.arange(3), "z": weight + 1j})
    found = checkpoint.load(dtype="float32", only=["w", "n"])
    assert same_bits(found["w"], weight.astype(np.float32))
    assert found["n"].dtype == np.int64
    assert same_bits(
        checkpoint.load(dtype="complex64", only="z")["z"], (weight + 1j).astype(np.complex64)
    )
    with pytest.raises(InvalidInput, match="float31"):
        checkpoint.load(dtype="float31")


def test_plain_values_of_every_container_come_back(run: fwstore.Run) -> None:
    state: dict[Any, Any] = {
        "model": OrderedDict(w=np.ones(3), version=2),
        "pair": (np.ones(1), "inside"),
        "none": None,
        "big": 1 << 90,
        7: {("odd", None): {1, 2}},
    }
    found = save(run, state).load()
    assert type(found["model"]) is OrderedDict
    assert found["model"]["version"] == 2
    assert found["pair"][1] == "inside"
    assert (found["none"], found["big"]) == (None, 1 << 90)
    assert found[7] == {("odd", None): {1, 2}}
    assert list(found) == list(state)


@pytest.mark.parametrize(
    "value", [object(), {"deep": [object()]}, np.longdouble(1), np.array([object()]), lambda: 1]
)
def test_values_that_cannot_be_stored_are_named_and_hurt_nothing(
    run: fwstore.Run, value: Any
) -> None:
    with run.writer() as writer:
        with pytest.raises(UnsupportedValue, match="here"):
            writer.save(0, {"ok": np.ones(1), "here": value})
        assert writer.save(0, {"ok": np.ones(1)}).result(60) is not None


def test_the_reserved_key_is_refused(run: fwstore.Run) -> None:
    with run.writer() as writer, pytest.raises(InvalidInput, match="@fwstore"):
        writer.save(0, {"@fwstore": {"state": np.ones(1)}})


def test_a_large_plain_state_is_stored_beside_the_tensors(run: fwstore.Run) -> None:
    words = [f"word {number}" for number in range(20_000)]
    checkpoint = save(run, {"words": words, "w": np.ones(2)})
    assert checkpoint.load()["words"] == words
    assert list(checkpoint.tensors) == [("w",)]
    skeleton = checkpoint.state()
    assert skeleton["w"] == TensorSlot("numpy")
    assert skeleton["words"] == words


def test_states_without_tensors_and_without_anything(run: fwstore.Run) -> None:
    assert save(run, {"only": "plain"}, 0).load() == {"only": "plain"}
    assert save(run, {}, 1).load() == {}
    assert save(run, None, 2).load() is None
    assert save(run, [1, (2,)], 3).load() == [1, (2,)]


@pytest.mark.parametrize(
    "limits",
    [
        {"threads": 1},
        {"threads": 3, "read_bytes": 1000, "read_request_bytes": 500, "read_gap_bytes": 0},
        {"threads": 2, "inflight_bytes": 1, "part_bytes": 1 << 16, "pack_bytes": 1 << 18},
    ],
)
def test_limits_change_how_and_never_what(url: str, limits: dict[str, Any]) -> None:
    state = {f"w{n}": RNG.random((50, 300 + n)) for n in range(9)} | {"t": RNG.random((700, 90)).T}
    with fwstore.open(url, limits=fwstore.Limits(**limits)) as repo:
        for step in range(2):
            found = save(repo.run("run"), state, step).load()
            for name, array in state.items():
                assert np.array_equal(found[name], array), name


@pytest.mark.slow
def test_tensors_of_many_segments_come_back(run: fwstore.Run) -> None:
    array = np.random.default_rng(1).integers(0, 1 << 60, (700, 9000))
    state = {"w": array, "t": array.T, "half": array[:, ::2]}
    checkpoint = save(run, state)
    assert checkpoint.describe().chunks > 30
    found = checkpoint.load()
    for name, value in state.items():
        assert np.array_equal(found[name], value), name
    assert np.array_equal(checkpoint.tensors["t"][4000:4003, 5:], array.T[4000:4003, 5:])


@given(
    shape=st.lists(st.integers(0, 40), max_size=3),
    order=st.sampled_from("CF"),
    dtype=st.sampled_from(["uint8", "float16", "float32", "complex128"]),
    cut=st.integers(1, 2),
)
def test_any_array_comes_back(shape: list[int], order: Any, dtype: str, cut: int) -> None:
    array = random_bits(dtype, tuple(shape)).copy(order=order)[
        tuple(slice(None, None, -cut) for _ in shape)
    ]
    with fwstore.open("memory://") as repository:
        checkpoint = save(repository.run("any"), {"w": array})
        assert same_bits(checkpoint.load()["w"], np.array(array, order="C"))
