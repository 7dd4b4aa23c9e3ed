"""Trying again, with a deadline.

Invariant: no wait ends after the deadline, and the error raised is the last one that was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fwstore.base.errors import FwstoreError, Unavailable
from fwstore.base.notices import log
from fwstore.sched.runtime import Runtime

R = TypeVar("R")

_FIRST_DELAY_S = 0.05
_LAST_DELAY_S = 5.0
# The seventh attempt failed: whoever waits should know for what.
_TOLD_DELAY_S = _FIRST_DELAY_S * 2**6


def retry(
    runtime: Runtime,
    operation: Callable[[], R],
    *,
    deadline_s: float,
    transient: tuple[type[FwstoreError], ...] = (Unavailable,),
) -> R:
    """Call an idempotent operation until it succeeds or the deadline is near; after some seconds the log says so.

    Args:
        runtime: Its clock and its source of jitter.
        operation: May be called many times.
        deadline_s: Seconds from now after which no further attempt begins.
        transient: Errors after which to try again.

    Raises:
        FwstoreError: What the last attempt raised.
    """
    end = runtime.clock.monotonic() + deadline_s
    delay_s = _FIRST_DELAY_S
    while True:
        try:
            return operation()
        except transient as error:
            # Half of the delay is random, so that a thousand ranks do not come back together.
            pause_s = delay_s * (0.5 + runtime.ids.uniform() / 2)
            if runtime.clock.monotonic() + pause_s >= end:
                raise
            if delay_s == _TOLD_DELAY_S:
                log(f"{error}; trying again for up to {end - runtime.clock.monotonic():.0f} s")
        runtime.clock.sleep(pause_s)
        delay_s = min(delay_s * 2, _LAST_DELAY_S)
