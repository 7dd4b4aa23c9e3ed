"""Optimizers as parts of a run.

Invariant: a state is keyed by parameter names and never by positions, and loading changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fwstore import InvalidInput, TensorSlot
from fwstore_torch.saved import SavedPart


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

    def owned(self) -> Iterator[torch.Tensor]:
        """Yield what nothing but a step changes: trained parameters and their states.

        The forward pass may change a parameter that is not trained, such as a code book; and tensors in groups, such
        as learning rates, belong to schedulers.
        """
        yield from (p for p in self._parameters() if p.requires_grad)
        for state in self._optimizer.state.values():
            if isinstance(state, dict):
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def before_step(self, hook: Callable[[], None]) -> RemovableHandle:
        """Call a function before every step of the optimizer, until the handle is removed."""
        return self._optimizer.register_step_pre_hook(lambda *_: hook())

    def destination(self, saved: SavedPart) -> Any:
        """Return the saved state; what is shaped like its parameter is spread like its parameter.

        Raises:
            InvalidInput: The saved parameters are not those of this optimizer.
        """
        parameters = dict(zip(self._ordered_names(), self._parameters(), strict=True))
        grouped = {name for group in saved.skeleton["param_groups"] for name in group["params"]}
        stated = {str(path[1]) for path in saved.tensors if path[0] == "state"}
        saved.check_names(
            missing=parameters.keys() - grouped - stated, unexpected=grouped - parameters.keys()
        )
        offered: dict[str, dict[Any, torch.Tensor]] = {}
        for path, tensor in saved.tensors.items():
            parameter = parameters.get(str(path[1])) if path[0] == "state" else None
            if parameter is not None and tensor.shape == tuple(parameter.shape):
                fresh = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False)
                offered.setdefault(str(path[1]), {})[path[2]] = fresh
        return replace(saved, skeleton=_skeleton_for(saved, parameters)).filled({"state": offered})

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state by names.

        Raises:
            InvalidInput: The saved groups are not those of this optimizer.
        """
        position = {name: number for number, name in enumerate(self._ordered_names())}
        states = {position.get(key, key): value for key, value in state["state"].items()}
        packed = {**state, "state": states, "param_groups": self._regrouped(state["param_groups"])}
        try:
            self._optimizer.load_state_dict(packed)
        except ValueError as error:
            raise InvalidInput(
                f"the saved optimizer {self._name!r} does not fit: {error}"
            ) from error
        self._restore_dtypes(states)

    def _regrouped(self, saved: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the saved groups with this optimizer's parameters, in its order, as torch expects."""
        here = self._optimizer.param_groups
        if len(saved) != len(here):
            raise InvalidInput(
                f"optimizer {self._name!r} had {len(saved)} parameter groups when it was saved and has "
                f"{len(here)} now"
            )
        groups: list[dict[str, Any]] = []
        first = 0
        for number, group in enumerate(here):
            names = {self._names[id(parameter)] for parameter in group["params"]}
            others = [n for i, g in enumerate(saved) if i != number for n in g["params"]]
            if moved := sorted(names.intersection(others)):
                raise InvalidInput(
                    f"parameters of optimizer {self._name!r} have changed their group: {moved[:8]}"
                )
            last = first + len(names)
            groups.append({**saved[number], "params": list(range(first, last))})
            first = last
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


def _skeleton_for(saved: SavedPart, parameters: Container[str]) -> dict[str, Any]:
    """Return the saved skeleton with the states of this rank's parameters only, whoever saved them."""
    grouped = {name for group in saved.skeleton["param_groups"] for name in group["params"]}
    state: dict[Any, Any] = {
        key: value
        for key, value in saved.skeleton["state"].items()
        if key in parameters or key not in grouped
    }
    for path in saved.tensors:
        if path[0] == "state" and path[1] in parameters and path[1] not in saved.skeleton["state"]:
            state.setdefault(path[1], {})[path[2]] = TensorSlot("torch")
    return {**saved.skeleton, "state": state}
