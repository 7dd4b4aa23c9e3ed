"""A runtime in which nobody waits.

Invariant: deadlines and back-off behave as in production, but time jumps where a thread would sleep.
"""

from __future__ import annotations

from dataclasses import replace

from fwstore.base.clock import SystemClock
from fwstore.base.config import Limits
from fwstore.sched.runtime import Runtime, system_runtime


class HastyClock(SystemClock):
    """The clock of the system, but nobody sleeps: time jumps instead."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._skipped_s

    def sleep(self, seconds: float) -> None:
        self._skipped_s += seconds


def hasty_runtime(limits: Limits | None = None) -> Runtime:
    """Return the runtime of production, but for waiting."""
    return replace(system_runtime(limits), clock=HastyClock())
