"""What a training run consists of, as states that fwstore stores and loads.

Invariant: the names in a part's state do not depend on how the model is wrapped, compiled or spread over
ranks, so a state saved under one wrapping loads under any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fwstore.base.errors import InvalidInput, Unsupported

_WRAPPING_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
_LISTED_MAX = 8


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of a checkpoint, as far as a part needs to know it to offer a destination."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Part(Protocol):
    """One named part of a run."""

    def state(self) -> Any:
        """Return the state to save; tensors are the live ones."""
        ...

    def destination(self, saved: Mapping[tuple[Any, ...], SavedTensor]) -> Any:
        """Return a tree with the tensors to load into; saved tensors that it lacks are made anew."""
        ...

    def load(self, state: Any) -> None:
        """Take over a state whose tensors have been loaded."""
        ...


class Stateful(Protocol):
    """Whatever has a state: schedulers, scalers, averages, loaders."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over a state."""
        ...


class PerRank:
    """Wraps a part whose state differs from rank to rank, such as a loader with its own workers.

    Args:
        part: Its `state_dict` must be plain values.
        reshard: Called when the world has changed, with the states of all saved ranks in order, this rank
            and the new world size; returns the state of this rank. Without it such a resume is refused,
            because samples would silently be repeated or lost.
    """

    def __init__(
        self, part: Stateful, reshard: Callable[[list[Any], int, int], Any] | None = None
    ) -> None:
        self._part = part
        self._reshard = reshard

    def state(self) -> Any:
        """Return the state of this rank."""
        return self._part.state_dict()

    def load(
        self, name: str, states: Callable[[int], Any], saved_world: int, here: tuple[int, int]
    ) -> None:
        """Take over the state of this rank.

        Args:
            name: The part, for messages.
            states: Gives the saved state of a rank.
            saved_world: How many ranks saved.
            here: Rank and size of this world.

        Raises:
            InvalidInput: The world has changed and there is no rule for that.
        """
        rank, world_size = here
        if saved_world == world_size:
            self._part.load_state_dict(states(rank))
        elif self._reshard is None:
            raise InvalidInput(
                f"part {name!r} was saved per rank by {saved_world} ranks and cannot resume on "
                f"{world_size}: pass PerRank(part, reshard=...) that says how"
            )
        else:
            every = [states(saved) for saved in range(saved_world)]
            self._part.load_state_dict(self._reshard(every, rank, world_size))


class StatefulPart:
    """Anything with `state_dict` and `load_state_dict`; plain values are those of rank 0."""

    def __init__(self, stateful: Stateful) -> None:
        self._stateful = stateful

    def state(self) -> Any:
        """Return its state."""
        return self._stateful.state_dict()

    def destination(self, saved: Mapping[tuple[Any, ...], SavedTensor]) -> Any:  # noqa: ARG002 - its own tensors say it all
        """Return its tensors."""
        return self._stateful.state_dict()

    def load(self, state: Any) -> None:
        """Hand it the loaded state."""
        self._stateful.load_state_dict(state)


class ModelPart:
    """A module, under the names that its parameters have without any wrapping.

    Args:
        name: The part, for messages.
        model: The module; DistributedDataParallel and torch.compile are looked through.
        trainable_only: Leave out parameters that do not require gradients.
    """

    def __init__(self, name: str, model: nn.Module, *, trainable_only: bool = False) -> None:
        self._name = name
        self._trainable_only = trainable_only
        self.module = unwrap(model)
        _refuse_flat_parameters(name, self.module)

    def state(self) -> dict[str, Any]:
        """Return parameters, persistent buffers and extra states."""
        frozen = self._frozen()
        named = self.module.state_dict()
        return {n: v for k, v in named.items() if (n := canonical_name(k)) not in frozen}

    def destination(self, saved: Mapping[tuple[Any, ...], SavedTensor]) -> Any:
        """Return the live tensors.

        Raises:
            InvalidInput: Names are missing or unexpected, or the model has no memory yet.
        """
        state = self.state()
        tensors = {n for n, v in state.items() if isinstance(v, torch.Tensor)}
        known = {path[0] for path in saved}
        _refuse_differences(self._name, missing=tensors - known, unexpected=known - state.keys())
        if any(state[name].is_meta for name in tensors):
            raise InvalidInput(
                f"model {self._name!r} is still on the meta device: call model.to_empty(device=...) and "
                "fill what is not saved before resuming"
            )
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Run the module's own loading, for extra states and hooks; its tensors hold the values already."""
        original = {canonical_name(key): key for key in self.module.state_dict()}
        known = {original[name]: value for name, value in state.items()}
        self.module.load_state_dict(known, strict=False)

    def parameter_names(self) -> dict[int, str]:
        """Return the name of every parameter by its identity; tied ones have their first name."""
        named = self.module.named_parameters()
        return {id(parameter): canonical_name(name) for name, parameter in named}

    def _frozen(self) -> frozenset[str]:
        if not self._trainable_only:
            return frozenset()
        named = self.module.named_parameters(remove_duplicate=False)
        return frozenset(canonical_name(n) for n, p in named if not p.requires_grad)


class OptimizerPart:
    """An optimizer, keyed by the names of its parameters, so that it loads under any order of them.

    Args:
        name: The part, for messages.
        optimizer: Any torch optimizer.
        names: The name of every parameter by its identity.
    """

    def __init__(self, name: str, optimizer: Optimizer, names: Mapping[int, str]) -> None:
        self._name = name
        self._optimizer = optimizer
        self._names = names

    def state(self) -> dict[str, Any]:
        """Return states and groups with names in place of positions."""
        names = self._ordered_names()
        packed = self._optimizer.state_dict()
        state = {names[k] if isinstance(k, int) else k: v for k, v in packed["state"].items()}
        groups = [{**g, "params": [names[i] for i in g["params"]]} for g in packed["param_groups"]]
        return {**packed, "state": state, "param_groups": groups}

    def destination(self, saved: Mapping[tuple[Any, ...], SavedTensor]) -> Any:
        """Return for every state that is shaped like its parameter a tensor spread like its parameter."""
        parameters = dict(zip(self._ordered_names(), self._parameters(), strict=True))
        state: dict[str, dict[str, torch.Tensor]] = {}
        for path, tensor in saved.items():
            if len(path) == 3 and path[0] == "state" and path[1] in parameters:
                parameter = parameters[path[1]]
                if tensor.shape == tuple(parameter.shape):
                    fresh = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False)
                    state.setdefault(path[1], {})[path[2]] = fresh
        return {"state": state}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state by names.

        Raises:
            InvalidInput: The saved parameters or groups are not those of this optimizer.
        """
        names = self._ordered_names()
        position = {name: number for number, name in enumerate(names)}
        saved = {name for group in state["param_groups"] for name in group["params"]}
        _refuse_differences(self._name, missing=set(names) - saved, unexpected=saved - set(names))
        states = {position.get(k, k): v for k, v in state["state"].items()}
        groups = self._regrouped(state["param_groups"], position)
        try:
            self._optimizer.load_state_dict({**state, "state": states, "param_groups": groups})
        except ValueError as error:
            raise InvalidInput(
                f"the saved optimizer {self._name!r} does not fit: {error}"
            ) from error
        self._restore_dtypes(states)

    def _regrouped(
        self, saved: Sequence[dict[str, Any]], position: Mapping[str, int]
    ) -> list[dict[str, Any]]:
        """Return the saved groups with their parameters in this optimizer's order, as torch expects."""
        groups = []
        here = self._optimizer.param_groups
        for number, group in enumerate(saved):
            order = sorted(position[name] for name in group["params"])
            mine = len(here[number]["params"]) if number < len(here) else -1
            if len(order) != mine:
                raise InvalidInput(
                    f"group {number} of optimizer {self._name!r} had {len(order)} parameters when it was "
                    f"saved and has {max(mine, 0)} now"
                )
            groups.append({**group, "params": order})
        return groups

    def _restore_dtypes(self, states: Mapping[Any, Any]) -> None:
        # torch casts loaded states to the dtype of their parameter; a resume must change no bit.
        for number, parameter in enumerate(self._parameters()):
            for key, value in (states.get(number) or {}).items():
                current = self._optimizer.state[parameter][key]
                if isinstance(value, torch.Tensor) and current.dtype != value.dtype:
                    self._optimizer.state[parameter][key] = value.to(current.device)

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _ordered_names(self) -> list[str]:
        return [self._names[id(parameter)] for parameter in self._parameters()]


def make_parts(
    given: Mapping[str, Any], *, trainable_only: bool = False
) -> tuple[dict[str, Part], dict[str, PerRank]]:
    """Return the parts that are shared by all ranks and those that each rank has for itself.

    Raises:
        InvalidInput: A name or a part is unusable.
    """
    for name in given:
        if type(name) is not str or not name or name.startswith("_"):
            raise InvalidInput(
                f"{name!r} cannot name a part: use text that does not begin with '_'"
            )
    models = {
        name: ModelPart(name, part, trainable_only=trainable_only)
        for name, part in given.items()
        if isinstance(part, nn.Module)
    }
    own = {name: _per_rank(part) for name, part in given.items() if _is_per_rank(part)}
    shared = {
        name: models.get(name) or _make_part(name, part, models)
        for name, part in given.items()
        if name not in own
    }
    return shared, own


def _make_part(name: str, part: Any, models: Mapping[str, ModelPart]) -> Part:
    if isinstance(part, Optimizer):
        return OptimizerPart(name, part, _names_for(name, part, models))
    if not callable(getattr(part, "state_dict", None)) or not callable(
        getattr(part, "load_state_dict", None)
    ):
        raise InvalidInput(
            f"part {name!r} is a {type(part).__name__} without state_dict() and load_state_dict()"
        )
    return StatefulPart(part)


def _names_for(name: str, optimizer: Optimizer, models: Mapping[str, ModelPart]) -> dict[int, str]:
    """Return names for the parameters of an optimizer, with the part as prefix if it spans several."""
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    owners = {
        part: found for part, m in models.items() if wanted & (found := m.parameter_names()).keys()
    }
    names: dict[int, str] = {}
    for part, found in owners.items():
        for parameter, own in found.items():
            names.setdefault(parameter, own if len(owners) == 1 else f"{part}.{own}")
    if wanted - names.keys():
        raise InvalidInput(
            f"optimizer {name!r} has {len(wanted - names.keys())} parameters that belong to no model among "
            "the parts: add the model, or make the optimizer after wrapping the model"
        )
    return names


def _is_per_rank(part: Any) -> bool:
    return isinstance(part, PerRank) or type(part).__module__.partition(".")[0] == "torchdata"


def _per_rank(part: Any) -> PerRank:
    return part if isinstance(part, PerRank) else PerRank(part)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel and torch.compile."""
    while True:
        inner = (
            model.module
            if isinstance(model, DistributedDataParallel)
            else getattr(model, "_orig_mod", None)
        )
        if inner is None:
            return model
        model = inner


def canonical_name(name: str) -> str:
    """Return a parameter's name without the segments that wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPING_SEGMENTS)


def _refuse_flat_parameters(name: str, module: nn.Module) -> None:
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in module.modules()):
        raise Unsupported(
            f"model {name!r} uses FullyShardedDataParallel, whose flat parameters have no stable names: use "
            "fully_shard, or save through fwstore_torch.StorageWriter"
        )


def _refuse_differences(name: str, *, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    problems = [
        f"{title}: {', '.join(found[:_LISTED_MAX])}" + (" ..." if len(found) > _LISTED_MAX else "")
        for title, found in (
            ("missing in the checkpoint", sorted(missing)),
            ("only in the checkpoint", sorted(unexpected)),
        )
        if found
    ]
    if problems:
        raise InvalidInput(f"part {name!r} does not fit its checkpoint; " + "; ".join(problems))
