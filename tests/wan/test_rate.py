"""The cap of a link: held by one, two or eight workers together, whoever comes, goes, dies or idles.

Everything runs in one thread with a clock of its own, so the figures are exact and repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from fwstore.base.errors import FwstoreError, LimitExceeded, PermissionDenied, Unavailable
from fwstore.format.keys import link_lease, link_leases
from fwstore.format.lease import parse_lease_name
from fwstore.sched import Runtime
from fwstore.store.base import Mode
from fwstore.store.memory import MemoryStore
from fwstore.wan.pace import Pace
from fwstore.wan.rate import LASTS_S, RENEW_S, LinkRate
from support.faults import FaultyStore
from support.lineages import make_runtime
from support.stored import SITE

CAP = 10_000_000
TICK_S = 0.01
PIECE = 50_000


@dataclass
class Clock:
    """A clock that the test sets; a sleep moves it."""

    now_s: float = 100.0

    def wall(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Worker:
    """A worker that always has the next piece to fetch, as long as it is let."""

    rate: LinkRate
    pieces: float = math.inf
    alive: bool = True
    taken: int = 0
    _ticket: float | None = None

    def tick(self) -> int:
        """Take what is granted now; return its bytes."""
        before = self.taken
        while self.alive:
            if self._ticket is None and self.pieces:
                self._ticket = self.rate.claim(PIECE)
                self.pieces -= 1
            if self._ticket is None or self.rate.wait_s(self._ticket):
                break
            self._ticket = None
            self.taken += PIECE
        return self.taken - before


@dataclass
class Bed:
    """Workers of one link, and what they took by tick."""

    clock: Clock = field(default_factory=Clock)
    workers: list[Worker] = field(default_factory=list)
    by_tick: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.runtime())

    def runtime(self) -> Runtime:
        return replace(make_runtime(len(self.workers)), clock=self.clock)

    def join(self, cap: float = CAP, *, urgent: bool = False, spare: bool = False) -> Worker:
        runtime = self.runtime()
        rate = LinkRate(self.store, runtime, source=SITE, cap=cap, urgent=urgent, spare=spare)
        self.workers.append(Worker(rate))
        return self.workers[-1]

    def run(self, seconds: float, before: Callable[[], None] = lambda: None) -> int:
        """Let time pass; return what was taken in it."""
        begin = len(self.by_tick)
        for _ in range(round(seconds / TICK_S)):
            before()
            self.clock.now_s += TICK_S
            self.by_tick.append(sum(worker.tick() for worker in self.workers))
        return sum(self.by_tick[begin:])

    def worst(self, window_s: float = 10.0) -> float:
        """Return the most that was taken in any window, as a share of the cap."""
        ticks = round(window_s / TICK_S)
        sums = [sum(self.by_tick[i : i + ticks]) for i in range(len(self.by_tick))]
        return max(sums) / (CAP * window_s)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_workers_together_take_the_cap(count: int) -> None:
    bed = Bed()
    for _ in range(count):
        bed.join()
    bed.run(5)
    for _ in range(4):
        assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert bed.worst() < 1.05
    taken = [worker.taken for worker in bed.workers]
    assert max(taken) < 1.1 * min(taken)


def test_workers_that_begin_at_once_do_not_take_the_cap_twice() -> None:
    bed = Bed()
    bed.join()
    bed.join()
    assert bed.run(1) <= 1.3 * CAP
    bed.run(10)
    assert bed.worst() < 1.05


def test_whoever_comes_gets_a_share_and_nobody_goes_beyond_the_cap() -> None:
    bed = Bed()
    bed.join()
    bed.run(10)
    for count in (2, 3, 4):
        bed.join()
        assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
        assert {round(w.rate.statistics().share / CAP * count, 2) for w in bed.workers} == {1.0}
    assert bed.worst() < 1.05
    assert bed.workers[0].rate.statistics().workers == 4


def test_whoever_leaves_gives_its_share_to_the_others() -> None:
    bed = Bed()
    first, second = bed.join(), bed.join()
    bed.run(10)
    second.alive = False
    second.rate.close()
    bed.run(2 * RENEW_S)
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert first.rate.statistics().share == CAP
    assert bed.worst() < 1.05


def test_the_share_of_a_killed_worker_is_taken_when_its_lease_is_over() -> None:
    bed = Bed()
    first, second = bed.join(), bed.join()
    bed.run(10)
    second.alive = False
    bed.run(1)
    assert first.rate.statistics().share == pytest.approx(CAP / 2)
    bed.run(LASTS_S + RENEW_S)
    assert first.rate.statistics().share == CAP
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert bed.worst() < 1.05
    bed.run(70)
    names = [info.key.removeprefix(link_leases(SITE)) for info in bed.store.list(link_leases(SITE))]
    assert {parse_lease_name(name).worker for name in names} == {first.rate._worker}
    assert len(names) == 2


def test_a_worker_that_stood_still_takes_nothing_before_it_asked_again() -> None:
    bed = Bed()
    first, second = bed.join(), bed.join()
    bed.run(10)
    second.alive = False
    bed.run(20)
    assert first.rate.statistics().share == CAP
    second.alive = True
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert bed.worst() < 1.05
    assert second.rate.statistics().share == pytest.approx(CAP / 2)


def test_the_share_of_an_idle_worker_goes_to_the_others_and_comes_back() -> None:
    bed = Bed()
    busy, idle = bed.join(), bed.join()
    bed.run(10)
    idle.pieces = 0
    bed.run(LASTS_S + 2 * RENEW_S)
    before = busy.taken
    bed.run(10)
    assert busy.taken - before == pytest.approx(10 * CAP, rel=0.05)
    idle.pieces = math.inf
    bed.run(2.5 * RENEW_S)
    before = idle.taken
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert idle.taken - before == pytest.approx(5 * CAP, rel=0.1)
    assert bed.worst() < 1.05


def test_a_worker_that_needs_little_leaves_the_rest() -> None:
    bed = Bed()
    busy, slow = bed.join(), bed.join()
    ticks = iter(range(10**6))

    slow.pieces = 0

    def feed() -> None:
        slow.pieces += next(ticks) % 10 == 0

    bed.run(10, feed)
    before = busy.taken, slow.taken
    bed.run(10, feed)
    assert slow.taken - before[1] == pytest.approx(10 * 10 * PIECE, rel=0.05)
    assert busy.taken - before[0] > 0.9 * (10 * CAP - 10 * 10 * PIECE)
    assert bed.worst() < 1.05


def test_a_job_that_resumes_comes_before_replication_and_does_not_starve_it() -> None:
    bed = Bed()
    copying, resuming = bed.join(), bed.join(urgent=True)
    resuming.pieces = 0
    bed.run(10)
    resuming.pieces = math.inf
    bed.run(3 * RENEW_S)
    before = copying.taken, resuming.taken
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert resuming.taken - before[1] == pytest.approx(9 * CAP, rel=0.05)
    assert copying.taken - before[0] == pytest.approx(CAP, rel=0.2)
    resuming.pieces = 0
    bed.run(LASTS_S + 3 * RENEW_S)
    assert copying.rate.statistics().share > 0.95 * CAP
    assert bed.worst() < 1.05


def test_what_can_wait_takes_what_is_left_and_gives_way_to_all() -> None:
    bed = Bed()
    healing, copying = bed.join(spare=True), bed.join()
    copying.pieces = 0
    bed.run(2 * LASTS_S)
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    before = healing.taken, copying.taken
    assert before[1] == 0
    copying.pieces = math.inf
    bed.run(LASTS_S)
    before = healing.taken, copying.taken
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert copying.taken - before[1] > 0.95 * 10 * CAP
    assert 0 < healing.taken - before[0] < 0.05 * 10 * CAP
    copying.pieces = 0
    bed.run(LASTS_S + 3 * RENEW_S)
    assert healing.rate.statistics().share > 0.9 * CAP
    assert bed.worst() < 1.05


def test_a_cap_that_is_lowered_by_one_holds_for_all() -> None:
    bed = Bed()
    workers = [bed.join() for _ in range(4)]
    bed.run(10)
    workers.append(bed.join(CAP // 4))
    bed.run(2 * RENEW_S)
    assert bed.run(10) == pytest.approx(10 * CAP / 4, rel=0.05)
    assert {worker.rate.statistics().cap for worker in workers} == {CAP / 4}
    workers[-1].alive = False
    workers[-1].rate.close()
    bed.run(3 * RENEW_S)
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert bed.worst() < 1.05


def test_leases_that_are_damaged_are_passed_over() -> None:
    bed = Bed()
    worker = bed.join()
    bed.store.put(link_lease(SITE, "ab"), [b"{}"], mode="overwrite")
    bed.run(5)
    assert worker.rate.statistics().share == CAP


def test_links_from_other_sites_are_others() -> None:
    bed = Bed()
    here = bed.join()
    other = LinkRate(bed.store, bed.runtime(), source="f" * 32, cap=CAP)
    bed.workers.append(Worker(other))
    bed.run(5)
    assert here.rate.statistics().share == other.statistics().share == CAP


def test_a_destination_that_does_not_answer_stops_the_transfer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bed = Bed()
    worker = bed.join()
    bed.run(5)

    def fail(*_: object, **__: object) -> None:
        raise Unavailable("it is down")

    with monkeypatch.context() as patch:
        patch.setattr(bed.store, "put", fail)
        bed.run(LASTS_S + RENEW_S)
        assert bed.run(10) == 0
        with pytest.raises(Unavailable, match="it is down"):
            bed.run(worker.rate._runtime.limits.request_timeout_s)
    bed.run(2)
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)


def test_after_a_pause_one_renewal_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed()
    worker = bed.join()
    bed.run(5)
    worker.pieces = 0
    bed.clock.now_s += 3 * worker.rate._runtime.limits.request_timeout_s

    def fail(*_: object, **__: object) -> None:
        raise Unavailable("it is down")

    worker.pieces = math.inf
    with monkeypatch.context() as patch:
        patch.setattr(bed.store, "put", fail)
        bed.run(2 * RENEW_S)
    bed.run(2 * RENEW_S)
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)


def test_many_workers_cost_three_requests_a_second_each() -> None:
    """With five hundred at once it is the same, but takes a test too long."""
    bed = Bed()
    counted = FaultyStore(bed.store)
    for number in range(32):
        runtime = replace(make_runtime(number), clock=bed.clock)
        bed.workers.append(Worker(LinkRate(counted, runtime, source=SITE, cap=CAP)))
    bed.run(5)
    counted.reset()
    assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)
    assert counted.counts.keys() == {"list", "overwrite", "delete"}
    assert max(counted.counts.values()) <= 11 * 32
    assert bed.worst() < 1.05


@pytest.mark.parametrize("refusal", [LimitExceeded, PermissionDenied])
def test_a_job_that_resumes_takes_what_is_left_also_where_it_may_not_write(
    refusal: type[FwstoreError], monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed()
    resuming, put = bed.join(urgent=True), bed.store.put

    def refuse(key: str, *_: object, **__: object) -> None:
        raise refusal(key)

    with monkeypatch.context() as patch:
        patch.setattr(bed.store, "put", refuse)
        bed.run(2 * RENEW_S)
        assert bed.run(10) == pytest.approx(10 * CAP, rel=0.05)

        def only_others(key: str, content: list[bytes], *, mode: Mode) -> None:
            (refuse if resuming.rate._worker in key else put)(key, content, mode=mode)

        patch.setattr(bed.store, "put", only_others)
        copying = bed.join()
        bed.run(2 * RENEW_S)
        before = resuming.taken, copying.taken
        bed.run(10)
        assert resuming.taken - before[0] == pytest.approx(CAP, rel=0.1)
        assert copying.taken - before[1] == pytest.approx(10 * CAP, rel=0.05)
    assert not [k for k in bed.store.list(link_leases(SITE)) if resuming.rate._worker in k.key]


def test_a_refused_lease_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed()
    rate = bed.join().rate

    def refuse(*_: object, **__: object) -> None:
        raise PermissionDenied("no")

    monkeypatch.setattr(bed.store, "put", refuse)
    with pytest.raises(PermissionDenied):
        rate.take(1)


def test_take_waits_through_the_clock() -> None:
    bed = Bed()
    rate = bed.join().rate
    begin_s = bed.clock.now_s
    for _ in range(6000):
        rate.take(PIECE)
    rate.take(1)
    taken = rate.statistics().bytes_taken
    assert taken / (bed.clock.now_s - begin_s) == pytest.approx(CAP, rel=0.05)
    rate.close()
    assert not list(bed.store.list(link_leases(SITE)))


def test_a_forked_child_is_another_worker() -> None:
    bed = Bed()
    rate = bed.join().rate
    rate.take(1)
    before = rate._worker
    rate.after_fork()
    assert rate._worker != before
    assert (rate.statistics().share, rate.statistics().bytes_taken) == (0, 0)


def test_claims_are_granted_in_their_order() -> None:
    pace = Pace(0.0)
    pace.change(100.0, 0.0)
    first, second, third = (pace.claim(size, 0.0) for size in (100, 50, 1))
    assert pace.wait_s(first, 0.0) == 0
    assert 0 < pace.wait_s(second, 0.9) < pace.wait_s(third, 0.9)
    assert pace.wait_s(second, 1.0) == 0
    assert pace.wait_s(third, 1.4) > 0
    assert pace.wait_s(third, 1.5) == 0
