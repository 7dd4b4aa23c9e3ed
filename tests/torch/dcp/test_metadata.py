"""Names are those that DCP's own planners give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from fwstore import InvalidInput, TensorSlot
from fwstore_torch.dcp_metadata import build_state, is_derived, is_whole, name_leaves, object_path

TENSOR = torch.ones(1)
STATES: list[dict[Any, Any]] = [
    {},
    {"a": TENSOR, "b": {"c": [1, 2], "d": {}}},
    {"a": [TENSOR, 1, {"x": TENSOR}], "b": [[1], [[TENSOR]]]},
    {"a": (TENSOR, 1), "b": (1, 2), "c": [(TENSOR,)]},
    {1: {2: TENSOR}, "s": {"k": None}},
    {"a.b": 1, "a": {"c": 2}},
]


def slotted(value: Any) -> Any:
    """Return the state as a snapshot has it: with slots for tensors."""
    if isinstance(value, torch.Tensor):
        return TensorSlot("torch")
    if isinstance(value, dict):
        return {key: slotted(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(slotted(element) for element in value)
    return value


@pytest.mark.parametrize("state", STATES)
def test_names_equal_those_of_the_flattening_planner(state: dict[Any, Any]) -> None:
    flat, mapping = flatten_state_dict(state)
    names = name_leaves(slotted(state))
    assert names.mapping == mapping
    assert {name: leaf.value for name, leaf in names.leaves.items()} == slotted(flat)


def test_paths_of_leaves_keep_the_type_of_their_keys() -> None:
    names = name_leaves({1: {2: TensorSlot("torch")}})
    assert names.leaves["1.2"].path == (1, 2)
    assert names.mapping["1.2"] == ("1", "2")


def test_two_values_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"'a\.b'"):
        name_leaves({"a.b": 1, "a": {"b": 2}})


@pytest.mark.parametrize("state", [STATES[1], STATES[2], STATES[5]])
def test_what_a_flattening_planner_saves_is_derived(state: dict[Any, Any]) -> None:
    flat, mapping = flatten_state_dict(state)
    paths = {name: object_path(name, mapping) for name in flat}
    rebuilt = build_state({paths[name]: slotted(value) for name, value in flat.items()})
    assert is_derived(rebuilt, paths, mapping)
    assert not is_derived(rebuilt, paths, None)
    assert not is_derived(rebuilt, paths, {**mapping, "more": ("more",)})


def test_names_without_a_mapping_stand_at_the_top() -> None:
    assert object_path("a.b", None) == ("a.b",)
    assert object_path("a.b", {"a.b": ("a", "b")}) == ("a", "b")
    assert object_path("a.b", {"a.b": (1.5,)}) == ("a.b",)
    assert object_path("a.b", "data of a custom planner") == ("a.b",)


def test_whole_tensors() -> None:
    assert is_whole((4, 4), [(2, 4), (2, 4)])
    assert not is_whole((4, 4), [(2, 4)])
    assert is_whole((), [()])
    assert is_whole((0, 3), [])
