"""When the messages of a save may be forgotten, so that a long job does not fill its coordinator.

Invariant: a message is dropped only when no rank will look for it any more. What ranks say before they
contribute goes once the leader has the contributions of all; an outcome, and whatever is left of a save that
failed or was skipped, once every rank has said that the save has ended there. A slow rank keeps it till then.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from fwstore.base.errors import Corrupt, FwstoreError
from fwstore.checkpoint.coordinator import Coordinator
from fwstore.checkpoint.messages import (
    catalogue_key,
    ended_key,
    outcome_key,
    part_key,
    verdict_key,
    vote_key,
)
from fwstore.sched import Lock

_SAVES_PER_NOTE = 16


class _Note(msgspec.Struct, frozen=True, array_like=True):
    """What a rank says of its saves: all up to the newest have ended, but for those that run."""

    newest: int = 0
    running: tuple[int, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Note).decode


class Endings:
    """Numbers the saves of one rank and notes their ends; on the leader it drops what they said.

    Args:
        coordinator: Where the messages are.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._lock = Lock()
        self._newest = 0
        self._running: set[int] = set()
        # By save whose messages are still there: whether that is its outcome alone.
        self._kept: dict[int, bool] = {}

    def begin(self) -> int:
        """Return the number of the next save, which runs from now on."""
        with self._lock:
            self._newest += 1
            self._running.add(self._newest)
            if self._coordinator.rank == 0:
                self._kept[self._newest] = False
            return self._newest

    def contributed(self, save: int, *, agreed: bool) -> None:
        """Forget what led to the contributions of a save; the leader has those of all ranks.

        Args:
            save: Its number.
            agreed: The ranks agreed in it on the holders of tensors.
        """
        # What cannot be dropped now is dropped with the outcome.
        with suppress(FwstoreError):
            self._drop_contributions(save, agreed=agreed)
            with self._lock:
                self._kept[save] = True

    def end(self, save: int) -> None:
        """Take note that this rank neither sends nor looks for a message of a save any more."""
        with self._lock:
            self._running.discard(save)
            note = _Note(self._newest, tuple(self._running))
        if save % _SAVES_PER_NOTE:
            return
        # A channel that fails now is asked again after as many saves.
        with suppress(FwstoreError):
            if self._coordinator.rank:
                self._coordinator.put(ended_key(self._coordinator.rank), _encode(note))
            else:
                self._sweep(note)

    def _sweep(self, own: _Note) -> None:
        """Drop all messages of the saves that have ended on every rank."""
        notes = [own, *(self._note(rank) for rank in range(1, self._coordinator.world_size))]
        newest = min(note.newest for note in notes)
        running = {save for note in notes for save in note.running}
        with self._lock:
            kept = [(s, only) for s, only in self._kept.items() if s <= newest and s not in running]
        for save, outcome_only in kept:
            if not outcome_only:
                self._drop_contributions(save, agreed=True)
            self._coordinator.drop(outcome_key(save))
            with self._lock:
                self._kept.pop(save, None)

    def _note(self, rank: int) -> _Note:
        message = self._coordinator.poll(ended_key(rank))
        try:
            return _Note() if message is None else _decode(message)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"rank {rank} sent a malformed note of its saves: {error}") from error

    def _drop_contributions(self, save: int, *, agreed: bool) -> None:
        here = self._coordinator
        for rank in range(here.world_size):
            here.drop(part_key(save, rank))
            digest = here.poll(vote_key(save, rank)) if agreed else None
            if digest is not None:
                here.drop(catalogue_key(save, digest))
                here.drop(vote_key(save, rank))
        if agreed:
            here.drop(verdict_key(save))
