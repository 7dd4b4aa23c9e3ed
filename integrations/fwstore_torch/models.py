"""Modules as parts of a run.

Invariant: the state of a module has the names that its tensors have without any wrapping.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fwstore import InvalidInput, Unsupported
from fwstore_torch.saved import SavedPart

_WRAPPING_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})


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

    def destination(self, saved: SavedPart) -> Any:
        """Return the live tensors and the saved plain values.

        Raises:
            InvalidInput: Names are missing or unexpected, or the model has no memory yet.
        """
        state = self.state()
        here = {name for name, value in state.items() if isinstance(value, torch.Tensor)}
        there = {str(path[0]) for path in saved.tensors}
        saved.check_names(missing=here - there, unexpected=there - here)
        if any(state[name].is_meta for name in here & there):
            raise InvalidInput(
                f"model {self._name!r} is still on the meta device: call model.to_empty(device=...) and "
                "fill what is not saved before resuming"
            )
        plain = {n: saved.skeleton[n] for n in state.keys() - here if n in saved.skeleton}
        return {name: state[name] for name in here & there} | plain

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
