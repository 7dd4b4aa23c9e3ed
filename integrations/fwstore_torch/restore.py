"""Loads a checkpoint into the parts of a run, on any world.

Invariant: parts change only after every byte was read and verified; tensors that the part already has are
filled in place and spread as they are here, the others are made whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fwstore import Checkpoint, InvalidInput, TensorPath
from fwstore_torch.parts import Part, PerRank
from fwstore_torch.rng import restore_rng, seed_rng
from fwstore_torch.saved import SavedPart, SavedTensor
from fwstore_torch.tensors import DTYPES

SAVER_KEY = "_saver"


@dataclass(frozen=True)
class Restore:
    """What is loaded and where to.

    Attributes:
        shared: Parts that all ranks share.
        own: Parts that every rank has for itself.
        rank: This rank.
        world_size: The ranks of this job.
        rng: Whether random generators are restored.
    """

    shared: Mapping[str, Part]
    own: Mapping[str, PerRank]
    rank: int
    world_size: int
    rng: bool = True

    def run(self, checkpoint: Checkpoint, *, strict: bool = True) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: Any checkpoint that has the parts.
            strict: Parts and names must match one to one; else what does not match is left as it is.

        Raises:
            InvalidInput: A part does not fit; the message says how.
        """
        skeleton = checkpoint.state()
        about = skeleton.get(SAVER_KEY) if isinstance(skeleton, dict) else None
        names = [name for name in self.shared if name in skeleton]
        missing = self.shared.keys() - names | self.own.keys() - set(_own_names(about))
        if strict and missing:
            raise InvalidInput(
                f"{checkpoint} lacks the parts {sorted(missing)}: resume(strict=False) leaves them as "
                "they are"
            )
        unwanted = _part_names(skeleton, about) - self.shared.keys() - self.own.keys()
        if strict and unwanted:
            raise InvalidInput(
                f"{checkpoint} has the parts {sorted(unwanted)}, which this Saver lacks and would lose: add "
                "them, or resume(strict=False) leaves them out"
            )
        saved = _saved_parts(checkpoint, {name: skeleton[name] for name in names}, strict=strict)
        wanted = {name: self.shared[name].destination(saved[name]) for name in names}
        # What a part does not want was settled above; the rest must be filled to the last tensor.
        checkpoint.load(into=wanted, strict=False)
        for name in names:
            self.shared[name].load(wanted[name])
        if about is not None:
            self._load_own(checkpoint, about)

    def _load_own(self, checkpoint: Checkpoint, about: Mapping[str, Any]) -> None:
        saved_world = about["world_size"]
        here = (self.rank, self.world_size)
        for name, part in self.own.items():
            if name in about["per_rank"]:
                part.load(name, _OwnStates(checkpoint, name), saved_world, here)
        if not self.rng or not about["rng"]:
            return
        if self.rank < saved_world:
            restore_rng(checkpoint.per_rank(self.rank)["rng"])
        else:
            seed_rng(checkpoint.per_rank(0)["rng"], self.rank)


@dataclass(frozen=True)
class _OwnStates:
    """Gives the saved state of one part of any rank."""

    checkpoint: Checkpoint
    name: str

    def __call__(self, rank: int) -> Any:
        return self.checkpoint.per_rank(rank)["parts"][self.name]


def _own_names(about: Mapping[str, Any] | None) -> Sequence[str]:
    return () if about is None else about["per_rank"]


def _part_names(skeleton: Mapping[str, Any], about: Mapping[str, Any] | None) -> set[str]:
    """Return the parts that a Saver saved; what others saved beside a part is no part."""
    if about is None:
        return set()
    return {*skeleton, *about["per_rank"]} - {SAVER_KEY, *about["frozen"]}


def _saved_parts(
    checkpoint: Checkpoint, skeletons: Mapping[str, Any], *, strict: bool
) -> dict[str, SavedPart]:
    tensors: dict[str, dict[TensorPath, SavedTensor]] = {name: {} for name in skeletons}
    for path, tensor in checkpoint.tensors.items():
        if not isinstance(path, str) and path[0] in tensors:
            tensors[str(path[0])][path[1:]] = SavedTensor(DTYPES[tensor.dtype], tensor.shape)
    return {n: SavedPart(n, skeletons[n], tensors[n], strict) for n in skeletons}
