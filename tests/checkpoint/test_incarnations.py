"""What an earlier incarnation of a job left at the channel is never taken for an answer of this one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import InvalidInput, PermissionDenied, Unavailable
from fwstore.checkpoint.coordinator import LocalCoordinator
from fwstore.store.base import Store
from support.coordinators import Board, ThreadJob, outcomes
from support.faults import FaultyStore


def state(rank: int) -> dict[str, Any]:
    return {"common": np.arange(100.0), f"own-{rank}": np.full(10, rank)}


def test_a_channel_at_which_another_job_met_is_refused(url: str) -> None:
    board = Board()
    board.put(0, "job", b"what an earlier start of the job announced")
    with fwstore.open(url) as repo, pytest.raises(InvalidInput, match="of its own"):
        repo.run("run").writer(coordinator=board.channels(2)[0])


def test_messages_of_an_earlier_term_are_not_heard(url: str) -> None:
    with ThreadJob(url, 2) as job:
        job.save(0, [state(0), state(1)])
        left = dict(job.board.values)
    with ThreadJob(url, 2) as job:
        stale = {key: value for key, value in left.items() if key != "job"}
        assert stale
        job.board.values.update(stale)
        found = job.save(0, [state(0), state(1)])
        assert [checkpoint.term for checkpoint in found if checkpoint is not None] == [2, 2]


def test_a_rank_that_cannot_read_the_base_does_not_save_with_grids_of_its_own(url: str) -> None:
    with ThreadJob(url, 2) as job:
        job.save(0, [state(0), state(1)])

    def broken(inner: Store) -> Store:
        return FaultyStore(inner, lambda op: "fail" if op.key.endswith("/root") else None)

    board = Board()
    repositories = [fwstore.open(url) for _ in range(2)]
    repositories[1].store = broken(repositories[1].store)
    writers = outcomes(
        [
            lambda r=repository, c=channel: r.run("run").writer(coordinator=c)  # type: ignore[misc]
            for repository, channel in zip(repositories, board.channels(2), strict=True)
        ]
    )
    assert isinstance(writers[0], fwstore.Writer)
    assert isinstance(writers[1], Unavailable)
    for repository in repositories:
        repository.close()


class Deaf(LocalCoordinator):
    """A channel that takes no outcome and lets nobody delete."""

    def put(self, key: str, value: bytes) -> None:
        if key.endswith("/outcome"):
            raise Unavailable("connection reset by peer")
        super().put(key, value)

    def drop(self, key: str) -> None:
        raise PermissionDenied(f"{key} may not be deleted")


def test_a_save_that_was_committed_is_one_whatever_becomes_of_the_channel(run: fwstore.Run) -> None:
    with run.writer(coordinator=Deaf()) as writer:
        checkpoint = writer.save(0, state(0)).result()
        assert checkpoint == run[0]
        assert writer.save(1, state(0)).result() == run[1]


def test_what_the_ranks_said_of_a_failed_save_is_forgotten(url: str) -> None:
    with ThreadJob(url, 2) as job:
        job.save(0, [state(0), state(1)])
        # Rank 1 brings a common tensor of another length than rank 0.
        other = state(1) | {"common": np.arange(99.0)}
        assert all(isinstance(e, InvalidInput) for e in job.try_save(1, [state(0), other]))
        assert not [key for key in job.board.values if "/part/" in key]
