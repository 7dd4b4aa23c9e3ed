"""Retention beside jobs that change what is newest while it decides."""

from __future__ import annotations

from fwstore.care.gc import GcOptions, collect
from fwstore.log.log import Log
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
    collect(log, GcOptions(keep=Keep(last=2), tails_s=1e12))
    assert resumed == [2]
    assert canonical_steps(store) == [entries[2].step, entries[1].step]
