"""A pause of Python's cyclic garbage collector while many objects are made at once.

Planning makes some hundred thousand objects that live for a moment; the collector takes them for a reason to walk
through everything that torch and the training script hold, several times, while training waits.

Invariant: the collector is on again when the last pause ends, if it was on when the first began; a process that
switched it off itself keeps it off.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from fwstore.sched.locks import Lock


class _Pauses:
    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0
        self._was_on = False

    def begin(self) -> None:
        with self._lock:
            if self._count == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._count += 1

    def end(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._was_on:
                gc.enable()


_pauses = _Pauses()


@contextmanager
def collection_paused() -> Iterator[None]:
    """Let no cyclic garbage be collected inside; for work of at most some seconds."""
    _pauses.begin()
    try:
        yield
    finally:
        _pauses.end()
