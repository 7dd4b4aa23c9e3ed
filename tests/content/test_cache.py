from __future__ import annotations

import threading

import numpy as np
import pytest

from fwstore.base.errors import Corrupt
from fwstore.content.cache import SharedCache
from fwstore.content.footers import FooterCache
from fwstore.sched import ThreadScheduler
from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore
from support.snapshots import Held, Site, make_runtime

WAIT_S = 20.0


def test_the_least_recently_used_leave_first() -> None:
    cache: SharedCache[str, str] = SharedCache(100)
    made: list[str] = []

    def get(key: str, size: int = 40) -> str:
        def make() -> str:
            made.append(key)
            return key.upper()

        return cache.get(key, size, make)

    assert [get(key) for key in "aba"] == ["A", "B", "A"]
    get("c")
    assert cache.used_bytes == 80
    get("a")
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("huge", 1000)
    assert cache.used_bytes == 1000
    get("a")
    assert cache.used_bytes == 40


def test_one_thread_makes_what_many_want() -> None:
    cache: SharedCache[int, int] = SharedCache(100)
    scheduler = ThreadScheduler(4)
    gate, making = threading.Event(), threading.Event()
    calls: list[int] = []

    def make() -> int:
        calls.append(1)
        making.set()
        gate.wait(WAIT_S)
        return 7

    futures = [scheduler.submit(cache.get, 1, 1, make) for _ in range(4)]
    making.wait(WAIT_S)
    gate.set()
    assert [future.result(WAIT_S) for future in futures] == [7] * 4
    assert len(calls) == 1
    scheduler.close()


def test_a_failure_is_not_remembered() -> None:
    cache: SharedCache[int, int] = SharedCache(100)

    def fail() -> int:
        raise Corrupt("bad")

    with pytest.raises(Corrupt):
        cache.get(1, 1, fail)
    assert cache.get(1, 1, lambda: 5) == 5


def test_what_a_parent_was_making_is_made_anew_after_a_fork() -> None:
    cache: SharedCache[int, int] = SharedCache(100)

    def make() -> int:
        # As in a child forked while another thread was making this value.
        cache.after_fork()
        return cache.get(1, 1, lambda: 6) + 1

    assert cache.get(1, 1, make) == 7


def test_a_footer_is_fetched_once_by_one_ranged_read() -> None:
    runtime = make_runtime()
    store = FaultyStore(MemoryStore(runtime))
    site = Site(store, runtime)
    built = site.commit([site.contribution({("w",): Held(np.arange(9.0), None, ((1, 2),))})])
    (pack,) = site.open(built).all_packs()
    footers = FooterCache(site.origin, limit_bytes=1)
    store.reset()
    footer = footers.get(pack)
    assert footers.get(pack) is footer
    assert store.counts == {"get_range": 1}
    assert len(footer) == 5
    assert footers.used_bytes > 0
