"""What one rank brings to a save, and how the ranks agree on who else holds the same tensors.

Invariant: after `settle`, every rank knows the same set of holders for every tensor, so the pure ownership
plan gives every cell to exactly one rank. The agreement runs only when the set of tensors changed;
otherwise a save needs no message before its bytes are staged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec
from msgspec import structs

from fwstore.base.errors import Conflict, Corrupt
from fwstore.checkpoint.coordinator import Coordinator, wait_for
from fwstore.checkpoint.messages import (
    catalogue_key,
    outcome_key,
    part_key,
    verdict_key,
    vote_key,
)
from fwstore.checkpoint.outcome import read_outcome, read_part
from fwstore.checkpoint.reserved import is_reserved
from fwstore.checkpoint.shard import Shard
from fwstore.codec.hashing import ContentHash
from fwstore.format.paths import TensorPath, encode_path
from fwstore.plan.layout import Layout, Split
from fwstore.sched.runtime import Runtime

_encode = msgspec.msgpack.Encoder().encode
_unkeyed = ContentHash()


class _Group(msgspec.Struct, frozen=True, array_like=True):
    """A tensor that the ranks of one mesh divide, when the mesh is only a part of the job.

    Attributes:
        path: The stored path.
        mesh: Extent of the mesh.
        placements: (dim, factor, outer) of every split, None for replicas.
        ranks: The ranks of the mesh.
    """

    path: bytes
    mesh: tuple[int, ...]
    placements: tuple[tuple[int, int, bool] | None, ...]
    ranks: tuple[int, ...]


_Holders = list[tuple[bytes, list[int]]]
"""The leader's answer: which ranks posted the list of tensors of a digest."""

_decode_holders = msgspec.msgpack.Decoder(_Holders).decode
_decode_claims = msgspec.msgpack.Decoder(tuple[list[bytes], list[_Group]]).decode


@dataclass(frozen=True)
class Catalogue:
    """The tensors of one rank in the order of their stored paths.

    Attributes:
        tensors: The shard of every tensor, sorted by stored path.
        aliases: Paths that share the storage of another path.
        claims: The tensors that ranks outside this rank's layout may hold too, encoded: those it holds whole
            and without a layout, and those that a part of the job divides.
        digest: Names `claims`; equal digests mean equal claims.
    """

    tensors: Mapping[TensorPath, Shard]
    aliases: Mapping[TensorPath, TensorPath]
    claims: bytes
    digest: bytes


def make_catalogue(
    shards: Mapping[TensorPath, Shard],
    aliases: Mapping[TensorPath, TensorPath],
    world_size: int = 1,
) -> Catalogue:
    """Return the catalogue of a rank of a job."""
    encoded = _in_order(tuple(shards))
    whole = [name for name, path in encoded if _is_common(path, shards[path])]
    groups = [
        _group(name, layout)
        for name, path in encoded
        if (layout := shards[path].layout) is not None and len(layout.ranks) < world_size
    ]
    claims = _encode((whole, groups))
    return Catalogue(
        tensors={path: shards[path] for _, path in encoded},
        aliases=dict(aliases),
        claims=claims,
        digest=_unkeyed.digest(claims),
    )


@lru_cache(maxsize=4)
def _in_order(paths: tuple[TensorPath, ...]) -> tuple[tuple[bytes, TensorPath], ...]:
    """Return paths with their stored forms, sorted by those: from save to save they are mostly the same."""
    return tuple(sorted((encode_path(path), path) for path in paths))


def _group(name: bytes, layout: Layout) -> _Group:
    placements = tuple(None if p is None else (p.dim, p.factor, p.outer) for p in layout.placements)
    return _Group(name, layout.mesh, placements, layout.ranks)


def _stacked(groups: Sequence[_Group]) -> Layout:
    """Return the layout of a tensor that several meshes divide alike: they are replicas of each other."""
    first = groups[0]
    splits = tuple(None if p is None else Split(*p) for p in first.placements)
    ranks = tuple(rank for group in groups for rank in group.ranks)
    return Layout((len(groups), *first.mesh), (None, *splits), ranks)


def _is_common(path: TensorPath, shard: Shard) -> bool:
    if shard.layout is not None or len(shard.pieces) != 1 or is_reserved(path):
        return False
    # A piece lies within the shape, so one of its sizes is the whole.
    return shard.pieces[0].box.sizes == shard.shape


class Agreement:
    """Remembers which ranks hold which replicated tensors, and renews that when it changes.

    Attributes:
        voted_in: The last save in which this rank took part in an exchange.
    """

    def __init__(self, coordinator: Coordinator, runtime: Runtime) -> None:
        self._coordinator = coordinator
        self._runtime = runtime
        self._digest: bytes | None = None
        self.voted_in = 0
        self._holders: dict[bytes, tuple[int, ...]] = {}
        self._stacks: dict[bytes, Layout] = {}
        self._everyone = Layout.replicated(tuple(range(coordinator.world_size)))

    def forget(self, save: int) -> None:
        """Ask for a new agreement if the last one is no younger than a save that failed."""
        if self.voted_in <= save:
            self._digest = None

    def settle(self, catalogue: Catalogue, save: int) -> Catalogue | None:
        """Return the catalogue with layouts that name all holders of every tensor.

        Returns:
            None when another rank skipped the save.

        Raises:
            Conflict: Some rank saw no change where another did; the next save agrees anew.
            Unavailable: A rank did not answer in time.
            FwstoreError: What made another rank fail.
        """
        if catalogue.digest != self._digest and not self._renew(catalogue, save):
            return None
        tensors = {path: self._settled(path, shard) for path, shard in catalogue.tensors.items()}
        return replace(catalogue, tensors=tensors)

    def _settled(self, path: TensorPath, shard: Shard) -> Shard:
        if _is_common(path, shard):
            ranks = self._holders.get(encode_path(path)) if self._holders else None
            return shard.with_layout(self._everyone if ranks is None else Layout.replicated(ranks))
        stack = self._stacks.get(encode_path(path)) if self._stacks else None
        return shard if stack is None else shard.with_layout(stack)

    def _renew(self, catalogue: Catalogue, save: int) -> bool:
        """Agree with the other ranks; False when one of them skipped the save."""
        self._digest = None
        self._holders, self._stacks = {}, {}
        self.voted_in = save
        if self._coordinator.world_size > 1:
            holders = self._exchange(catalogue, save)
            if holders is None:
                return False
            if len(holders) > 1:
                self._merge(holders, save)
        self._digest = catalogue.digest
        return True

    def _exchange(self, catalogue: Catalogue, save: int) -> _Holders | None:
        here = self._coordinator
        deadline = self._runtime.clock.monotonic() + self._runtime.limits.commit_timeout_s
        here.put(catalogue_key(save, catalogue.digest), catalogue.claims)
        here.put(vote_key(save, here.rank), catalogue.digest)
        if here.rank == 0:
            holders = self._gather(save, deadline)
            if holders is not None:
                here.put(verdict_key(save), _encode(holders))
            return holders
        # The leader that fails, skips, or saw no change itself, ends the save instead.
        keys = (verdict_key(save), outcome_key(save))
        key, message = wait_for(here, keys, self._runtime, deadline=deadline)
        if key == verdict_key(save):
            return _decode_holders(message)
        if read_outcome(message) is not None:
            raise Corrupt(f"save {save} was committed before its ranks agreed on its tensors")
        return None

    def _gather(self, save: int, deadline: float) -> _Holders | None:
        votes: dict[bytes, list[int]] = {}
        for rank in range(self._coordinator.world_size):
            keys = (vote_key(save, rank), part_key(save, rank))
            key, message = wait_for(
                self._coordinator, keys, self._runtime, deadline=deadline, sender=rank
            )
            if key == vote_key(save, rank):
                votes.setdefault(message, []).append(rank)
            elif read_part(message, rank) is None:
                return None
            else:
                raise Conflict(
                    f"rank 0 has other tensors than before, rank {rank} has not; the next save settles it"
                )
        return sorted(votes.items())

    def _merge(self, agreed: _Holders, save: int) -> None:
        holders: dict[bytes, list[int]] = {}
        groups: dict[bytes, set[_Group]] = {}
        for digest, ranks in agreed:
            message = self._coordinator.poll(catalogue_key(save, digest))
            if message is None:
                raise Corrupt(f"the list of tensors of ranks {ranks[:8]} was lost on its way")
            whole, divided = _decode_claims(message)
            for encoded in whole:
                holders.setdefault(encoded, []).extend(ranks)
            for group in divided:
                groups.setdefault(group.path, set()).add(group)
        self._holders = {encoded: tuple(sorted(ranks)) for encoded, ranks in holders.items()}
        self._stacks = _stack_all(groups)


def _stack_all(groups: Mapping[bytes, set[_Group]]) -> dict[bytes, Layout]:
    """Return one layout for every tensor that several meshes divide alike; equal ones are one object."""
    layouts: dict[tuple[_Group, ...], Layout] = {}
    stacks: dict[bytes, Layout] = {}
    for encoded, found in groups.items():
        alike = tuple(sorted((structs.replace(g, path=b"") for g in found), key=lambda g: g.ranks))
        ranks = [rank for group in alike for rank in group.ranks]
        # Meshes that divide a tensor in different ways are not replicas; the coverage check refuses them.
        alone = len(alike) == 1 or len({(g.mesh, g.placements) for g in alike}) > 1
        if not alone and len(set(ranks)) == len(ranks):
            stacks[encoded] = layouts.setdefault(alike, _stacked(alike))
    return stacks
