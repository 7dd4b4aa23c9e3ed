"""Whose turn it is: a backlog of one run keeps no other waiting, and a round ends in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fwstore.care.gc import GcOptions, collect
from fwstore.plan.retention import Keep
from fwstore.sched import Runtime
from fwstore.store.memory import MemoryStore
from fwstore.wan.line import LOOK_AGAIN_S
from fwstore.wan.reports import ReplicationReport
from support.faults import FaultyStore, Operation
from support.lineages import Saver, fresh_log, make_runtime, make_store, resume, trained
from support.replicas import replicate, replicator


def turns(report: ReplicationReport) -> list[tuple[str, int]]:
    return [(copied.run, copied.step) for copied in report.copied]


def slow(store: MemoryStore, runtime: Runtime, pack_s: float) -> FaultyStore:
    """A site from which every pack takes a while."""

    def wait(operation: Operation) -> None:
        if operation.name == "read_into":
            runtime.clock.sleep(pack_s)

    return FaultyStore(store, wait)


def once_at(operation: Callable[[], object], read: int) -> Callable[[Operation], None]:
    """Do something before one of the reads."""
    seen = 0

    def act(found: Operation) -> None:
        nonlocal seen
        if found.name == "read_into":
            seen += 1
            if seen == read:
                operation()

    return act


def test_a_backlog_of_one_run_keeps_no_other_waiting() -> None:
    """Another run is looked at again after a while: its newest comes first, and it is fenced."""
    near, _ = trained(6)
    other = Saver(resume(near, make_runtime(3), name="other"))
    other.commit(1)
    runtime, far = make_runtime(9), make_store()

    def another_job() -> None:
        Saver(resume(near, make_runtime(4), name="other")).commit(2)

    busy = FaultyStore(slow(near, runtime, LOOK_AGAIN_S), once_at(another_job, 3))
    report = replicator(far, busy, runtime=runtime).once()
    assert not report.troubles
    assert ("other", 2) in turns(report)[2:5]
    assert report.fenced.count("other") == 2, "at first and when the other job came"


def test_a_round_ends_in_time_and_the_next_one_goes_on_and_finds_what_is_new() -> None:
    near, _ = trained(6)
    runtime, far = make_runtime(9), make_store()
    worker = replicator(far, slow(near, runtime, 10.0), runtime=runtime)
    first = worker.once(at_most_s=15.0)
    assert first.more
    assert 0 < len(first.copied) < 6
    assert not first.left
    Saver(resume(near, make_runtime(3), name="other")).commit(1)
    rest = worker.once()
    assert not rest.more
    assert ("other", 1) in turns(rest)[:2]
    assert len(first.copied) + len(rest.copied) == 7


def test_what_failed_waits_behind_a_backlog_of_many_rounds() -> None:
    near, saver = trained(4)
    saver.commit(50, fresh=1)
    bad = next(p for p in saver.packs if p.save == saver.save).key([saver.term.keys])
    good = near.get(bad, limit_bytes=1 << 20)
    near.put(bad, [b"bad"], mode="overwrite")
    runtime, far = make_runtime(9), make_store()
    worker = replicator(far, slow(near, runtime, 10.0), runtime=runtime)
    reports = [worker.once(at_most_s=5.0) for _ in range(3)]
    assert [len(report.left) for report in reports] == [1, 0, 0], "tried once"
    near.put(bad, [good], mode="overwrite")
    brought = [turn for report in (*reports, worker.once()) for turn in turns(report)]
    assert brought[-1] == ("run", 50)
    assert len(brought) == 5


def test_a_worker_reads_no_condemned_list_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this log forgot is in its lists; they never change."""
    monkeypatch.setattr("fwstore.log.fold.GONE_MAX", 1)
    near, _ = trained(4)
    far = make_store()
    replicate(far, near)
    collect(fresh_log(far), GcOptions(keep=Keep(last=1)))
    watched = FaultyStore(far)
    worker = replicator(watched, near)
    assert len(worker.once().passed_over) == 3
    assert [o for o in watched.operations if "/_condemned/" in o.key]
    watched.reset()
    assert len(worker.once().passed_over) == 3
    assert not [o for o in watched.operations if "/_condemned/" in o.key]
