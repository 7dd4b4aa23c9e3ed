"""Threads of a simulated process: each is a task of the baton, and whoever waits for one lets others run.

Invariant: no thread blocks while it has the baton; what production waits for - futures, locks, events - is looked at
again and again in simulated time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar
from unittest import mock

from fwstore.sched import InlineScheduler
from fwstore.sched.inline import InlineEvent, InlineLock
from sim.baton import Baton

if TYPE_CHECKING:
    from sim.process import Process

R = TypeVar("R")
_LOOK_S = 0.02


class Background:
    """The part of a scheduler that begins threads and makes what they wait for.

    Args:
        process: Whose threads these are; they die with it.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    def spawn(self, name: str, function: Callable[..., R], /, *args: object) -> Future[R]:
        """Run a function as a task of its own, beginning now or a little later."""
        future: Future[R] = Future()

        def work() -> None:
            done = InlineScheduler().submit(function, *args)
            error = done.exception()
            if error is None:
                future.set_result(done.result())
            else:
                future.set_exception(error)

        self._process.begin(name, work)
        return future

    def lock(self) -> BatonLock:
        return BatonLock(self._process.world.baton)

    def event(self) -> BatonEvent:
        return BatonEvent(self._process.world.baton)


class BatonLock(InlineLock):
    """A lock for which one waits in simulated time."""

    def __init__(self, baton: Baton) -> None:
        super().__init__()
        self._baton = baton

    def __enter__(self) -> Self:
        while self._held:
            self._baton.wait(_LOOK_S)
        return super().__enter__()


class BatonEvent(InlineEvent):
    """A flag for which one waits in simulated time."""

    def __init__(self, baton: Baton) -> None:
        super().__init__()
        self._baton = baton

    def wait(self, timeout: float | None = None) -> bool:
        end = float("inf") if timeout is None else self._baton.now + timeout
        while not self.is_set() and self._baton.now < end:
            self._baton.wait(_LOOK_S)
        return self.is_set()


@contextmanager
def patient(baton: Baton) -> Iterator[None]:
    """Let whoever asks a future that is not done look at it again later."""
    plain = {name: getattr(Future, name) for name in ("result", "exception")}

    def looking(name: str) -> Callable[..., Any]:
        def ask(self: Future[Any], timeout: float | None = None) -> Any:
            end = float("inf") if timeout is None else baton.now + timeout
            while not self.done() and baton.now < end:
                baton.wait(_LOOK_S)
            return plain[name](self, 0)

        return ask

    with (
        mock.patch.object(Future, "result", looking("result")),
        mock.patch.object(Future, "exception", looking("exception")),
    ):
        yield
