from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from fwstore.base.errors import InvalidInput, Unavailable
from fwstore.sched import Condition, Lock, ThreadScheduler

WAIT_S = 20.0


@pytest.fixture
def scheduler() -> Iterator[ThreadScheduler]:
    scheduler = ThreadScheduler(2, name="test")
    yield scheduler
    scheduler.close()


def test_submit_returns_results_and_errors(scheduler: ThreadScheduler) -> None:
    assert scheduler.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        scheduler.submit(divmod, 7, 0).result(WAIT_S)


def test_workers_are_bounded_daemonic_and_named(scheduler: ThreadScheduler) -> None:
    gate = threading.Event()
    seen: list[threading.Thread] = []

    def work() -> None:
        seen.append(threading.current_thread())
        gate.wait(WAIT_S)

    futures = [scheduler.submit(work) for _ in range(6)]
    gate.set()
    for future in futures:
        future.result(WAIT_S)
    assert len(set(seen)) <= 2
    assert all(thread.daemon and thread.name.startswith("test-worker-") for thread in seen)


def test_an_idle_worker_is_used_again(scheduler: ThreadScheduler) -> None:
    names = set()
    for _ in range(20):
        names.add(scheduler.submit(lambda: threading.current_thread().name).result(WAIT_S))
    assert len(names) <= 2


def test_map_keeps_the_order_and_draws_lazily(scheduler: ThreadScheduler) -> None:
    assert scheduler.map(lambda value: value * value, iter(range(100))) == [
        n * n for n in range(100)
    ]
    assert scheduler.map(str, []) == []


def test_nested_maps_do_not_deadlock(scheduler: ThreadScheduler) -> None:
    def outer(value: int) -> int:
        return sum(scheduler.map(lambda inner: sum(scheduler.map(int, [inner, value])), range(4)))

    expected = [sum(inner + value for inner in range(4)) for value in range(8)]
    assert scheduler.submit(scheduler.map, outer, range(8)).result(WAIT_S) == expected


def test_map_raises_the_first_error_and_drops_the_rest(scheduler: ThreadScheduler) -> None:
    drawn: list[int] = []

    def values() -> Iterator[int]:
        for value in range(1000):
            drawn.append(value)
            yield value

    def work(value: int) -> int:
        if value == 3:
            raise KeyError(value)
        return value

    with pytest.raises(KeyError):
        scheduler.map(work, values())
    assert len(drawn) < 1000


def test_map_awaits_what_was_begun_before_it_raises(scheduler: ThreadScheduler) -> None:
    other_began, failed = threading.Event(), threading.Event()
    finished: list[int] = []

    def work(value: int) -> None:
        if value == 0:
            other_began.wait(WAIT_S)
            failed.set()
            raise ValueError("boom")
        other_began.set()
        failed.wait(WAIT_S)
        finished.append(value)

    with pytest.raises(ValueError, match="boom"):
        scheduler.map(work, [0, 1])
    assert finished == [1]


def test_map_awaits_what_was_begun_before_an_interrupt_leaves_it(
    scheduler: ThreadScheduler,
) -> None:
    # What the caller frees after Ctrl-C must not be written by a worker any more.
    # A shell that starts the tests in the background has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main, other_began = threading.current_thread(), threading.Event()
    finished, never = [], threading.Event()

    def work(value: int) -> None:
        if threading.current_thread() is main:
            assert other_began.wait(WAIT_S)
            return
        other_began.set()
        _thread.interrupt_main()
        never.wait(0.1)
        finished.append(value)

    try:
        with pytest.raises(KeyboardInterrupt):
            scheduler.map(work, [0, 1])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(finished) == 1


def test_map_raises_an_error_of_the_values(scheduler: ThreadScheduler) -> None:
    def values() -> Iterator[int]:
        yield 1
        raise LookupError

    with pytest.raises(LookupError):
        scheduler.map(str, values())


def test_map_obeys_its_limit() -> None:
    scheduler = ThreadScheduler(4)
    lock, running, peak = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        with lock:
            running -= 1

    scheduler.map(work, range(200), limit=2)
    assert 1 <= peak <= 2
    scheduler.close()


def test_spawn_runs_beside_busy_workers(scheduler: ThreadScheduler) -> None:
    gate = threading.Event()
    busy = [scheduler.submit(gate.wait, WAIT_S) for _ in range(2)]
    name = scheduler.spawn("save", lambda: threading.current_thread().name).result(WAIT_S)
    assert name.startswith("test-save-")
    gate.set()
    assert all(future.result(WAIT_S) for future in busy)


def test_close_finishes_what_was_queued_and_refuses_more() -> None:
    scheduler = ThreadScheduler(1)
    futures = [scheduler.submit(int, value) for value in range(10)]
    scheduler.close()
    scheduler.close()
    assert [future.result(0) for future in futures] == list(range(10))
    with pytest.raises(InvalidInput, match="closed"):
        scheduler.submit(int)
    with pytest.raises(InvalidInput, match="closed"):
        scheduler.spawn("late", int)


def test_close_lets_long_work_hand_in_more_until_it_ends() -> None:
    scheduler = ThreadScheduler(2)
    closing = threading.Thread(target=scheduler.close)

    def work() -> list[int]:
        closing.start()
        closing.join(0.1)
        first = scheduler.map(abs, [-1, -2, -3])
        return [*first, scheduler.spawn("lane", abs, -4).result(WAIT_S)]

    assert scheduler.spawn("save", work).result(WAIT_S) == [1, 2, 3, 4]
    closing.join(WAIT_S)
    with pytest.raises(InvalidInput, match="closed"):
        scheduler.submit(int)


def test_close_gives_up_at_its_deadline_and_names_the_work() -> None:
    scheduler = ThreadScheduler(1, close_timeout_s=0.0)
    gate, began = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        gate.wait(WAIT_S)

    running = scheduler.submit(work)
    queued = scheduler.submit(int)
    began.wait(WAIT_S)
    with pytest.raises(Unavailable, match="fwstore-worker-1"):
        scheduler.close()
    assert queued.cancelled()
    gate.set()
    running.result(WAIT_S)


def test_close_may_be_called_by_spawned_work() -> None:
    scheduler = ThreadScheduler(1)
    assert scheduler.spawn("closer", scheduler.close).result(WAIT_S) is None


def test_a_scheduler_needs_a_worker() -> None:
    with pytest.raises(InvalidInput):
        ThreadScheduler(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_threads_and_locks_of_its_own(scheduler: ThreadScheduler) -> None:
    gate = threading.Event()
    lock, condition = Lock(), Condition()
    scheduler.submit(gate.wait, WAIT_S)
    with lock, condition:
        child = os.fork()
        if child == 0:
            with lock, condition:
                right = scheduler.map(abs, [-1, -2, -3]) == [1, 2, 3]
                right = right and scheduler.submit(abs, -4).result(WAIT_S) == 4
            os._exit(0 if right else 1)
    gate.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert scheduler.submit(abs, -5).result(WAIT_S) == 5
