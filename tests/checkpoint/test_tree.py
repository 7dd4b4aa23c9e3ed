"""A state taken apart and put together is the same state, with the same ties."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from fwstore.base.errors import InvalidInput, NotFound, UnsupportedValue
from fwstore.checkpoint.adapter import Adapters
from fwstore.checkpoint.tree import assign, flatten, tensor_slots, unflatten
from fwstore.format.state import STATE_DEPTH_MAX, TensorSlot, decode_state, encode_state

ADAPTERS = Adapters(discover=False)


def test_containers_order_and_plain_values_come_back() -> None:
    first, second = np.arange(4.0), np.zeros((0, 2), np.int8)
    tree = {
        "model": OrderedDict([("z", first), ("a", [second, 1, (np.array(3), "x")])]),
        7: {("plain", 1): {2, 3}, None: b"x"},
    }
    skeleton, tensors = flatten(tree, ADAPTERS)
    assert list(tensors) == [("model", "z"), ("model", "a", 0), ("model", "a", 2, 0)]
    again = unflatten(decode_state(encode_state(skeleton)), tensors, ADAPTERS)
    assert list(again["model"]) == ["z", "a"]
    assert type(again["model"]) is OrderedDict
    assert again["model"]["z"] is first
    assert again["model"]["a"][0] is second
    assert again[7] == tree[7]


def test_ties_are_one_tensor_and_tied_again() -> None:
    weight = np.ones((2, 3))
    tree = {"embed": weight, "head": weight[:], "part": weight[:1], "other": weight.copy()}
    skeleton, tensors = flatten(tree, ADAPTERS)
    assert set(tensors) == {("embed",), ("part",), ("other",)}
    assert skeleton["head"] == TensorSlot("numpy", ("embed",))
    again = unflatten(skeleton, tensors, ADAPTERS)
    assert again["head"] is again["embed"]


def test_slots_are_listed_with_paths_and_aliases() -> None:
    weight = np.ones(2)
    skeleton, _ = flatten({"a": [weight, {"b": weight}], ("no", 1): "plain"}, ADAPTERS)
    assert list(tensor_slots(skeleton)) == [
        (("a", 0), TensorSlot("numpy")),
        (("a", 1, "b"), TensorSlot("numpy", ("a", 0))),
    ]


def test_dotted_and_nested_keys_are_different_tensors() -> None:
    _, tensors = flatten({"a.b": np.ones(1), "a": {"b": np.zeros(1)}, "a/b": np.ones(2)}, ADAPTERS)
    assert set(tensors) == {("a.b",), ("a", "b"), ("a/b",)}


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"x": {("a", 1): np.ones(1)}}, "x/"),
        ({"x": {True: np.ones(1)}}, "x/True"),
        ({"x": {1.5: [np.ones(1)]}}, "x/1.5/0"),
    ],
)
def test_a_tensor_below_an_odd_key_is_refused(tree: Any, path: str) -> None:
    with pytest.raises(UnsupportedValue, match="neither text nor") as caught:
        flatten(tree, ADAPTERS)
    assert path in str(caught.value)


def test_bare_tensors_cycles_depth_and_long_paths_are_refused() -> None:
    with pytest.raises(UnsupportedValue, match="bare"):
        flatten(np.ones(1), ADAPTERS)
    loop: list[Any] = []
    loop.append({"again": loop})
    with pytest.raises(UnsupportedValue, match="contains itself"):
        flatten({"loop": loop}, ADAPTERS)
    deep: Any = 1
    for _ in range(STATE_DEPTH_MAX + 1):
        deep = {"k": deep}
    with pytest.raises(UnsupportedValue, match="deeper"):
        flatten(deep, ADAPTERS)
    with pytest.raises(InvalidInput):
        flatten({"k" * 5000: np.ones(1)}, ADAPTERS)


def test_objects_with_attributes_are_left_for_the_encoder_to_refuse() -> None:
    class Thing:
        def __init__(self) -> None:
            self.weight = np.ones(2)

    skeleton, tensors = flatten({"thing": Thing()}, ADAPTERS)
    assert not tensors
    with pytest.raises(UnsupportedValue, match="thing"):
        encode_state(skeleton)


def test_a_missing_tensor_is_named() -> None:
    skeleton, _ = flatten({"a": [np.ones(1)]}, ADAPTERS)
    with pytest.raises(NotFound, match="a/0"):
        unflatten(skeleton, {}, ADAPTERS)


def test_assign_replaces_in_place() -> None:
    tree: dict[str, Any] = {"a": [1, {"b": 2}], "t": (1,)}
    assign(tree, ("a", 1, "b"), 3)
    assert tree["a"][1]["b"] == 3
    with pytest.raises(InvalidInput):
        assign(tree, ("t", 0), 2)
    with pytest.raises(NotFound):
        assign(tree, ("a", 5), 2)
    with pytest.raises(NotFound):
        assign(tree, ("x", "y"), 2)
