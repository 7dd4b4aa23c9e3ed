"""What a training run consists of, as states that fwstore stores and loads.

Invariant: the names in a part's state do not depend on how the model is wrapped, compiled or spread over
ranks, so a state saved under one wrapping loads under any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from fwstore import InvalidInput
from fwstore_torch.models import ModelPart
from fwstore_torch.optimizers import OptimizerPart
from fwstore_torch.saved import SavedPart


class Part(Protocol):
    """One named part of a run."""

    def state(self) -> Any:
        """Return the state to save; tensors are the live ones."""
        ...

    def destination(self, saved: SavedPart) -> Any:
        """Return the tree to load: saved plain values, and the tensors to fill."""
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

    def destination(self, saved: SavedPart) -> Any:
        """Return the saved state with its own tensors where it has them."""
        return saved.filled(self._stateful.state_dict())

    def load(self, state: Any) -> None:
        """Hand it the loaded state."""
        self._stateful.load_state_dict(state)


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
    # Loaders of one's own derive from those of torchdata.
    kinds = {kind.__module__.partition(".")[0] for kind in type(part).__mro__}
    return isinstance(part, PerRank) or "torchdata" in kinds


def _per_rank(part: Any) -> PerRank:
    return part if isinstance(part, PerRank) else PerRank(part)
