from __future__ import annotations

import threading

import pytest

from fwstore.base.errors import InternalError
from fwstore.sched import Budget, ThreadScheduler

WAIT_S = 20.0


def test_never_more_than_the_limit_and_all_are_served() -> None:
    budget, peak = Budget(100), 0
    lock = threading.Lock()
    scheduler = ThreadScheduler(4)

    def work(size: int) -> None:
        nonlocal peak
        with budget.reserve(size), lock:
            peak = max(peak, budget.used_bytes)

    scheduler.map(work, [1 + (7 * n) % 60 for n in range(400)])
    scheduler.close()
    assert budget.used_bytes == 0
    assert peak <= 100


def test_an_oversize_request_is_admitted_alone() -> None:
    budget = Budget(10)
    with budget.reserve(1000):
        assert budget.used_bytes == 1000
        scheduler = ThreadScheduler(1)
        waiting = scheduler.submit(budget.acquire, 1)
        assert not waiting.done()
    waiting.result(WAIT_S)
    budget.release(1)
    scheduler.close()


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    budget = Budget(10)
    scheduler = ThreadScheduler(2)
    order: list[str] = []
    entered = threading.Event()

    def take(name: str, size: int) -> None:
        entered.set()
        with budget.reserve(size):
            order.append(name)

    budget.acquire(5)
    large = scheduler.submit(take, "large", 10)
    entered.wait(WAIT_S)
    while not budget._waiting:
        pass
    small = scheduler.submit(take, "small", 1)
    while len(budget._waiting) < 2:
        pass
    budget.release(5)
    large.result(WAIT_S)
    small.result(WAIT_S)
    assert order == ["large", "small"]
    scheduler.close()


def test_zero_means_no_bound() -> None:
    budget = Budget(0)
    budget.acquire(1 << 60)
    budget.acquire(1 << 60)
    assert budget.used_bytes == 1 << 61


def test_giving_back_too_much_is_a_bug() -> None:
    with pytest.raises(InternalError):
        Budget(5).release(1)


def test_a_forked_child_owes_nothing_for_threads_that_it_lacks() -> None:
    budget = Budget(10)
    budget.acquire(10)
    budget.after_fork()
    with budget.reserve(10):
        assert budget.used_bytes == 10
