from __future__ import annotations

import pytest

from fwstore.base.config import Environment, Limits
from fwstore.base.errors import NotFound, Unavailable
from fwstore.base.ids import SeededIds
from fwstore.sched import InlineScheduler, Runtime, ThreadScheduler, retry, system_runtime


class StepClock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def make_runtime(clock: StepClock) -> Runtime:
    return Runtime(clock, SeededIds(1), InlineScheduler(), Limits(), Environment({}))


def test_tries_until_it_succeeds() -> None:
    clock, attempts = StepClock(), 0

    def operation() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise Unavailable("busy")
        return "done"

    assert retry(make_runtime(clock), operation, deadline_s=10) == "done"
    assert len(clock.pauses) == 3
    assert all(0.5 <= pause / (0.05 * 2**n) <= 1 for n, pause in enumerate(clock.pauses))


def test_no_wait_ends_after_the_deadline() -> None:
    clock = StepClock()

    def operation() -> None:
        raise Unavailable(f"busy at {clock.now:.2f}")

    with pytest.raises(Unavailable, match="busy at"):
        retry(make_runtime(clock), operation, deadline_s=30)
    assert 20 < clock.now < 30
    assert max(clock.pauses) <= 5


def test_a_long_wait_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = StepClock()

    def operation() -> None:
        raise Unavailable("no route to the store")

    with pytest.raises(Unavailable):
        retry(make_runtime(clock), operation, deadline_s=60)
    (told,) = caplog.messages
    assert "no route to the store; trying again for up to 5" in told
    caplog.clear()
    with pytest.raises(Unavailable):
        retry(make_runtime(clock), operation, deadline_s=1)
    assert caplog.messages == []


def test_other_errors_are_not_tried_again() -> None:
    clock = StepClock()

    def operation() -> None:
        raise NotFound("gone")

    with pytest.raises(NotFound):
        retry(make_runtime(clock), operation, deadline_s=30)
    assert clock.pauses == []


def test_the_runtime_of_a_process() -> None:
    runtime = system_runtime(Limits(threads=3))
    assert isinstance(runtime.scheduler, ThreadScheduler)
    assert runtime.scheduler.workers == 3
    assert len(runtime.ids.token(8)) == 16
    runtime.scheduler.close()
