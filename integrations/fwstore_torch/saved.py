"""One part of a checkpoint, as far as it must be known to offer a destination for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fwstore import InvalidInput, TensorPath
from fwstore.checkpoint.adapter import default_adapters
from fwstore.checkpoint.tree import flatten, tensor_slots, unflatten
from fwstore_torch.tensors import NAMES

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
        name: The part, for messages.
        skeleton: Its state as the leader saved it, with a slot in place of every tensor.
        tensors: All its tensors by their path within the part, those of every rank.
        strict: Whether names must match one to one.
    """

    name: str
    skeleton: Any
    tensors: Mapping[TensorPath, SavedTensor]
    strict: bool = True

    @property
    def spread(self) -> bool:
        """Whether ranks held tensors that the leader did not know, as the stages of a pipeline do."""
        return bool(self.tensors.keys() - {path for path, _ in tensor_slots(self.skeleton)})

    def filled(self, offered: Any) -> Any:
        """Return the saved state with the offered tensors in their slots and new ones in the others."""
        shown, tensors = flatten(offered)
        every = {path: tensors[slot.alias or path] for path, slot in tensor_slots(shown)}
        for path, slot in tensor_slots(self.skeleton):
            if slot.alias is None and path not in every:
                saved = self.tensors[path]
                adapter = default_adapters().of_kind(slot.kind)
                every[path] = adapter.allocate(NAMES[saved.dtype], saved.shape)
        return unflatten(self.skeleton, every)

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
