"""Ranks that stand at different steps agree on one that none has passed, and nobody waits for the dead."""

from __future__ import annotations

import pytest

from fwstore_torch.rounds import Decision, Rounds

PATIENCE_S = 30.0


class Shared:
    """A coordinator of many ranks in one process."""

    def __init__(self, values: dict[str, bytes], rank: int, world_size: int) -> None:
        self._values = values
        self.rank = rank
        self.world_size = world_size

    def put(self, key: str, value: bytes) -> None:
        self._values[key] = value

    def poll(self, key: str) -> bytes | None:
        return self._values.get(key)

    def drop(self, key: str) -> None:
        self._values.pop(key, None)


class ManualClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Job:
    """Ranks whose watchers are moved by hand; no thread is started."""

    def __init__(self, steps: list[int], due: list[bool] | None = None) -> None:
        self.clock = ManualClock()
        values: dict[str, bytes] = {}
        self.due = due or []
        self.ranks = [
            Rounds(Shared(values, rank, len(steps)), PATIENCE_S, self.clock, self.is_due)
            for rank in range(len(steps))
        ]
        for rank, step in zip(self.ranks, steps, strict=True):
            rank._step = step

    def is_due(self) -> bool:
        return bool(self.due) and self.due.pop()

    def settle(self, *alive: int) -> None:
        for _ in range(4):
            for rank in alive or range(len(self.ranks)):
                self.ranks[rank].tick()


def steps_met(rank: Rounds, start: int, last: int) -> list[tuple[int, str]]:
    return [(s, d.reason) for s in range(start, last + 1) for d in rank.arrive(s)]


@pytest.mark.parametrize("asking", [[0], [2], [0, 1, 2], [1, 1]])
def test_all_stop_at_the_step_after_the_furthest(asking: list[int]) -> None:
    job = Job([4, 5, 3])
    for rank in asking:
        job.ranks[rank].ask_stop(15)
    job.settle()
    assert steps_met(job.ranks[0], 5, 8) == [(6, "stop")]
    assert steps_met(job.ranks[1], 6, 8) == [(6, "stop")]
    assert steps_met(job.ranks[2], 4, 8) == [(6, "stop")]


def test_a_signal_to_a_stopping_job_changes_nothing() -> None:
    job = Job([1, 1])
    job.ranks[1].ask_stop(10)
    job.settle()
    job.ranks[0].ask_stop(15)
    job.settle()
    decided = job.ranks[0].arrive(2)
    assert decided == [Decision("stop", 2, 10, PATIENCE_S)]
    assert not job.ranks[0].arrive(3)


def test_a_timed_save_and_a_stop_follow_each_other() -> None:
    job = Job([7, 8], due=[True])
    job.settle()
    job.ranks[1].ask_stop(15)
    job.settle()
    assert steps_met(job.ranks[0], 8, 12) == [(9, "due"), (9, "stop")]
    assert steps_met(job.ranks[1], 9, 12) == [(9, "due"), (9, "stop")]


def test_a_timed_save_that_is_decided_is_not_decided_again() -> None:
    # The save is due until its step is reached, and ranks pass that step one after the other.
    job = Job([7, 7])
    job.is_due = lambda: True  # type: ignore[method-assign]
    for rank in job.ranks:
        rank._is_due = job.is_due
    job.settle()
    assert steps_met(job.ranks[1], 8, 8) == [(8, "due")]
    job.settle()
    assert steps_met(job.ranks[0], 8, 8) == [(8, "due")]


def test_answers_are_forgotten_once_they_have_served() -> None:
    job = Job([7, 8], due=[True])
    job.settle()
    for rank in job.ranks:
        assert all(rank._coordinator.poll(f"saver/0/at/{n}") is None for n in range(2))
    assert steps_met(job.ranks[0], 8, 9) == [(9, "due")]


def test_a_round_that_a_rank_gave_up_does_not_spoil_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job([3, 3], due=[True])
    leader = job.ranks[0]
    channel = leader._coordinator
    put = channel.put

    def give_up(key: str, value: bytes) -> None:
        # The training thread gives the round up while the watcher is still at it.
        put(key, value)
        if key == "saver/0/at/0":
            job.ranks[1].tick()
            job.clock.now = PATIENCE_S + 1
            assert [d.step for d in leader.arrive(4)] == [-1]

    monkeypatch.setattr(channel, "put", give_up)
    leader.tick()
    assert channel.poll("saver/1/step") is None
    # Nor do the others meet at a step that the leader will pass by.
    job.settle()
    assert job.ranks[1].arrive(3) == []
    job.clock.now += 2
    assert [d.step for d in job.ranks[1].arrive(4)] == [-1]


def test_what_the_leader_decides_at_the_last_moment_all_others_hear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job([3, 3], due=[True])
    leader, other = job.ranks
    # This rank sees the round a moment before the leader does.
    leader._open_round()
    other.tick()
    job.clock.now = 0.1
    leader.tick()
    job.clock.now = PATIENCE_S + 0.05
    monkeypatch.setattr(other._changed, "wait", lambda _: other.tick())
    assert steps_met(leader, 4, 5) == [(4, "due")]
    assert [d.step for d in other.arrive(4)] == [4]


def test_a_missing_rank_ends_the_round_at_its_deadline() -> None:
    job = Job([3, 3, 3])
    job.ranks[0].ask_stop(15)
    job.settle(0, 1)
    assert job.ranks[0].arrive(3) == []
    job.clock.now = PATIENCE_S + 1
    job.settle(0, 1)
    # The leader says that it gave up, so nobody waits any longer.
    for rank in (0, 1):
        (decided,) = job.ranks[rank].arrive(4)
        assert (decided.reason, decided.step) == ("stop", -1)


def test_a_rank_that_is_ahead_waits_no_longer_than_the_deadline() -> None:
    job = Job([3, 3])
    job.ranks[1].ask_stop(15)
    job.ranks[1].tick()
    job.ranks[0].tick()
    job.ranks[1].tick()
    job.clock.now = PATIENCE_S + 3
    (decided,) = job.ranks[1].arrive(4)
    assert decided.step == -1
    job.settle()
    assert job.ranks[1].arrive(5) == []


def test_one_rank_needs_no_thread() -> None:
    rounds = Rounds(Shared({}, 0, 1), PATIENCE_S, ManualClock())
    rounds.begin(-1)
    assert rounds.arrive(0) == []
    rounds.ask_stop(15)
    (decided,) = rounds.arrive(1)
    assert (decided.reason, decided.step) == ("stop", 1)
    rounds.close()
    rounds.close()
