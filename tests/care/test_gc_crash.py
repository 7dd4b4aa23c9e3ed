"""The collector under crashes, lost answers, colleagues, and snapshots larger than a list."""

from __future__ import annotations

import pytest

from fwstore.care.gc import GcOptions, collect
from fwstore.format.record import Condemn, Swept
from fwstore.plan.retention import Keep
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from support.faults import WRITES, Fault, FaultyStore, Operation, every_crash, fault_at
from support.lineages import (
    canonical_steps,
    fresh_log,
    keys_under,
    make_runtime,
    missing_of_roots,
    pack_keys,
    resume,
    trained,
)

LAST_TWO = GcOptions(keep=Keep(last=2))


def test_gc_survives_a_crash_at_every_operation() -> None:
    def prepared() -> MemoryStore:
        store, saver = trained(4)
        saver.write(999)
        resume(store, make_runtime(3))
        return store

    def scenario(store: Store) -> None:
        collect(fresh_log(store), LAST_TWO)

    clean = prepared()
    scenario(clean)
    wanted = {
        key for key in keys_under(clean, "") if key.startswith(("packs/", "meta/run@1/_snap"))
    }
    deaths = 0
    for death, store in every_crash(prepared, scenario, counted=WRITES):
        deaths += 1
        log = fresh_log(store)
        assert not missing_of_roots(log), death
        assert canonical_steps(store)[:2] == [30, 20], death
        collect(log, LAST_TWO)
        assert not missing_of_roots(log), death
        left = {
            key for key in keys_under(store, "") if key.startswith(("packs/", "meta/run@1/_snap"))
        }
        assert left == wanted, death
        fold = log.refresh()
        assert all(entry.swept for entry in fold.condemned.values()), death
    assert deaths > 10


def test_h16_a_snapshot_with_more_keys_than_a_list_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest ends with the last list, so that a crash between two lists forgets no pack."""
    monkeypatch.setattr("fwstore.care.survey.CONDEMNED_KEYS_MAX", 3)

    def prepared() -> MemoryStore:
        store, saver = trained(2)
        saver.commit(20, fresh=7)
        saver.commit(30, fresh=1)
        return store

    options = GcOptions(keep=Keep(last=1))
    for death, store in every_crash(prepared, lambda s: collect(fresh_log(s), options)):
        log = fresh_log(store)
        collect(log, options)
        assert missing_of_roots(log) == [], death
        assert len(pack_keys(store, log.keys)) == 1, death
        assert len(log.fold.condemned) >= 5, death
        assert len({key.split("/")[3] for key in keys_under(store, log.keys.snapshots)}) == 1, death


def test_two_workers_at_once_do_no_harm() -> None:
    """The second worker does all its work in the middle of the first one's, at every write."""
    for number in range(1, 12):
        store, _ = trained(4)
        racing = FaultyStore(store, counted=WRITES)

        def plan(operation: Operation, at: int = number, store: Store = store) -> Fault | None:
            if operation.number == at:
                collect(fresh_log(store), LAST_TWO)
            return None

        racing.reset(plan)
        collect(fresh_log(racing), LAST_TWO)
        log = fresh_log(store)
        assert not missing_of_roots(log)
        assert canonical_steps(store) == [30, 20]
        records = list(log.records())
        condemned = sum(r.body.count for r in records if isinstance(r.body, Condemn))
        assert condemned == 4 + 6
        assert sum(isinstance(r.body, Swept) for r in records) == len(log.fold.condemned)


@pytest.mark.parametrize("fault", ["lose", "late", "fail"])
def test_a_lost_answer_at_any_write_changes_nothing(fault: Fault) -> None:
    for number in range(1, 9):
        store, saver = trained(4)
        shaky = FaultyStore(store, fault_at(number, fault), counted=frozenset({"create"}))
        collect(fresh_log(shaky), LAST_TWO)
        shaky.land()
        assert not missing_of_roots(fresh_log(store))
        assert len(pack_keys(store, saver.term.keys)) == 1 + 4
