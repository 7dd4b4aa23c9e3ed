"""What the layers above may ask of concurrency.

Invariant: work comes back as a `concurrent.futures.Future` or as the list of its results, and an error
of the work is raised where its result is asked for, never lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Event(Protocol):
    """A flag that threads can wait for."""

    def set(self) -> None:
        """Raise the flag."""
        ...

    def is_set(self) -> bool:
        """Return whether the flag is raised."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is raised; False when the time ran out."""
        ...


class Scheduler(Protocol):
    """A bounded pool of worker threads, or its imitation in one thread."""

    @property
    def workers(self) -> int:
        """How many functions run at once at most."""
        ...

    def submit(self, function: Callable[..., R], /, *args: object) -> Future[R]:
        """Run a function on a worker; never wait for the future inside another worker, use `map`."""
        ...

    def map(self, function: Callable[[T], R], values: Iterable[T], *, limit: int = 0) -> list[R]:
        """Return the results in order; the caller works too, so it may be called inside a worker.

        The first error stops the rest: values not started are dropped, those running are awaited, then
        the error is raised.

        Args:
            function: Called once per value.
            values: Drawn one at a time as workers come free.
            limit: At most so many run at once; 0 means as many as there are workers.
        """
        ...

    def spawn(self, name: str, function: Callable[..., R], /, *args: object) -> Future[R]:
        """Run long work, such as a background save or a watcher, on a thread of its own."""
        ...

    def lock(self) -> AbstractContextManager[object]:
        """Return a new lock."""
        ...

    def event(self) -> Event:
        """Return a new event."""
        ...

    def close(self) -> None:
        """Finish what was begun within a deadline; a second call does nothing.

        Raises:
            Unavailable: Some work still runs; the message names it.
        """
        ...
