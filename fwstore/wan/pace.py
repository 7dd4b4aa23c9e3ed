"""Bytes that come with time: how a rate is kept within one process.

Invariant: in no stretch of time is more granted than the rate gives in it, a short burst, and one claim;
claims are granted in the order in which they came. It reads no clock: its caller says what time it is.
"""

from __future__ import annotations

_BURST_S = 0.2
# Whoever stood still for longer has lost its time: others may have used it.
_STEP_MAX_S = 1.0
_PAUSE_MIN_S = 0.001
_PAUSE_MAX_S = 0.25


class Pace:
    """Claims on bytes, granted at a rate that may change; not to be used by two threads at once.

    A claim is granted when all before it are paid, so that a transfer goes on while time pays for it.

    Args:
        now_s: The time.
    """

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s
        self._rate = 0.0
        self._claimed = 0.0
        self._paid = 0.0

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self._rate

    @property
    def claimed(self) -> float:
        """Bytes claimed since the beginning."""
        return self._claimed

    def change(self, rate: float, now_s: float) -> None:
        """Go on at another rate."""
        self._advance(now_s)
        self._rate = rate

    def claim(self, size_bytes: int, now_s: float) -> float:
        """Ask for bytes; return the ticket for `wait_s`."""
        self._advance(now_s)
        before = self._claimed
        self._claimed += size_bytes
        return before

    def wait_s(self, ticket: float, now_s: float) -> float:
        """Return 0 when the claim is granted, else how long to wait before asking again."""
        self._advance(now_s)
        missing = ticket - self._paid
        # The first claim at a rate that is not known yet waits for it.
        if missing <= 0 and self._rate:
            return 0.0
        wanted_s = missing / self._rate if self._rate else _PAUSE_MAX_S
        return min(max(wanted_s, _PAUSE_MIN_S), _PAUSE_MAX_S)

    def _advance(self, now_s: float) -> None:
        passed_s = min(now_s - self._now_s, _STEP_MAX_S)
        self._now_s = now_s
        self._paid += self._rate * passed_s
        self._paid = min(self._paid, self._claimed + self._rate * _BURST_S)
