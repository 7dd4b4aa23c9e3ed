"""What one rank brings to a save, and how the ranks agree on who holds the tensors without a layout.

Invariant: after `agree`, every rank knows the same set of holders for every replicated tensor, so the
pure ownership plan gives every cell to exactly one rank. The agreement runs only when the set of
tensors changed; otherwise a save needs no message before its bytes are staged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from fwstore.base.errors import Conflict, Corrupt, Unavailable
from fwstore.checkpoint.coordinator import Coordinator, wait_for
from fwstore.checkpoint.reserved import is_reserved
from fwstore.checkpoint.shard import Shard
from fwstore.codec.hashing import ContentHash
from fwstore.format.paths import TensorPath, encode_path
from fwstore.plan.box import Box
from fwstore.plan.layout import Layout
from fwstore.sched.runtime import Runtime

_encode = msgspec.msgpack.Encoder().encode
_unkeyed = ContentHash()


class _Verdict(msgspec.Struct, frozen=True):
    """The leader's answer: who posted which list of tensors, or that a rank did not take part."""

    retry: bool
    holders: list[tuple[bytes, list[int]]]


_decode_verdict = msgspec.msgpack.Decoder(_Verdict).decode
_decode_paths = msgspec.msgpack.Decoder(list[bytes]).decode


@dataclass(frozen=True)
class Catalogue:
    """The tensors of one rank in the order of their stored paths.

    Attributes:
        tensors: The shard of every tensor, sorted by stored path.
        aliases: Paths that share the storage of another path.
        replicated: Stored paths of the tensors that this rank holds whole and without a layout.
        digest: Names `replicated`; equal digests mean equal lists.
    """

    tensors: Mapping[TensorPath, Shard]
    aliases: Mapping[TensorPath, TensorPath]
    replicated: tuple[bytes, ...]
    digest: bytes


def make_catalogue(
    shards: Mapping[TensorPath, Shard], aliases: Mapping[TensorPath, TensorPath]
) -> Catalogue:
    """Return the catalogue of a rank."""
    encoded = sorted((encode_path(path), path) for path in shards)
    replicated = tuple(name for name, path in encoded if _is_common(path, shards[path]))
    return Catalogue(
        tensors={path: shards[path] for _, path in encoded},
        aliases=dict(aliases),
        replicated=replicated,
        digest=_unkeyed.digest(_encode(replicated)),
    )


def _is_common(path: TensorPath, shard: Shard) -> bool:
    whole = Box.whole(shard.shape)
    if is_reserved(path):
        return False
    return shard.layout is None and len(shard.pieces) == 1 and shard.pieces[0].box == whole


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
        self._everyone = Layout.replicated(tuple(range(coordinator.world_size)))

    def forget(self) -> None:
        """Ask for a new agreement at the next save."""
        self._digest = None

    def settle(self, catalogue: Catalogue, save: int) -> Catalogue:
        """Return the catalogue with a layout for every tensor that several ranks hold whole.

        Raises:
            Conflict: Some rank saw no change where another did; the next save agrees anew.
            Unavailable: A rank did not answer in time.
        """
        if catalogue.digest != self._digest:
            self._renew(catalogue, save)
        layouts = {
            path: self._layout(encode_path(path))
            for path, shard in catalogue.tensors.items()
            if _is_common(path, shard)
        }
        tensors = {
            path: replace(shard, layout=layouts[path]) if path in layouts else shard
            for path, shard in catalogue.tensors.items()
        }
        return replace(catalogue, tensors=tensors)

    def _layout(self, encoded: bytes) -> Layout:
        ranks = self._holders.get(encoded)
        return self._everyone if ranks is None else Layout.replicated(ranks)

    def _renew(self, catalogue: Catalogue, save: int) -> None:
        self._digest = None
        self._holders = {}
        self.voted_in = save
        if self._coordinator.world_size > 1:
            verdict = self._exchange(catalogue, save)
            if verdict.retry:
                raise Conflict(
                    f"save {save} was dropped: the set of tensors changed on some ranks only; "
                    "the next save will settle who holds what"
                )
            if len(verdict.holders) > 1:
                self._holders = self._merge(verdict, save)
        self._digest = catalogue.digest

    def _exchange(self, catalogue: Catalogue, save: int) -> _Verdict:
        here = self._coordinator
        deadline = self._runtime.clock.monotonic() + self._runtime.limits.commit_timeout_s
        here.put(catalogue_key(save, catalogue.digest), _encode(catalogue.replicated))
        here.put(vote_key(save, here.rank), catalogue.digest)
        if here.rank == 0:
            here.put(verdict_key(save), _encode(self._gather(save, deadline)))
        _, message = wait_for(here, (verdict_key(save),), self._runtime, deadline=deadline)
        return _decode_verdict(message)

    def _gather(self, save: int, deadline: float) -> _Verdict:
        votes: dict[bytes, list[int]] = {}
        for rank in range(self._coordinator.world_size):
            try:
                key, digest = wait_for(
                    self._coordinator,
                    (vote_key(save, rank), part_key(save, rank)),
                    self._runtime,
                    deadline=deadline,
                )
            except Unavailable:
                return _Verdict(retry=True, holders=[])
            if key == part_key(save, rank):
                return _Verdict(retry=True, holders=[])
            votes.setdefault(digest, []).append(rank)
        return _Verdict(retry=False, holders=sorted(votes.items()))

    def _merge(self, verdict: _Verdict, save: int) -> dict[bytes, tuple[int, ...]]:
        holders: dict[bytes, list[int]] = {}
        for digest, ranks in verdict.holders:
            message = self._coordinator.poll(catalogue_key(save, digest))
            if message is None:
                raise Corrupt(f"the list of tensors of ranks {ranks[:8]} was lost on its way")
            for encoded in _decode_paths(message):
                holders.setdefault(encoded, []).extend(ranks)
        return {encoded: tuple(sorted(ranks)) for encoded, ranks in holders.items()}


def refuse_late_vote(coordinator: Coordinator, save: int) -> None:
    """Answer a rank that asks for an agreement which the leader does not take part in."""
    coordinator.put(verdict_key(save), _encode(_Verdict(retry=True, holders=[])))


def part_key(save: int, rank: int) -> str:
    """Coordinator key of a rank's contribution to a save."""
    return f"{save}/part/{rank}"


def vote_key(save: int, rank: int) -> str:
    """Coordinator key of the digest of a rank's list of replicated tensors."""
    return f"{save}/agree/{rank}"


def verdict_key(save: int) -> str:
    """Coordinator key of the leader's answer to the votes."""
    return f"{save}/agreed"


def outcome_key(save: int) -> str:
    """Coordinator key of the result of a save."""
    return f"{save}/outcome"


def catalogue_key(save: int, digest: bytes) -> str:
    """Coordinator key of a list of replicated tensors."""
    return f"{save}/catalogue/{digest.hex()}"
