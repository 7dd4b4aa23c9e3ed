"""One of two ranks dies at every call by which it changes the store; the other one must not hang, nor lose.

The ranks are threads with stores, schedulers and clocks of their own and meet through the store. Once the
victim is dead, time flies for the survivor, so that its deadlines pass soon.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest

import fwstore
from fwstore.base.clock import SystemClock
from fwstore.checkpoint.coordinator import StoreCoordinator
from fwstore.format.keys import LineageKeys
from fwstore.sched import ThreadScheduler
from fwstore.store.base import Store
from support.aftermath import Place, Promise, checkpoints, judge, run, save
from support.faults import WRITES, Crash, FaultyStore, Plan, When, crash_at, no_faults
from support.figures import Figures
from support.lineages import make_runtime, make_store
from support.oracle import make_state
from support.processes import copied, opened

pytestmark = pytest.mark.slow

STEPS = (2, 3)
WHENS: tuple[When, ...] = ("before", "during")
COUNTED = WRITES | {"begin", "write"}
_HANG_S = 60.0


class Clock(SystemClock):
    """The time of a rank: it flies as soon as the other rank is dead."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        self._gone = gone
        self._skipped_s = 0.0

    def monotonic(self) -> float:
        if self._gone():
            self._skipped_s += 300.0
        return time.monotonic() + self._skipped_s


@dataclass
class Job:
    """Two ranks of one job over one store, one of which dies at a call.

    Attributes:
        inner: The store.
        victim: The rank that dies.
        plan: When it dies.
        acknowledged: What either of them was promised.
    """

    inner: Store
    victim: int
    plan: Plan = no_faults
    acknowledged: set[Place] = field(default_factory=set)
    _unexpected: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dying = FaultyStore(self.inner, self.plan, counted=COUNTED)

    def run(self) -> None:
        """Let both ranks save, until each has ended."""
        ranks = [
            threading.Thread(target=self._guarded, args=self._made(r), daemon=True) for r in (0, 1)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(_HANG_S)
            assert not rank.is_alive(), "a rank hangs"
        assert not self._unexpected, self._unexpected

    def _made(self, rank: int) -> tuple[int, fwstore.Repository]:
        dies = rank == self.victim
        runtime = replace(
            make_runtime(10 + rank),
            clock=SystemClock() if dies else Clock(lambda: self.dying.dead),
            scheduler=ThreadScheduler(2),
        )
        return rank, opened(self.dying if dies else self.inner, runtime)

    def _guarded(self, rank: int, repository: fwstore.Repository) -> None:
        try:
            with suppress(Crash, fwstore.Unavailable), repository:
                self._save(rank, repository)
        except BaseException as error:  # noqa: BLE001 - shown by `run`
            self._unexpected.append(error)

    def _save(self, rank: int, repository: fwstore.Repository) -> None:
        channel = StoreCoordinator(repository.store, LineageKeys("run", 1), "job", rank, 2)
        with repository.run("run").writer(rank=rank, world_size=2, coordinator=channel) as writer:
            for step in STEPS:
                with suppress(fwstore.Unavailable):
                    if writer.save(step, make_state(step)).result() is not None:
                        self.acknowledged.add(("run", step))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_dies_at_every_write(victim: int, figures: Figures) -> None:
    origin = make_store()
    run(origin, save("run", 0, 1))
    before = checkpoints(origin)
    new = {("run", step) for step in STEPS}
    whole = Job(copied(origin), victim)
    whole.run()
    assert whole.acknowledged == new
    for operation, when in itertools.product(whole.dying.operations, WHENS):
        job = Job(copied(origin), victim, crash_at(operation.number, when))
        job.run()
        assert job.dying.dead
        promise = Promise(
            kept=frozenset(before | job.acknowledged),
            possible=frozenset(before | new),
            due=frozenset(),
            again=save("run"),
        )
        try:
            judge(job.inner, promise, collect_first=operation.number % 2 == 0)
        except (AssertionError, fwstore.FwstoreError) as error:
            raise AssertionError(f"rank {victim} dead {when} {operation}") from error
    assert len(whole.dying.operations) > 8
    deaths = len(WHENS) * len(whole.dying.operations)
    figures.note("crash points of ranks", {"covered": deaths, "total": deaths})
