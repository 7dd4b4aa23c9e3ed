"""Jobs, zombies, collectors, pinners and readers in seeded disorder, with every kind of fault.

Processes are interleaved at store operations: in the middle of one operation of one process, others may do
whole actions of theirs, three deep. Operations fail, lose their answer, land late, or are the last of
their process. An oracle looks at the store after every action; a seed repeats a run exactly.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest

from fwstore.base.config import Limits
from fwstore.base.errors import Conflict, Expired, FwstoreError, NotFound, Unavailable
from fwstore.care.gc import GcOptions, collect
from fwstore.format.packtable import PackInfo, parse_pack_table
from fwstore.format.record import Commit, Fence, Open
from fwstore.log.fold import uses_of
from fwstore.log.history import history
from fwstore.log.lineage import find
from fwstore.log.log import Log
from fwstore.log.pins import pin, unpin
from fwstore.plan.retention import Keep
from fwstore.sched import Runtime
from support.faults import Crash, Fault, FaultyStore, Operation
from support.figures import Figures
from support.lineages import (
    Saver,
    fresh_log,
    keys_under,
    make_runtime,
    make_store,
    missing_of_roots,
    pack_keys,
    read_packs,
    resume,
)

DEPTH = 3
OPTIONS = GcOptions(keep=Keep(last=2), tails_s=-1e12)


@dataclass(eq=False)
class Job:
    """A process that holds a term, perhaps one that has passed."""

    saver: Saver
    store: FaultyStore
    packs: list[PackInfo]
    busy: bool = False


@dataclass
class World:
    """One store, the processes around it, and what they were promised."""

    seed: int
    calm: bool = False
    depth: int = 0
    jobs: list[Job] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    acked: dict[str, int] = field(default_factory=dict)
    handles: list[FaultyStore] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.inner = make_store()
        # Swarm testing: each kind of fault is absent from some of the runs.
        kinds: list[tuple[Fault, float]] = [
            ("fail", 0.01),
            ("lose", 0.02),
            ("late", 0.02),
            ("crash", 0.004),
        ]
        self.rates = [(kind, rate) for kind, rate in kinds if self.random.random() < 0.7]

    def runtime(self) -> Runtime:
        made = make_runtime(self.random.getrandbits(60))
        patient = self.calm or self.random.random() < 0.6
        return replace(made, limits=Limits(request_timeout_s=60.0 if patient else 0.01))

    def process(self) -> FaultyStore:
        handle = FaultyStore(self.inner, self.plan)
        self.handles.append(handle)
        return handle

    def plan(self, operation: Operation) -> Fault | None:
        """Let others act in the middle of this operation, then perhaps disturb it."""
        if self.calm:
            return None
        # Reading alone changes nothing for others: it is at writes that their turn matters most.
        chance = 0.2 if operation.writes else 0.004
        if self.depth < DEPTH and self.random.random() < chance:
            self.act()
        # Stores repeat reads by themselves, so reads rarely fail.
        drawn = self.random.random() * (1 if operation.writes else 8)
        for fault, rate in self.rates:
            drawn -= rate
            if drawn < 0:
                self.done[fault] += 1
                return fault
        return None

    def act(self) -> None:
        """Let some process do something; what it may raise is part of the game."""
        action = self.random.choice(
            [self.resume, self.save, self.save, self.save, self.collect, self.pin, self.read]
        )
        self.depth += 1
        try:
            action()
            self.done[action.__name__] += 1
        except (Crash, Conflict, Unavailable, NotFound) as error:
            self.done[type(error).__name__] += 1
        finally:
            self.depth -= 1

    def step(self) -> None:
        """One action with all that happens inside it; late writes land; the oracle looks."""
        self.act()
        for handle in self.handles:
            if self.random.random() < 0.5:
                handle.land()
        self.check()

    def log(self, store: FaultyStore) -> Log:
        lineage = find(store, "run")
        if lineage is None:
            raise NotFound("no run yet")
        log = Log(store, lineage.keys, lineage.lineage, self.runtime(), read_packs)
        log.refresh()
        return log

    def resume(self) -> None:
        store = self.process()
        term = resume(store, self.runtime())
        packs: list[PackInfo] = []
        if term.base is not None:
            table = store.get(term.keys.pack_table(term.base.id, 0), limit_bytes=1 << 20)
            packs = list(parse_pack_table(table)[1])
        self.jobs.append(Job(Saver(term), store, packs))

    def save(self) -> None:
        idle = [job for job in self.jobs if not job.busy and not job.store.dead]
        if not idle:
            return
        job = idle[-1] if self.random.random() < 0.7 else self.random.choice(idle)
        job.busy = True
        try:
            reuse = [pack for pack in job.packs if self.random.random() < 0.6]
            commit, packs = job.saver.write(job.saver.save * 10, reuse=reuse)
            entry = job.saver.term.commit(commit)
            job.saver.parent, job.packs = entry, packs
            self.acked[entry.id] = entry.term
        finally:
            job.busy = False

    def collect(self) -> None:
        collect(self.log(self.process()), OPTIONS)

    def pin(self) -> None:
        log = self.log(self.process())
        if self.pins and self.random.random() < 0.6:
            unpin(log, self.pins.pop())
        elif log.fold.live():
            self.pins.append(pin(log, self.random.choice(log.fold.live()).id, "test"))

    def read(self) -> None:
        log = self.log(self.process())
        for entry in log.fold.live():
            try:
                for key, size in read_packs(log.store, log.keys, uses_of(entry)):
                    assert len(log.store.get(key, limit_bytes=size)) == size
            except NotFound:
                assert isinstance(log.why_missing(entry.id), Expired)

    def check(self) -> None:
        if find(self.inner, "run") is None:
            assert not self.acked
            return
        log = fresh_log(self.inner)
        fold = log.fold
        assert missing_of_roots(log) == []
        remembered = fold.entries.keys() | fold.gone.keys()
        assert self.acked.keys() <= remembered
        fence, opened = 0, set()
        for record in log.records():
            if isinstance(record.body, Fence):
                fence = max(fence, record.term)
            if isinstance(record.body, Open | Commit):
                assert record.term >= fence, "a correct writer never lands behind a fence"
            if isinstance(record.body, Open):
                assert record.term not in opened
                opened.add(record.term)
        newest = [name for name, term in self.acked.items() if term == max(opened, default=0)]
        if newest:
            assert history(fold)[0].term == max(opened)

    def settle(self) -> None:
        """Faults end: a new job resumes, saves and collects, and nothing unneeded stays."""
        self.calm = True
        for handle in self.handles:
            handle.land()
        for _ in range(2):
            self.resume()
            self.jobs = self.jobs[-1:]
            self.save()
        for token in tuple(fresh_log(self.inner).fold.pins):
            with suppress(NotFound):
                unpin(fresh_log(self.inner), token)
        for _ in range(2):
            self.collect()
        self.check()
        log = fresh_log(self.inner)
        chain = history(log.fold)
        assert chain[0].id in self.acked
        assert len(chain) == min(2, len(chain))
        needed = {
            key
            for name in log.fold.roots()
            for key, _ in read_packs(self.inner, log.keys, uses_of(log.fold.entries[name]))
        }
        assert pack_keys(self.inner, log.keys) == needed
        snapshots = {key.split("/_snap/")[1].split("/")[0] for key in self.manifests(log)}
        assert snapshots == log.fold.roots().keys()

    def manifests(self, log: Log) -> list[str]:
        return keys_under(self.inner, log.keys.snapshots)


def play(seed: int, steps: int = 20) -> World:
    world = World(seed)
    while not world.jobs:
        with suppress(Crash, FwstoreError):
            world.resume()
    for _ in range(steps):
        world.step()
    world.settle()
    return world


@pytest.mark.slow
def test_no_disorder_breaks_an_invariant(soak: int, figures: Figures) -> None:
    done: Counter[str] = Counter()
    for seed in range(16 * soak):
        try:
            done += play(seed).done
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    for event in ("resume", "save", "collect", "pin", "read", "Crash", "Fenced", "lose", "late"):
        assert done[event] > 3, done
    figures.note("collections between all else", done)


def test_a_seed_repeats_its_run() -> None:
    first, second = play(3, 10), play(3, 10)
    assert first.done == second.done
    assert keys_under(first.inner, "") == keys_under(second.inner, "")
