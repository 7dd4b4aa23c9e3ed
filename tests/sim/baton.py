"""Many tasks, one of which runs at a time; the next is the one whose moment comes first in a time of their own.

Tasks are threads that wait for a baton, so the code that they run is that of production, unchanged. A task lets go
of the baton where it asks a store or sleeps.

Invariant: between two such places nothing else runs, and who comes next depends on nothing but the times that were
asked for: a play with the same times repeats itself exactly.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from support.faults import Crash

_PATIENCE_S = 600.0
# A play that is so long will never end.
STEPS_MAX = 60_000


class Task:
    """One thread of a simulated process.

    Args:
        name: For errors.
        main: What it does.
    """

    def __init__(self, name: str, main: Callable[[], None]) -> None:
        self.name = name
        self.main = main
        self.hand: _Hand | None = None
        self.dead = False


class _Hand(threading.Thread):
    """A thread that does one task after another, over many plays."""

    def __init__(self) -> None:
        super().__init__(name="sim-hand", daemon=True)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.work: Callable[[], None] = lambda: None
        self.start()

    def run(self) -> None:
        while True:
            self.turn.acquire()
            self.work()


_idle: list[_Hand] = []


class _Blame:
    """What anybody raises ends the play, which tells who asked for it; a death is none of that."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None and not isinstance(error, Crash):
            self._baton.fail(error)
        return True


class Baton:
    """Says whose turn it is.

    Attributes:
        now: Seconds since the play began.
        running: The task that has the baton; None while an event happens.
        failure: What broke the play.
        steps: How many turns there were.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.running: Task | None = None
        self.failure: BaseException | None = None
        self.steps = 0
        self._numbers = itertools.count()
        self._coming: list[tuple[float, int, Task | Callable[[], None]]] = []
        self._ended = threading.Lock()
        self._ended.acquire()

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Let something happen at a moment."""
        heapq.heappush(self._coming, (max(when, self.now), next(self._numbers), event))

    def start(self, when: float, task: Task) -> None:
        """Let a task begin at a moment."""
        heapq.heappush(self._coming, (max(when, self.now), next(self._numbers), task))

    def wait(self, seconds: float) -> None:
        """Let others run for so long; called by the task whose turn it is.

        Raises:
            Crash: The task died meanwhile, or the play is over.
        """
        me = self.running
        assert me is not None
        heapq.heappush(self._coming, (self.now + seconds, next(self._numbers), me))
        self._pass_on(me)
        if me.dead or self.failure is not None:
            raise Crash(f"{me.name} died while it waited")

    def fail(self, error: BaseException) -> None:
        """End the play: everybody dies at the next turn."""
        if self.failure is None:
            self.failure = error

    def run(self) -> None:
        """Play until nothing is left to come."""
        if not self._coming:
            return
        self._pass_on(None)
        assert self._ended.acquire(timeout=_PATIENCE_S), (
            "a task holds the baton and does not let go"
        )

    def _pass_on(self, me: Task | None) -> None:
        """Give the baton to who is next; return when it is back."""
        while self._coming:
            when, _, turn = heapq.heappop(self._coming)
            self.now = max(self.now, when)
            self.steps += 1
            if self.steps > STEPS_MAX:
                self.fail(AssertionError(f"the play has not ended after {STEPS_MAX} turns"))
            if not isinstance(turn, Task):
                self._happen(turn)
            elif turn is me:
                self.running = me
                return
            elif turn.hand is not None or self.failure is None:
                self._wake(turn)
                break
        else:
            self._ended.release()
        if me is not None:
            assert me.hand is not None
            me.hand.turn.acquire()

    def _happen(self, event: Callable[[], None]) -> None:
        if self.failure is not None:
            return
        self.running = None
        with _Blame(self):
            event()

    def _wake(self, task: Task) -> None:
        self.running = task
        if task.hand is None:
            task.hand = _idle.pop() if _idle else _Hand()
            task.hand.work = lambda: self._do(task)
        task.hand.turn.release()

    def _do(self, task: Task) -> None:
        with _Blame(self):
            if not task.dead:
                task.main()
        assert task.hand is not None
        _idle.append(task.hand)
        self._pass_on(None)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep the threads of a play on one core: handing the baton over costs 12 us there, and 50 or more between two."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
