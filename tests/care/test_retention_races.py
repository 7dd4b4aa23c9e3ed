"""Retention beside jobs that change what is newest while it decides."""

from __future__ import annotations

from fwstore.care.gc import GcOptions, collect
from fwstore.log.log import Log
from fwstore.log.pins import pin
from fwstore.plan.retention import Keep
from support.faults import Fault, FaultyStore, Operation
from support.lineages import canonical_steps, fresh_log, make_runtime, read_packs, resume, trained


def test_what_becomes_the_newest_while_retention_decides_is_kept() -> None:
    """A job goes back to an older base just before the record is appended: what is before that base is now to be kept."""
    store, saver = trained(saves=5)
    entries = fresh_log(store).fold.live()
    resumed: list[int] = []

    def plan(operation: Operation) -> Fault | None:
        if operation.name == "create" and "/_log/" in operation.key and not resumed:
            resumed.append(resume(store, make_runtime(3), base=entries[2].id).number)
        return None

    slow = FaultyStore(store, plan)
    log = Log(slow, saver.term.keys, saver.term.lineage, make_runtime(4), read_packs)
    log.refresh()
    report = collect(log, GcOptions(keep=Keep(last=2), tails_s=1e12))
    assert resumed == [2]
    assert canonical_steps(store) == [entries[2].step, entries[1].step]
    # What is told is what was done, not what was planned before.
    assert {verdict.id for verdict in report.kept} == {entry.id for entry in entries[1:]}
    assert [verdict.id for verdict in report.expired] == [entries[0].id]


def test_what_is_pinned_while_retention_decides_is_told_as_kept() -> None:
    store, saver = trained(saves=4)
    entries = fresh_log(store).fold.live()
    pinned: list[str] = []

    def plan(operation: Operation) -> Fault | None:
        if operation.name == "create" and "/_log/" in operation.key and not pinned:
            pinned.append(pin(fresh_log(store), entries[0].id, "for the paper"))
        return None

    log = Log(
        FaultyStore(store, plan), saver.term.keys, saver.term.lineage, make_runtime(4), read_packs
    )
    log.refresh()
    report = collect(log, GcOptions(keep=Keep(last=2)))
    assert {verdict.id: verdict.reason for verdict in report.kept}[entries[0].id] == (
        "pinned: for the paper"
    )
    assert [verdict.id for verdict in report.expired] == [entries[1].id]
