"""One part of a checkpoint, as far as it must be known to offer a destination for it.

Invariant: a filled state has a tensor of this process wherever the saved state had one, and the saved plain
values everywhere else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fwstore import ForeignValue, InvalidInput, TensorPath, TensorSlot
from fwstore_torch.tensors import NAMES, adapter

_LISTED_MAX = 8


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """Element type and global shape of a saved tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SavedPart:
    """A part of a checkpoint before its tensors are read.

    Attributes:
        name: The part; its key in the checkpoint.
        skeleton: Its state as the leader saved it, with a slot in place of every tensor.
        tensors: All its tensors by their path within the part, those of every rank and tied ones too.
        strict: Whether names must match one to one.
    """

    name: str
    skeleton: Any
    tensors: Mapping[TensorPath, SavedTensor]
    strict: bool = True

    @property
    def spread(self) -> bool:
        """Whether ranks held tensors that the leader did not know, as the stages of a pipeline do."""
        return any(not _is_shown(self.skeleton, path) for path in self.tensors)

    def filled(self, offered: Any) -> Any:
        """Return the saved state with the offered tensors in their slots and new ones in the others."""
        return _Filling(self).fill(self.skeleton, offered, ())

    def check_names(self, *, missing: Iterable[str], unexpected: Iterable[str]) -> None:
        """Refuse names that do not match, unless the load is not strict.

        Raises:
            InvalidInput: Some name is missing, or unexpected though all ranks hold the same names.
        """
        problems = [
            f"{title}: {', '.join(found[:_LISTED_MAX])}"
            + (" ..." if len(found) > _LISTED_MAX else "")
            for title, found in (
                ("missing in the checkpoint", sorted(missing)),
                ("only in the checkpoint", [] if self.spread else sorted(unexpected)),
            )
            if found
        ]
        if problems and self.strict:
            raise InvalidInput(
                f"part {self.name!r} does not fit its checkpoint; " + "; ".join(problems)
            )


class _Filling:
    """Fills one skeleton and remembers new tensors, so that those that were tied are tied again."""

    def __init__(self, saved: SavedPart) -> None:
        self._saved = saved
        self._made: dict[TensorPath, Any] = {}

    def fill(self, value: Any, offered: Any, path: TensorPath) -> Any:
        if isinstance(value, TensorSlot):
            return self._tensor(value, offered, path)
        if isinstance(value, ForeignValue):
            return adapter.revive(value) if value.kind == adapter.kind else value
        if type(value) in (dict, OrderedDict):
            named = offered if isinstance(offered, dict) else {}
            return type(value)(
                (k, self.fill(v, named.get(k), (*path, k))) for k, v in value.items()
            )
        if type(value) in (list, tuple):
            fits = type(offered) is type(value) and len(offered) == len(value)
            beside = offered if fits else [None] * len(value)
            pairs = enumerate(zip(value, beside, strict=True))
            return type(value)(self.fill(v, o, (*path, i)) for i, (v, o) in pairs)
        return value

    def _tensor(self, slot: TensorSlot, offered: Any, path: TensorPath) -> Any:
        if isinstance(offered, torch.Tensor | np.ndarray):
            return offered
        # Ties to another part are not kept: each part has its own memory.
        tied = slot.alias is not None and slot.alias[0] == self._saved.name
        first = slot.alias[1:] if slot.alias is not None and tied else path
        if first not in self._made:
            saved = self._saved.tensors[path]
            made = adapter.allocate(NAMES[saved.dtype], saved.shape)
            self._made[first] = made.numpy() if slot.kind == "numpy" else made
        return self._made[first]


def _is_shown(skeleton: Any, path: TensorPath) -> bool:
    found = skeleton
    for key in path:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            return False
    return isinstance(found, TensorSlot)
