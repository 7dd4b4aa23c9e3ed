"""What a repository should hold: a few dicts that know every checkpoint by the value it was made of.

Invariant: a model changes only by what was acknowledged, or by what retention was allowed to take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fwstore
from support.oracle import frozen, same, trained

ROWS, COLUMNS = 12, 64


@dataclass(frozen=True)
class Content:
    """What one checkpoint holds.

    Attributes:
        value: Determines every bit of it.
        plain: Whether the values beside the tensors are there; files of tensors do not have them.
    """

    value: int
    plain: bool = True

    def state(self) -> dict[str, Any]:
        """The whole state."""
        tensors = {"frozen": frozen(ROWS, COLUMNS), "trained": trained(self.value, ROWS, COLUMNS)}
        return {**tensors, "value": self.value} if self.plain else dict(tensors)

    def share(self, rank: int, world_size: int) -> dict[fwstore.TensorPath, fwstore.Shard]:
        """What a rank holds of its tensors."""
        layout = fwstore.Layout((world_size,), (fwstore.Split(0),), tuple(range(world_size)))
        return {
            (name,): _shard(tensor, layout, rank)
            for name, tensor in self.state().items()
            if name != "value"
        }

    def skeleton(self) -> dict[str, Any]:
        """What is not a tensor, with slots where tensors stand."""
        slots = {name: fwstore.TensorSlot("numpy") for name in ("frozen", "trained")}
        return {**slots, "value": self.value}

    def equals(self, state: Any) -> bool:
        """Return whether a state is this content, bit by bit."""
        wanted = self.state()
        if not self.plain:
            # An import is loaded as tensors of torch, beside what the file said of itself.
            state = {name: np.asarray(state[name]) for name in wanted}
        return same(state, wanted)


def _shard(tensor: np.ndarray[Any, Any], layout: fwstore.Layout, rank: int) -> fwstore.Shard:
    boxes = layout.boxes(tensor.shape, rank)
    pieces = tuple(fwstore.Piece(box, tensor[box.slices()].copy()) for box in boxes)
    return fwstore.Shard(tensor.dtype.name, tensor.shape, pieces, layout)


@dataclass
class ModelRun:
    """One run.

    Attributes:
        offer: Checkpoints on offer, by step.
        pins: Steps that are pinned, by the token that lifts the pin.
        lent: Steps that forks have borrowed, and may still need.
    """

    offer: dict[int, Content] = field(default_factory=dict)
    pins: dict[str, int] = field(default_factory=dict)
    lent: set[int] = field(default_factory=set)

    @property
    def newest(self) -> int:
        """The newest step."""
        return max(self.offer)

    def take(self, found: set[int], at_most: dict[int, Content], kept: set[int]) -> None:
        """Take over which steps are on offer, after something that may have added or removed some.

        Args:
            found: The steps on offer.
            at_most: What may be on offer.
            kept: What must be, with whatever is pinned.

        Raises:
            AssertionError: More or less is there.
        """
        assert kept | (set(self.pins.values()) & set(self.offer)) <= found <= set(at_most)
        self.offer = {step: at_most[step] for step in sorted(found)}
