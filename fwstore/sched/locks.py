"""Locks that survive a fork.

Invariant: in a forked child every lock made here is free, whoever held it in the parent: the holder is
a thread that the child does not have.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Protocol, Self


class AfterFork(Protocol):
    """Something that must be made anew in a forked child."""

    def after_fork(self) -> None:
        """Forget the threads of the parent."""
        ...


_living: weakref.WeakSet[AfterFork] = weakref.WeakSet()


def renew_after_fork(owner: AfterFork) -> None:
    """Call `owner.after_fork` in every child forked while the owner lives."""
    _living.add(owner)


def _renew_all() -> None:
    for owner in tuple(_living):
        owner.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


class Lock:
    """A mutual exclusion that is not re-entrant, to be used as a context manager."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renew_after_fork(self)

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """Forget the holder, a thread of the parent."""
        self._lock = threading.Lock()


class Condition:
    """A lock on which threads wait for a change, to be used as a context manager."""

    __slots__ = ("__weakref__", "_condition")

    def __init__(self) -> None:
        self._condition = threading.Condition()
        renew_after_fork(self)

    def __enter__(self) -> Self:
        self._condition.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._condition.__exit__(kind, error, trace)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Let others in until notified; False when the time ran out."""
        return self._condition.wait(timeout_s)

    def notify_all(self) -> None:
        """Wake every thread that waits."""
        self._condition.notify_all()

    def after_fork(self) -> None:
        """Forget the holder and the waiters, threads of the parent."""
        self._condition = threading.Condition()
