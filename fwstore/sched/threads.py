"""The scheduler of production: daemon worker threads.

Invariant: a `map` never waits for work that no thread has begun, so nested maps cannot deadlock; a
forked child starts threads of its own on first use.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fwstore.base.clock import Clock, SystemClock
from fwstore.base.errors import InvalidInput, Unavailable
from fwstore.sched.locks import Condition, Lock, renew_after_fork
from fwstore.sched.scheduler import Event

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Task:
    """A function to run and the future that receives what comes of it."""

    future: Future[Any]
    function: Callable[..., Any]
    args: tuple[object, ...]

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.function(*self.args)
        except BaseException as error:  # noqa: BLE001 - a future carries every error to whoever waits
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class ThreadScheduler:
    """A bounded pool of daemon threads, plus one thread for each long work.

    Args:
        workers: Most worker threads.
        name: Begins the names of the threads.
        close_timeout_s: Longest wait of `close`.
        clock: Measures that wait.
    """

    def __init__(
        self,
        workers: int,
        *,
        name: str = "fwstore",
        close_timeout_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        if workers < 1:
            raise InvalidInput(f"a scheduler needs at least one worker thread, not {workers}")
        self._workers = workers
        self._name = name
        self._close_timeout_s = close_timeout_s
        self._clock = clock or SystemClock()
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the threads of the parent: they do not exist in a forked child."""
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._pool: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._long: dict[threading.Thread, None] = {}
        self._numbers = itertools.count(1)

    @property
    def workers(self) -> int:
        """How many functions run at once at most."""
        return self._workers

    def submit(self, function: Callable[..., R], /, *args: object) -> Future[R]:
        """Run a function on a worker; never wait for the future inside another worker, use `map`."""
        future: Future[R] = Future()
        with self._lock:
            self._refuse_closed()
            self._tasks.put(_Task(future, function, args))
            if not self._idle.acquire(blocking=False) and len(self._pool) < self._workers:
                self._pool.append(
                    self._start(f"worker-{len(self._pool) + 1}", self._work, self._tasks)
                )
        return future

    def map(self, function: Callable[[T], R], values: Iterable[T], *, limit: int = 0) -> list[R]:
        """Return the results in order; the caller works too, so it may be called inside a worker."""
        share: _Share[T, R] = _Share(function, iter(values))
        hands = min(limit or self._workers, self._workers)
        if isinstance(values, Sized):
            hands = min(hands, len(values))
        try:
            for _ in range(hands - 1):
                self.submit(share.work)
        except BaseException:
            share.interrupt()
            raise
        return share.finish()

    def spawn(self, name: str, function: Callable[..., R], /, *args: object) -> Future[R]:
        """Run long work, such as a background save or a watcher, on a thread of its own."""
        future: Future[R] = Future()
        with self._lock:
            self._refuse_closed()
            thread = self._start(
                f"{name}-{next(self._numbers)}", self._run_long, _Task(future, function, args)
            )
            self._long[thread] = None
        return future

    def lock(self) -> Lock:
        """Return a new lock."""
        return Lock()

    def event(self) -> Event:
        """Return a new event."""
        return threading.Event()

    def close(self) -> None:
        """Finish what was begun within a deadline; a second call does nothing.

        Raises:
            Unavailable: Some work still runs; the message names it.
        """
        deadline = self._clock.monotonic() + self._close_timeout_s
        self._await_long(deadline)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for _ in self._pool:
                self._tasks.put(None)
            threads = [*self._pool, *self._long]
        running = self._join(threads, deadline)
        if running:
            self._cancel_queued()
            names = ", ".join(thread.name for thread in running)
            raise Unavailable(
                f"{names} still at work {self._close_timeout_s:g} s after close; the process may end without them"
            )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise InvalidInput("this scheduler is closed; open the repository again")

    def _start(
        self, name: str, function: Callable[..., None], argument: object
    ) -> threading.Thread:
        thread = threading.Thread(
            target=function, args=(argument,), name=f"{self._name}-{name}", daemon=True
        )
        thread.start()
        return thread

    def _work(self, tasks: queue.SimpleQueue[_Task | None]) -> None:
        while True:
            try:
                task = tasks.get_nowait()
            except queue.Empty:
                self._idle.release()
                task = tasks.get()
            if task is None:
                return
            task.run()
            # A kept reference would keep the buffers of the last task alive while the worker waits.
            del task

    def _run_long(self, task: _Task) -> None:
        task.run()
        with self._lock:
            self._long.pop(threading.current_thread(), None)

    def _await_long(self, deadline: float) -> None:
        """Let long work end while it can still hand in what it needs for that."""
        while self._clock.monotonic() < deadline:
            with self._lock:
                threads = [
                    thread for thread in self._long if thread is not threading.current_thread()
                ]
            if not threads:
                return
            self._join(threads, deadline)

    def _join(self, threads: Iterable[threading.Thread], deadline: float) -> list[threading.Thread]:
        others = [thread for thread in threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - self._clock.monotonic()))
        return [thread for thread in others if thread.is_alive()]

    def _cancel_queued(self) -> None:
        stops = 0
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is None:
                stops += 1
            else:
                task.future.cancel()
        for _ in range(stops):
            self._tasks.put(None)


class _Share(Generic[T, R]):
    """The values of one `map`, drawn by its caller and by whichever workers come free in time."""

    def __init__(self, function: Callable[[T], R], values: Iterator[T]) -> None:
        self._function = function
        self._values = values
        self._changed = Condition()
        self._results: dict[int, R] = {}
        self._next = 0
        self._active: set[int] = set()
        self._done = False
        self._error: BaseException | None = None

    def work(self) -> None:
        """Take values until none is left or one failed."""
        while (drawn := self._draw()) is not None:
            index, value = drawn
            try:
                result = self._function(value)
            except BaseException as error:  # noqa: BLE001 - raised by `finish` in the calling thread
                self._fail(error)
            else:
                with self._changed:
                    self._results[index] = result
                    self._leave()

    def finish(self) -> list[R]:
        """Work along, wait for what others began, and return the results or raise the first error."""
        try:
            self.work()
            self._await_others()
        except BaseException:
            self.interrupt()
            raise
        if self._error is not None:
            raise self._error
        return [self._results[index] for index in range(self._next)]

    def interrupt(self) -> None:
        """Draw no more and wait for what others began: the caller will free what they are still at."""
        self._done = True
        self._active.discard(threading.get_ident())
        self._await_others()

    def _await_others(self) -> None:
        with self._changed:
            while self._active:
                self._changed.wait()

    def _draw(self) -> tuple[int, T] | None:
        with self._changed:
            if self._done:
                return None
            try:
                value = next(self._values)
            except StopIteration:
                self._done = True
                return None
            except BaseException as error:  # noqa: BLE001 - raised by `finish` in the calling thread
                self._done = True
                self._error = self._error or error
                return None
            index, self._next = self._next, self._next + 1
            self._active.add(threading.get_ident())
            return index, value

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._done = True
            self._error = self._error or error
            self._leave()

    def _leave(self) -> None:
        self._active.discard(threading.get_ident())
        if not self._active:
            self._changed.notify_all()
