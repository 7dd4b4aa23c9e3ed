"""The one door for time.

Invariant: no safety decision reads a clock. Wall time is for display, monotonic time for
deadlines and durations.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Time as one process sees it."""

    def wall(self) -> float:
        """Return seconds since the Unix epoch, for display only."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start that never go back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Pause the calling thread."""
        ...


class SystemClock:
    """The clock of the operating system."""

    def wall(self) -> float:
        """Return seconds since the Unix epoch, for display only."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start that never go back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Pause the calling thread."""
        time.sleep(seconds)
