"""Work that one does for all of a site: by threads, by processes, when the one who does it dies or fails."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from fwstore.base.errors import Corrupt, NotFound
from fwstore.format.keys import LineageKeys, work_claim, work_claims
from fwstore.sched import ThreadScheduler
from fwstore.store.memory import MemoryStore
from fwstore.wan.once import CLAIM_LASTS_S, Alive, Errand, OncePerSite
from support.hasty import hasty_runtime
from support.lineages import keys_under, make_runtime, make_store

KEY = LineageKeys("run", 1).root("000000000001-t1-s1-" + "a" * 16)


class Bringer:
    """Writes an object, and counts how often it is asked to."""

    def __init__(self, store: MemoryStore, key: str = KEY) -> None:
        self.store = store
        self.key = key
        self.count = 0

    def errand(self) -> Errand:
        return Errand(self.key, self.is_here, self.bring)

    def is_here(self) -> bool:
        try:
            self.store.head(self.key)
        except NotFound:
            return False
        return True

    def bring(self, alive: Alive) -> None:
        self.count += 1
        alive()
        self.store.put(self.key, [b"it"], mode="overwrite")


def test_what_is_here_is_not_brought() -> None:
    store = make_store()
    bringer = Bringer(store)
    assert OncePerSite(store, make_runtime()).see_to(bringer.errand())
    other = Bringer(store)
    assert not OncePerSite(store, make_runtime(1)).see_to(other.errand())
    assert (bringer.count, other.count) == (1, 0)
    assert keys_under(store, work_claims(KEY)) == []


def test_a_process_waits_for_the_one_that_brings_it() -> None:
    """The second asks in the middle of the work of the first, and time passes only while it waits."""
    store, runtime = make_store(), hasty_runtime()
    bringer, other = Bringer(store), Bringer(store)
    began, goes_on = threading.Event(), threading.Event()

    def work(alive: Alive) -> None:
        began.set()
        assert goes_on.wait(60)
        bringer.bring(alive)

    class Clock:
        wall = staticmethod(runtime.clock.wall)
        monotonic = staticmethod(runtime.clock.monotonic)
        waits = 0

        def sleep(self, seconds: float) -> None:
            self.waits += 1
            if self.waits == 3:
                goes_on.set()
                first.result(60)

    scheduler = ThreadScheduler(2)
    try:
        first = scheduler.submit(
            OncePerSite(store, runtime).see_to, Errand(KEY, bringer.is_here, work)
        )
        assert began.wait(60)
        clock = Clock()
        assert not OncePerSite(store, replace(runtime, clock=clock)).see_to(other.errand())
        assert first.result(60)
    finally:
        scheduler.close()
    assert (bringer.count, other.count, clock.waits) == (1, 0, 3)


def test_threads_of_one_process_bring_it_once() -> None:
    store, scheduler = make_store(), ThreadScheduler(8)
    once, bringer = OncePerSite(store, make_runtime()), Bringer(store)
    try:
        did = scheduler.map(lambda _: once.see_to(bringer.errand()), range(32))
    finally:
        scheduler.close()
    assert (did.count(True), bringer.count) == (1, 1)


def test_the_next_one_takes_over_when_the_holder_shows_no_sign_of_life() -> None:
    store, runtime = make_store(), make_runtime(1)
    store.put(work_claim(KEY, 1), [b"of one who died"], mode="create")
    bringer, begin_s = Bringer(store), runtime.clock.monotonic()
    assert OncePerSite(store, runtime).see_to(bringer.errand())
    assert CLAIM_LASTS_S < runtime.clock.monotonic() - begin_s < CLAIM_LASTS_S + 2
    assert keys_under(store, work_claims(KEY)) == []


def test_a_holder_that_gets_on_is_not_taken_over_from() -> None:
    """The holder works for ten times as long as a claim lasts; the other one looks whenever time passes."""
    store = make_store()
    slow, waiting = make_runtime(1), make_runtime(2)
    bringer, other = Bringer(store), Bringer(store)
    alive: list[Alive] = []

    def bring(sign: Alive) -> None:
        alive.append(sign)
        OncePerSite(store, waiting).see_to(Errand(KEY, look, other.bring))
        bringer.bring(sign)

    def look() -> bool:
        slow.clock.sleep(1.0)
        alive[0]()
        return slow.clock.monotonic() > begin_s + 10 * CLAIM_LASTS_S

    begin_s = slow.clock.monotonic()
    assert OncePerSite(store, slow).see_to(Errand(KEY, bringer.is_here, bring))
    assert (bringer.count, other.count) == (1, 0)


def test_whoever_fails_leaves_it_to_the_next() -> None:
    store, runtime = make_store(), make_runtime(1)

    def fail(_: Alive) -> None:
        raise Corrupt("the source is damaged")

    bringer = Bringer(store)
    once = OncePerSite(store, runtime)
    with pytest.raises(Corrupt, match="the source"):
        once.see_to(Errand(KEY, bringer.is_here, fail))
    begin_s = runtime.clock.monotonic()
    assert once.see_to(bringer.errand())
    assert runtime.clock.monotonic() == begin_s


def test_what_stands_among_the_claims_and_is_none_is_passed_over() -> None:
    store = make_store()
    store.put(f"{work_claims(KEY)}x", [b""], mode="create")
    assert OncePerSite(store, make_runtime()).see_to(Bringer(store).errand())
