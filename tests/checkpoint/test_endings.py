"""What ranks said of saves that have ended is forgotten, and nothing that a slow rank still waits for."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import Conflict, InvalidInput, PermissionDenied, UnsupportedValue
from fwstore.checkpoint.coordinator import LocalCoordinator
from fwstore.checkpoint.endings import Endings
from fwstore.checkpoint.messages import (
    catalogue_key,
    ended_key,
    outcome_key,
    part_key,
    verdict_key,
    vote_key,
)
from support.coordinators import Board, ThreadJob

RANKS = 3
MESSAGES_MAX = 3 * 32 * (3 * RANKS + 2)


class Ranks:
    """Ranks that say what real ones say in a save, and end it when they are told to."""

    def __init__(self) -> None:
        self.board = Board()
        self.channels = self.board.channels(RANKS)
        self.endings = [Endings(channel) for channel in self.channels]
        self.running: list[list[int]] = [[] for _ in range(RANKS)]

    def begin(self, *, agreed: bool, gathered: bool) -> None:
        """Every rank begins a save, the leader comes to its outcome, and nobody has heard it yet."""
        for rank, channel in enumerate(self.channels):
            save = self.endings[rank].begin()
            self.running[rank].append(save)
            if agreed:
                channel.put(vote_key(save, rank), b"digest %d" % rank)
                channel.put(catalogue_key(save, b"digest %d" % rank), b"tensors")
            channel.put(part_key(save, rank), b"part")
        save = self.running[0][-1]
        if agreed:
            self.channels[0].put(verdict_key(save), b"holders")
        self.channels[0].put(outcome_key(save), b"outcome")
        if gathered:
            self.endings[0].contributed(save, agreed=agreed)

    def end(self, rank: int, index: int = 0) -> None:
        """A rank has heard how a save ended; all that is still to be heard is there."""
        self.endings[rank].end(self.running[rank].pop(index))
        for saves in self.running:
            assert all(self.board.poll(outcome_key(save)) for save in saves)


@pytest.mark.parametrize("gathers", [0.0, 0.9, 1.0])
def test_ten_thousand_saves_leave_few_messages(gathers: float) -> None:
    chance, ranks, most = random.Random(1), Ranks(), 0
    for _ in range(10_000):
        ranks.begin(agreed=chance.random() < 0.5, gathered=chance.random() < gathers)
        for rank in range(RANKS):
            # At most one save uploads and one is staged; one that is skipped ends before those.
            while len(ranks.running[rank]) > chance.randint(0, 2):
                ranks.end(rank, chance.choice([0, -1]))
        most = max(most, len(ranks.board.values))
    assert most < MESSAGES_MAX


def test_a_slow_rank_finds_what_the_others_have_left_behind() -> None:
    ranks = Ranks()
    for _ in range(200):
        ranks.begin(agreed=True, gathered=False)
        for rank in (0, 1):
            ranks.end(rank)
    assert len(ranks.running[2]) == 200
    assert len(ranks.board.values) == 200 * (3 * RANKS + 2) + 1
    while ranks.running[2]:
        ranks.end(2)
    for _ in range(16):
        ranks.begin(agreed=True, gathered=False)
        for rank in range(RANKS):
            ranks.end(RANKS - 1 - rank)
    assert {key for key in ranks.board.values if not key.startswith("2")} == {"ended/1", "ended/2"}


class Locked(LocalCoordinator):
    """A channel that for a time lets nobody delete."""

    locked = True

    def drop(self, key: str) -> None:
        if self.locked:
            raise PermissionDenied(f"{key} may not be deleted")
        super().drop(key)


def test_what_could_not_be_dropped_is_dropped_later() -> None:
    channel = Locked()
    endings = Endings(channel)
    for number in range(1, 65):
        channel.locked = number < 64
        save = endings.begin()
        channel.put(part_key(save, 0), b"part")
        channel.put(outcome_key(save), b"outcome")
        endings.contributed(save, agreed=False)
        endings.end(save)
    assert not channel._values


def test_a_malformed_note_drops_nothing() -> None:
    ranks = Ranks()
    for rank in (1, 2):
        ranks.channels[rank].put(ended_key(rank), b"\xc1")
    for _ in range(16):
        ranks.begin(agreed=False, gathered=False)
        ranks.end(0)
    assert len(ranks.board.values) == 16 * (RANKS + 1) + 2


def test_a_job_whose_saves_change_fail_and_are_skipped_leaves_few_messages(url: str) -> None:
    def state(rank: int, step: int) -> dict[str, Any]:
        # Another set of tensors in most saves; in some of them on one rank only, and a value that no rank can store.
        odd: dict[str, Any] = {"odd": object()} if step % 7 == 3 + rank else {}
        alone = {f"n{step}": np.zeros(3)} if step % 5 == rank else {}
        return {"w": np.zeros(8), f"w{step // 2}": np.ones(4), **odd, **alone}

    with ThreadJob(url, 2) as job:
        for step in range(90):
            found = job.try_save(step, [state(rank, step) for rank in job.ranks])
            assert all(
                isinstance(f, fwstore.Checkpoint | Conflict | InvalidInput | UnsupportedValue)
                for f in found
            )
        left = [key for key in job.board.values if key != "job"]
    assert len({key.split("/")[1] for key in left}) <= 33
