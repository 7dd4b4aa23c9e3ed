"""Parts are known by names that wrapping does not change, and loading changes no bit of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fwstore.base.errors import InvalidInput, Unsupported, UnsupportedValue
from fwstore.checkpoint.tree import flatten, tensor_slots
from fwstore.format.state import decode_state, encode_state
from fwstore_torch.models import ModelPart, canonical_name
from fwstore_torch.optimizers import OptimizerPart
from fwstore_torch.parts import Part, PerRank, make_parts
from fwstore_torch.saved import SavedPart, SavedTensor

Model = Callable[[], nn.Module]


def make_model(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(4, 2, generator=generator)).square().sum().backward()
        optimizer.step()


def transfer(source: Part, target: Part, *, strict: bool = True) -> None:
    """Save one part and load it into another, by way of the stored form of the plain state."""
    skeleton, tensors = flatten({"part": source.state()})
    every = {p[1:]: tensors[s.alias or p].clone() for p, s in tensor_slots(skeleton)}
    described = {p: SavedTensor(t.dtype, tuple(t.shape)) for p, t in every.items()}
    saved = SavedPart("part", decode_state(encode_state(skeleton))["part"], described, strict)
    wanted = target.destination(saved)
    shown, destinations = flatten(wanted)
    for path, _ in tensor_slots(shown):
        if path in destinations:
            destinations[path].detach().copy_(every[path])
    target.load(wanted)


def same(left: Any, right: Any) -> bool:
    a, first = flatten(left)
    b, second = flatten(right)
    return (
        encode_state(a) == encode_state(b)
        and list(first) == list(second)
        and all(
            torch.equal(first[p], second[p]) and first[p].dtype == second[p].dtype for p in first
        )
    )


@pytest.mark.parametrize("kind", ["plain", "compiled"])
def test_a_model_loads_under_any_wrapping(kind: str) -> None:
    source, target = make_model(), make_model()
    before = {name: value.data_ptr() for name, value in target.state_dict().items()}
    wrapped = torch.compile(target, backend="eager") if kind == "compiled" else target
    assert isinstance(wrapped, nn.Module)
    transfer(ModelPart("m", source), ModelPart("m", wrapped))
    assert same(dict(source.state_dict()), dict(target.state_dict()))
    assert {name: value.data_ptr() for name, value in target.state_dict().items()} == before
    assert canonical_name("_orig_mod.0._checkpoint_wrapped_module.weight") == "0.weight"


def test_only_trainable_parameters_are_saved_on_request() -> None:
    source, target = make_model(), make_model()
    for model in (source, target):
        model[0].requires_grad_(requires_grad=False)  # type: ignore[index]  # a Sequential
    frozen = target.state_dict()["0.weight"].clone()
    part = ModelPart("m", source, trainable_only=True)
    assert "0.weight" not in part.state()
    assert {"1.running_mean", "2.weight"} <= part.state().keys()
    transfer(part, ModelPart("m", target, trainable_only=True))
    assert torch.equal(target.state_dict()["0.weight"], frozen)
    assert torch.equal(target.state_dict()["2.weight"], source.state_dict()["2.weight"])


def test_names_that_differ_are_listed_unless_the_load_is_lenient() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3, bias=False)
    with pytest.raises(InvalidInput, match="only in the checkpoint: bias"):
        transfer(ModelPart("m", source), ModelPart("m", target))
    with pytest.raises(InvalidInput, match="missing in the checkpoint: bias"):
        transfer(ModelPart("m", target), ModelPart("m", source))
    transfer(ModelPart("m", source), ModelPart("m", target), strict=False)
    assert torch.equal(source.weight, target.weight)


class Remembers(nn.Linear):
    note = "fresh"

    def get_extra_state(self) -> Any:
        return {"note": self.note}

    def set_extra_state(self, state: Any) -> None:
        self.note = state["note"]


def test_extra_states_of_modules_come_back() -> None:
    source, target = Remembers(1, 1), Remembers(1, 1)
    source.note = "saved"
    transfer(ModelPart("m", source), ModelPart("m", target))
    assert target.note == "saved"


def test_models_without_memory_or_names_are_refused() -> None:
    with torch.device("meta"):
        meta = nn.Linear(2, 3)
    with pytest.raises(InvalidInput, match="to_empty"):
        transfer(ModelPart("m", nn.Linear(2, 3)), ModelPart("m", meta))

    class FullyShardedDataParallel(nn.Linear):
        pass

    with pytest.raises(Unsupported, match="fully_shard"):
        ModelPart("m", FullyShardedDataParallel(1, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1),
        torch.optim.Adafactor,
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
    ],
    ids=["adamw", "momentum", "sgd", "adafactor", "tensor-lr"],
)
def test_an_optimizer_goes_on_bit_for_bit(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    source, target = make_model(), make_model()
    first, second = make(source.parameters()), make(target.parameters())
    train(source, first)
    shared, _ = make_parts({"model": source, "optimizer": first})
    there, _ = make_parts({"model": target, "optimizer": second})
    for name in shared:
        transfer(shared[name], there[name])
        assert same(shared[name].state(), there[name].state())
    train(source, first, 1)
    train(target, second, 1)
    assert same(shared["model"].state(), there["model"].state())


def test_states_follow_names_through_another_order_of_parameters() -> None:
    source, target = make_model(), make_model()
    first = torch.optim.Adam(source.parameters())
    second = torch.optim.Adam(list(target.parameters())[::-1])
    train(source, first)
    transfer(
        make_parts({"m": source, "o": first})[0]["o"],
        make_parts({"m": target, "o": second})[0]["o"],
    )
    for here, there in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(first.state[here]["exp_avg"], second.state[there]["exp_avg"])


def test_states_keep_a_dtype_that_differs_from_the_parameter() -> None:
    source, target = nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).bfloat16()
    first, second = torch.optim.Adam(source.parameters()), torch.optim.Adam(target.parameters())
    for parameter in source.parameters():
        first.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": torch.rand(parameter.shape)}
    parts = [make_parts({"m": m, "o": o})[0]["o"] for m, o in ((source, first), (target, second))]
    transfer(*parts)
    assert second.state[target.weight]["exp_avg"].dtype == torch.float32
    assert torch.equal(
        second.state[target.weight]["exp_avg"], first.state[source.weight]["exp_avg"]
    )


def test_an_optimizer_of_several_models_is_keyed_by_part_and_name() -> None:
    left, right = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*left.parameters(), *right.parameters()], lr=1.0)
    shared, _ = make_parts({"left": left, "right": right, "o": optimizer})
    names = shared["o"].state()["param_groups"][0]["params"]
    assert names == ["left.weight", "left.bias", "right.weight", "right.bias"]


def test_changed_groups_are_refused() -> None:
    model = make_model()
    names = ModelPart("m", model).parameter_names()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    one = OptimizerPart("o", torch.optim.SGD(model.parameters(), lr=1.0), names)
    two = OptimizerPart(
        "o", torch.optim.SGD([{"params": weights}, {"params": others}], lr=1.0), names
    )
    swapped = OptimizerPart(
        "o", torch.optim.SGD([{"params": others}, {"params": weights}], lr=1.0), names
    )
    with pytest.raises(InvalidInput, match="2 parameter groups"):
        transfer(two, one)
    with pytest.raises(InvalidInput, match="changed their group"):
        transfer(two, swapped)
    fewer = OptimizerPart("o", torch.optim.SGD(weights, lr=1.0), names)
    with pytest.raises(InvalidInput, match="only in the checkpoint"):
        transfer(one, fewer)


def test_schedulers_scalers_and_averages_come_back() -> None:
    def fresh() -> dict[str, Any]:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return {
            "model": model,
            "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=20),
            "average": torch.optim.swa_utils.AveragedModel(model),
            "scaler": torch.amp.GradScaler("cpu"),
            "optimizer": optimizer,
        }

    source, target = fresh(), fresh()
    train(source["model"], source["optimizer"])
    source["scheduler"].step()
    source["average"].update_parameters(source["model"])
    here, there = make_parts(source)[0], make_parts(target)[0]
    for name in source:
        transfer(here[name], there[name])
        assert same(here[name].state(), there[name].state()), name
    assert target["scheduler"].get_last_lr() == source["scheduler"].get_last_lr()


def test_ties_within_a_part_are_tied_again() -> None:
    class Average:
        def __init__(self, **state: Any) -> None:
            self.state = state

        def state_dict(self) -> dict[str, Any]:
            return self.state

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.state = state_dict

    weight = torch.rand(3)
    source, target = Average(a=weight, b=[weight], kind=torch.float16), Average()
    transfer(make_parts({"x": source})[0]["x"], make_parts({"x": target})[0]["x"])
    assert target.state["kind"] is torch.float16
    assert target.state["a"] is target.state["b"][0]
    assert torch.equal(target.state["a"], weight)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"_x": nn.Linear(1, 1)}, "cannot name"),
        ({"": nn.Linear(1, 1)}, "cannot name"),
        ({"x": {"a": 1}}, "without state_dict"),
        ({"o": torch.optim.SGD([torch.ones(1)], lr=1.0)}, "belong to no model"),
    ],
    ids=["reserved", "empty", "plain", "orphan"],
)
def test_unusable_parts_are_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_parts(parts)


class Loader:
    def __init__(self, position: int = 0) -> None:
        self.position = position

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


def test_parts_of_each_rank_need_a_rule_for_other_worlds() -> None:
    states = [{"position": 10}, {"position": 20}]
    loader = Loader()
    PerRank(loader).load("loader", states.__getitem__, 2, (1, 2))
    assert loader.position == 20
    with pytest.raises(InvalidInput, match="reshard"):
        PerRank(loader).load("loader", states.__getitem__, 2, (0, 3))

    def spread(every: list[Any], rank: int, world_size: int) -> Any:
        return {"position": sum(state["position"] for state in every) // world_size + rank}

    PerRank(loader, reshard=spread).load("loader", states.__getitem__, 2, (2, 3))
    assert loader.position == 12
    _, own = make_parts({"loader": PerRank(loader)})
    assert own["loader"].state() == {"position": 12}


def test_loaders_of_torchdata_and_those_derived_from_them_differ_from_rank_to_rank() -> None:
    theirs = type("StatefulDataLoader", (Loader,), {"__module__": "torchdata.stateful_dataloader"})
    derived = type("Mine", (theirs,), {"__module__": "trainer"})
    for kind in (theirs, derived):
        shared, own = make_parts({"loader": kind(3)})
        assert not shared
        assert own["loader"].state() == {"position": 3}


def test_a_scheduler_with_a_function_is_named_by_its_key() -> None:
    class Odd(Loader):
        def state_dict(self) -> dict[str, Any]:
            return {"lr_lambdas": [print]}

    (part,) = make_parts({"scheduler": Odd()})[0].values()
    with pytest.raises(UnsupportedValue, match="lr_lambdas/0"):
        encode_state(flatten(part.state())[0])
