from __future__ import annotations

import pytest

from fwstore.base.errors import InternalError
from fwstore.sched import InlineScheduler


def test_everything_runs_at_the_call() -> None:
    scheduler = InlineScheduler()
    calls: list[int] = []
    future = scheduler.submit(calls.append, 1)
    scheduler.spawn("long", calls.append, 2)
    assert calls == [1, 2]
    assert future.done()
    assert scheduler.map(abs, [-1, 2], limit=7) == [1, 2]
    assert scheduler.workers == 1
    scheduler.close()


def test_errors_wait_in_the_future_and_leave_a_map() -> None:
    scheduler = InlineScheduler()
    assert isinstance(scheduler.submit(int, "x").exception(), ValueError)
    with pytest.raises(ValueError, match="invalid literal"):
        scheduler.map(int, ["1", "x"])


def test_a_deadlock_is_an_error() -> None:
    scheduler = InlineScheduler()
    lock = scheduler.lock()
    with lock, pytest.raises(InternalError), lock:
        pass
    with lock:
        pass
    event = scheduler.event()
    assert not event.wait(1.0)
    with pytest.raises(InternalError):
        event.wait()
    event.set()
    assert event.is_set()
    assert event.wait()
