"""Ranks of one start of a job meet, whatever earlier starts left and however each of them counts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from fwstore import Coordinator, InvalidInput, Limits, Unavailable
from fwstore.base.config import Environment
from fwstore.checkpoint.coordinator import LocalCoordinator, World
from fwstore.checkpoint.rendezvous import make_coordinator, meet
from fwstore.format.keys import LineageKeys
from fwstore.sched.runtime import Runtime, system_runtime
from fwstore.store.memory import MemoryStore
from support.coordinators import Board, HashStore, outcomes, together
from support.hasty import hasty_runtime

KEYS = LineageKeys("run", 1)
JOB = {"FWSTORE_JOB": "job"}


def runtime_of(variables: Mapping[str, str]) -> Runtime:
    runtime = system_runtime(Limits(commit_timeout_s=30.0))
    return replace(runtime, environment=Environment(dict(variables)))


def start(store: MemoryStore, *environments: Mapping[str, str]) -> list[Coordinator]:
    """Return the channel of every rank of a job, given the environment of each."""
    ranks = enumerate(environments)
    return together(
        [
            partial(
                make_coordinator,
                runtime_of(e),
                World(rank=r, world_size=len(environments)),
                store,
                KEYS,
            )
            for r, e in ranks
        ]
    )


def check_heard(channels: Sequence[Coordinator], value: bytes) -> None:
    assert all(channel.poll("job") is None for channel in channels)
    channels[0].put("job", value)
    assert all(channel.poll("job") == value for channel in channels)


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    store = HashStore()
    internal = SimpleNamespace(is_initialized=lambda: True, _get_default_store=lambda: store)
    monkeypatch.setitem(sys.modules, "torch.distributed.distributed_c10d", internal)
    return store


def test_writers_of_one_job_have_each_a_channel_of_their_own(process_group: HashStore) -> None:
    store = MemoryStore(hasty_runtime())
    for number in range(3):
        check_heard(start(store, {}, {}, {}), b"%d" % number)
    assert process_group.values
    assert not list(store.list(""))


def test_agents_that_count_restarts_differently_meet(process_group: HashStore) -> None:
    # An agent counts the failures of its own node only, so the counts of two nodes differ after one of them.
    store = MemoryStore(hasty_runtime())
    for counts in (("0", "0"), ("0", "1"), ("2", "1")):
        environments = [{"TORCHELASTIC_RESTART_COUNT": count} for count in counts]
        check_heard(start(store, *environments), b"term")
    assert process_group.values


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FWSTORE_JOB": "abc", "SLURM_JOB_ID": "7"}, "abc"),
        ({"TORCHELASTIC_RUN_ID": "e/1 @", "TORCHELASTIC_RESTART_COUNT": "3"}, "e_1__"),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, "7"),
        ({"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "7"}, "7"),
    ],
)
def test_jobs_without_torch_meet_in_the_store(variables: dict[str, str], expected: str) -> None:
    store = MemoryStore(hasty_runtime())
    for _ in range(2):
        check_heard(start(store, variables, variables), b"1")
    assert all(found.key.startswith(KEYS.coordination(expected)) for found in store.list(""))


def test_a_rank_that_comes_before_the_leader_does_not_take_an_older_start_for_its_own() -> None:
    board = Board()
    runtime = runtime_of({})
    old = together([partial(meet, channel, runtime) for channel in board.channels(2)])
    old[0].put("job", b"old")
    early = replace(runtime, limits=Limits(commit_timeout_s=0.2))
    leader, follower = board.channels(2)
    with pytest.raises(Unavailable, match="rank 0"):
        meet(follower, early)
    check_heard(together([partial(meet, c, runtime) for c in (follower, leader)])[::-1], b"new")


def test_a_rank_that_does_not_come_is_named_to_the_leader_at_the_deadline() -> None:
    runtime = replace(runtime_of({}), limits=Limits(commit_timeout_s=0.2))
    here = Board().channels(3)
    found = outcomes([partial(meet, channel, runtime) for channel in here[:2]])
    assert isinstance(found[0], Unavailable)
    assert "rank 2" in str(found[0])


def test_jobs_that_cannot_meet_are_told() -> None:
    store = MemoryStore(hasty_runtime())
    for variables in ({}, {"TORCHELASTIC_RUN_ID": "none"}):
        with pytest.raises(InvalidInput, match="FWSTORE_JOB"):
            make_coordinator(runtime_of(variables), World(rank=0, world_size=2), store, KEYS)
    single = make_coordinator(runtime_of({}), World(rank=0, world_size=1), store, KEYS)
    assert isinstance(single, LocalCoordinator)
