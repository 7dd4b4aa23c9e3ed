"""Loading into a state that exists: which memory is filled, which plain values are replaced, what must fit."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import Box, InvalidInput, Piece, Shard
from support.arrays import RNG, geometries, same_bits, save


def test_destinations_of_any_geometry_are_filled_in_place(run: fwstore.Run) -> None:
    state = geometries()
    checkpoint = save(run, state)
    frames = {
        name: np.full([2 * n + 1 for n in array.shape], 1, array.dtype)
        for name, array in state.items()
    }
    into: dict[str, Any] = {
        name: frame[tuple(slice(1, None, 2) for _ in frame.shape)] if frame.ndim else frame
        for name, frame in frames.items()
    }
    into |= {"reversed": into["reversed"][::-1], "transposed": into["transposed"].copy(order="F")}
    checkpoint.load(into=into)
    for name, array in state.items():
        assert same_bits(np.array(into[name], order="C"), np.array(array, order="C")), name
    assert (frames["plain"][::2, ::2, ::2] == 1).all()


@pytest.mark.parametrize("strides", [(0, 8), (8, 8), (16, 8), (8, 4), (-8, 8)])
def test_arrays_that_cannot_be_filled_are_refused_before_a_byte_is_read(
    run: fwstore.Run, strides: tuple[int, int]
) -> None:
    checkpoint = save(run, {"a": np.ones(3), "b": np.ones((2, 3))})
    first, shared = np.zeros(3), np.zeros(9)[3:]
    view = np.lib.stride_tricks.as_strided(shared, (2, 3), strides)
    for second in (view, Shard("float64", (2, 3), (Piece(Box.whole((2, 3)), view),))):
        with pytest.raises(InvalidInput, match=r"b: memory that stands for several elements"):
            checkpoint.load(into={"a": first, "b": second})
    assert not first.any()


@pytest.mark.parametrize("strides", [(8, 16), (32, 8), (-24, -8), (8, -16), (72, 24)])
def test_strides_in_any_order_and_direction_are_filled(
    run: fwstore.Run, strides: tuple[int, int]
) -> None:
    checkpoint = save(run, {"b": np.arange(6.0).reshape(2, 3)})
    view = np.lib.stride_tricks.as_strided(np.zeros(40)[15:], (2, 3), strides)
    checkpoint.load(into={"b": view})
    assert np.array_equal(view, np.arange(6.0).reshape(2, 3))


def test_ties_load_into_separate_arrays_and_into_other_ties(run: fwstore.Run) -> None:
    weight, other = np.arange(6.0), np.arange(6.0) + 1
    checkpoint = save(run, {"a": weight, "b": weight, "c": other})
    apart = {"a": np.zeros(6), "b": np.zeros(6), "c": np.zeros(6)}
    checkpoint.load(into=apart)
    assert same_bits(apart["b"], weight)
    tied: dict[str, Any] = {"a": np.zeros(6), "c": np.zeros(6)}
    tied["b"] = tied["a"]
    checkpoint.load(into=tied)
    assert same_bits(tied["a"], weight)
    with pytest.raises(InvalidInput, match="missing in the checkpoint: d"):
        checkpoint.load(into={**tied, "d": tied["a"]})


def test_memory_that_is_shared_is_filled_by_any_of_its_names(run: fwstore.Run) -> None:
    checkpoint = save(run, {"b": np.arange(6.0), "c": np.arange(6.0), "d": np.arange(6.0) + 1})
    shared = np.zeros(6)
    checkpoint.load(into={"a": shared, "b": shared}, only="b")
    assert same_bits(shared, np.arange(6.0))
    shared[:] = 0
    checkpoint.load(into={"a": shared, "b": shared}, strict=False)
    assert same_bits(shared, np.arange(6.0))
    shared[:] = 0
    checkpoint.load(into={"b": shared, "c": shared, "d": np.zeros(6)})
    assert same_bits(shared, np.arange(6.0))
    shared[:] = 0
    for strict in (True, False):
        with pytest.raises(InvalidInput, match=r"c and d share memory .* differ"):
            checkpoint.load(into={"b": np.zeros(6), "c": shared, "d": shared}, strict=strict)
    assert not shared.any()


def test_casts_into_another_dtype(run: fwstore.Run) -> None:
    state: dict[str, Any] = {
        "w": RNG.standard_normal((5, 3)).astype(np.float32),
        "n": np.arange(4),
        "same": np.ones(2),
    }
    checkpoint = save(run, state)
    frame = np.zeros((5, 6), np.float16)
    into: dict[str, Any] = {"w": frame[:, ::2], "n": np.zeros(4, np.int8), "same": np.zeros(2)}
    with pytest.raises(InvalidInput, match="dtype='cast'"):
        checkpoint.load(into=into)
    assert not frame.any()
    checkpoint.load(into=into, dtype="cast")
    assert same_bits(into["w"].copy(), state["w"].astype(np.float16))
    assert into["n"].tolist() == [0, 1, 2, 3]
    assert into["same"].tolist() == [1, 1]
    assert not frame[:, 1::2].any()
    with pytest.raises(InvalidInput, match="'cast'"):
        checkpoint.load(into=into, dtype="float16")


def test_plain_values_of_the_destination_are_replaced(run: fwstore.Run) -> None:
    checkpoint = save(
        run,
        {
            "model": OrderedDict(w=np.ones(3), version=2),
            "steps": [1, [2, 3, 4], np.ones(2), (4, 5), "more"],
            "pair": (np.ones(1), "inside"),
            "loader": {"epoch": 3, "seen": {"a": 1}},
            "none": None,
            "other": 1,
        },
    )
    history, loader = [0], {"epoch": 0, "stale": True}
    into: dict[str, Any] = {
        "model": {"w": np.zeros(3), "version": 0},
        "steps": [0, history, np.zeros(2), (0, 0)],
        "pair": (np.zeros(1), "tuples do not change"),
        "loader": loader,
        "none": 5,
        "unknown": "kept",
    }
    checkpoint.load(into=into)
    assert into["model"]["version"] == 2
    assert into["model"]["w"].all()
    assert into["steps"][0::3] == [1, (4, 5)]
    assert into["steps"][1] is history
    assert history == [2, 3, 4]
    assert into["loader"] is loader
    assert loader == {"epoch": 3, "seen": {"a": 1}}
    assert into["pair"] == (np.ones(1), "tuples do not change")
    assert (into["none"], into["unknown"]) == (None, "kept")
    assert "other" not in into


@pytest.mark.parametrize("selection", [{"only": "**"}, {"rename": {}}])
def test_plain_values_stay_where_only_some_tensors_are_asked_for(
    run: fwstore.Run, selection: dict[str, Any]
) -> None:
    checkpoint = save(run, {"w": np.ones(2), "lr": 0.1})
    into: dict[str, Any] = {"w": np.zeros(2), "lr": 0.5}
    checkpoint.load(into=into, **selection)
    assert into["lr"] == 0.5
    assert into["w"].tolist() == [1, 1]


def test_lenient_loads_never_put_a_plain_value_over_a_tensor(run: fwstore.Run) -> None:
    checkpoint = save(run, {"a": 1, "b": 2, "c": np.ones(2), "d": 4, "e": [5], "f": {"x": 6}})
    array = np.zeros(1)
    mine: dict[str, Any] = {
        "a": array,
        "b": {"w": array},
        "c": 3,
        "d": [array],
        "e": [array],
        "f": {},
    }
    checkpoint.load(into=mine, strict=False)
    assert mine == {
        "a": array,
        "b": {"w": array},
        "c": 3,
        "d": [array],
        "e": [array],
        "f": {"x": 6},
    }


def test_only_reads_what_is_named_and_leaves_the_rest_out(run: fwstore.Run) -> None:
    state: dict[str, Any] = {
        "policy": {"w": np.ones(2), "lr": 1},
        "value": {"w": np.ones(2)},
        "list": [np.ones(1), 5],
    }
    checkpoint = save(run, state)
    found = checkpoint.load(only="policy/**")
    assert set(found) == {"policy", "list"}
    assert found["policy"]["lr"] == 1
    assert found["list"] == [None, 5]
    with pytest.raises(InvalidInput, match="polcy"):
        checkpoint.load(only="polcy/**")
    assert checkpoint.load(only="polcy/**", strict=False)["list"] == [None, 5]
    into: dict[str, Any] = {"policy": {"w": np.zeros(2)}, "value": {"w": np.zeros(2)}}
    with pytest.raises(InvalidInput, match="polcy"):
        checkpoint.load(into=into, only=["value/*", "polcy/*"])
    checkpoint.load(into=into, only=["value/*"])
    assert not into["policy"]["w"].any()
    assert into["value"]["w"].all()


def test_renames_by_mapping_and_by_function(run: fwstore.Run) -> None:
    checkpoint = save(run, {"module": {"w": np.ones(2)}, "other": np.full(1, 5.0)})
    into: dict[str, Any] = {"net": {"w": np.zeros(2)}, "other": np.zeros(1)}
    checkpoint.load(into=into, rename={"module": "net"})
    assert into["net"]["w"].all()
    assert into["other"].tolist() == [5]
    upper: dict[str, Any] = {"MODULE": {"W": np.zeros(2)}, "OTHER": np.zeros(1)}
    checkpoint.load(into=upper, rename=str.upper)
    assert upper["MODULE"]["W"].all()
    with pytest.raises(InvalidInput, match="needs into="):
        checkpoint.load(rename=str.upper)


def test_strict_loads_list_what_is_missing_unexpected_and_mismatched(run: fwstore.Run) -> None:
    checkpoint = save(run, {"a": np.ones(2), "b": np.ones(2), "c": np.ones((2, 2))})
    into: dict[str, Any] = {"a": np.zeros(2), "x": np.zeros(1), "c": np.zeros((3, 2), np.int8)}
    with pytest.raises(InvalidInput) as caught:
        checkpoint.load(into=into)
    for part in (
        "missing in the checkpoint: x",
        "not in the destination: b",
        "c (saved float64[2, 2]",
    ):
        assert part in str(caught.value)
    assert not into["a"].any()
    del into["c"]
    checkpoint.load(into=into, strict=False)
    assert into["a"].all()
    assert not into["x"].any()


def test_keys_that_read_alike_are_told_apart(run: fwstore.Run) -> None:
    state: dict[str, Any] = {
        "s": {0: np.full(2, 1.0), "0": np.full(2, 2.0)},
        "a/b": np.full(1, 3.0),
        "a": {"b": np.full(1, 4.0)},
        "a.b": np.full(1, 5.0),
    }
    checkpoint = save(run, state)
    found = checkpoint.load()
    orders: list[Any] = [{0: np.zeros(2), "0": np.zeros(2)}, {"0": np.zeros(2), 0: np.zeros(2)}]
    for numbered in orders:
        into = {
            "s": numbered,
            "a.b": np.zeros(1),
            "a": {"b": np.zeros(1)},
            "a/b": np.zeros(1),
        }
        checkpoint.load(into=into)
        for tree in (into, found):
            assert (tree["s"][0][0], tree["s"]["0"][0]) == (1, 2)
            assert (tree["a/b"][0], tree["a"]["b"][0], tree["a.b"][0]) == (3, 4, 5)
    with pytest.raises(InvalidInput, match="several tensors"):
        checkpoint.tensors["s/0"]
    assert checkpoint.tensors["s", 0][0] == 1


def test_names_are_asked_only_where_paths_do_not_tell(run: fwstore.Run) -> None:
    keys: tuple[int | str, ...] = (0, "0", "[0]")
    checkpoint = save(run, {"s": {key: np.full(1, n) for n, key in enumerate(keys)}})
    into: dict[str, Any] = {"s": {key: np.full(1, 9) for key in reversed(keys)}}
    checkpoint.load(into=into)
    assert [into["s"][key][0] for key in keys] == [0, 1, 2]
    with pytest.raises(InvalidInput, match="rename"):
        checkpoint.load(into=into, only="**")


def test_a_text_key_takes_what_an_int_key_left(run: fwstore.Run) -> None:
    checkpoint = save(run, {"state": {0: np.ones(2), 1: np.full(2, 2.0)}})
    into: dict[str, Any] = {"state": {"0": np.zeros(2), "1": np.zeros(2)}}
    checkpoint.load(into=into)
    assert (into["state"]["0"][0], into["state"]["1"][0]) == (1, 2)


class Device:
    """Memory that numpy cannot address."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.hidden = array
        self.dtype, self.shape = array.dtype, array.shape

    def copy_to_host(self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]) -> None:
        target[...] = self.hidden[slices]

    def copy_from_host(self, slices: tuple[slice, ...], source: np.ndarray[Any, Any]) -> None:
        self.hidden[slices] = source


def on_device(array: np.ndarray[Any, Any]) -> tuple[Shard, Device]:
    device = Device(array.view(f"u{array.itemsize}"))
    box = Box.whole(array.shape)
    return Shard(array.dtype.name, array.shape, (Piece(box, device),)), device


@pytest.mark.parametrize("blocking", [False, True])
def test_memory_of_a_device_is_saved_and_filled(run: fwstore.Run, blocking: bool) -> None:
    array = RNG.random((300, 200))
    source, device = on_device(array.copy())
    with run.writer() as writer:
        for step in range(3):
            writer.save(step, {"w": source, "n": step}, blocking=blocking)
            device.hidden[: step * 100] += np.uint64(1)
    assert same_bits(run[0].load()["w"], array)
    changed = array.view(np.uint64)
    changed[:100] += 1
    target, filled = on_device(np.zeros((300, 200)))
    run[2].load(into={"w": target})
    assert np.array_equal(filled.hidden, changed)
    narrow, filled = on_device(np.zeros((300, 200), np.float32))
    run[2].load(into={"w": narrow}, dtype="cast")
    expected = changed.view(np.float64).astype(np.float32)
    assert same_bits(filled.hidden.view(np.float32), expected)
