"""A runtime for stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fwstore.base.clock import SystemClock
from fwstore.sched.runtime import Runtime, system_runtime


class HastyClock(SystemClock):
    """The clock of the system, but nobody sleeps: time jumps instead."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._skipped_s

    def sleep(self, seconds: float) -> None:
        self._skipped_s += seconds


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """The runtime of production, but for waiting."""
    made = replace(system_runtime(), clock=HastyClock())
    yield made
    made.scheduler.close()
