"""The cap of a link among real processes on a directory store; minutes, so only `make soak` runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from support.ranks import fork
from support.rate_jobs import GUARD, rates, stand_guard, standstills, take_for_ever, taken

pytestmark = pytest.mark.soak
CAP = 50_000_000.0
# A machine that stood still in most of the time tells nothing.
WINDOWS_MIN = 10


@contextmanager
def workers(folder: Path, names: list[str]) -> Iterator[dict[str, BaseProcess]]:
    started = {name: fork(take_for_ever, str(folder), name, CAP) for name in names}
    with killed(started):
        yield started


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    with killed({GUARD: fork(stand_guard, str(folder))}):
        yield


@contextmanager
def killed(started: dict[str, BaseProcess]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in started.values():
            process.kill()
            process.join()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_processes_together_take_the_cap(tmp_path: Path, count: int) -> None:
    names = [f"worker-{number}" for number in range(count)]
    with guarded(tmp_path), workers(tmp_path, names):
        time.sleep(35)
    events = taken(tmp_path, names)
    assert max(rates(events, events[0][0], events[-1][0])) <= 1.05 * CAP
    steady = rates(events, events[0][0] + 5, events[-1][0], standstills(tmp_path))
    assert len(steady) >= WINDOWS_MIN
    assert min(steady) >= 0.95 * CAP


def test_processes_that_come_and_are_killed_stay_below_the_cap(tmp_path: Path) -> None:
    names = [f"worker-{number}" for number in range(4)]
    with guarded(tmp_path), workers(tmp_path, names[:2]) as first:
        time.sleep(12)
        with workers(tmp_path, names[2:]):
            time.sleep(12)
            first[names[0]].kill()
            killed_s = time.monotonic()
            time.sleep(22)
    events = taken(tmp_path, names)
    every = rates(events, events[0][0], events[-1][0])
    assert max(every) <= 1.05 * CAP
    after = rates(events, killed_s + 5, events[-1][0], standstills(tmp_path))
    assert len(after) >= WINDOWS_MIN
    assert min(after) >= 0.95 * CAP
