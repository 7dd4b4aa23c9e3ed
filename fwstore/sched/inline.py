"""The scheduler of simulation and of small tests: everything runs at the call.

Invariant: no thread is ever started, so a run is a function of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from fwstore.base.errors import InternalError
from fwstore.sched.scheduler import Event

T = TypeVar("T")
R = TypeVar("R")


class InlineScheduler:
    """Runs each function where it is handed in."""

    @property
    def workers(self) -> int:
        """How many functions run at once at most."""
        return 1

    def submit(self, function: Callable[..., R], /, *args: object) -> Future[R]:
        """Run a function now and return its finished future."""
        future: Future[R] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:  # noqa: BLE001 - a future carries every error to whoever waits
            future.set_exception(error)
        return future

    def map(self, function: Callable[[T], R], values: Iterable[T], *, limit: int = 0) -> list[R]:  # noqa: ARG002
        """Return the results in order."""
        return [function(value) for value in values]

    def spawn(self, name: str, function: Callable[..., R], /, *args: object) -> Future[R]:  # noqa: ARG002
        """Run long work now."""
        return self.submit(function, *args)

    def lock(self) -> InlineLock:
        """Return a lock that only checks that it is not taken twice."""
        return InlineLock()

    def event(self) -> Event:
        """Return an event on which nothing waits."""
        return InlineEvent()

    def close(self) -> None:
        """Do nothing: nothing is left running."""


class InlineLock:
    """A lock in a world of one thread: taking it twice would be a deadlock, so it is an error."""

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> Self:
        if self._held:
            raise InternalError("a lock is taken twice by one thread")
        self._held = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held = False


class InlineEvent:
    """A flag in a world of one thread: waiting cannot change it."""

    def __init__(self) -> None:
        self._flag = False

    def set(self) -> None:
        """Raise the flag."""
        self._flag = True

    def is_set(self) -> bool:
        """Return whether the flag is raised."""
        return self._flag

    def wait(self, timeout: float | None = None) -> bool:
        """Return whether the flag is raised.

        Raises:
            InternalError: It is not, and the wait has no end.
        """
        if timeout is None and not self._flag:
            raise InternalError("the only thread waits for an event that nothing will raise")
        return self._flag
