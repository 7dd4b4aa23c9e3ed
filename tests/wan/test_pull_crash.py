"""A worker that dies at any operation, answers that are lost, and workers beside each other."""

from __future__ import annotations

import pytest

from fwstore.care.gc import GcOptions, collect
from fwstore.format.record import Hold, Publish
from fwstore.log.lineage import delete, find
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from support.faults import WRITES, Fault, FaultyStore, Operation, every_crash, fault_at
from support.lineages import fresh_log, keys_under, make_store, pack_keys, trained
from support.replicas import check_replica, differing, replicate, steps

ALL = GcOptions()
EVERY = frozenset({*WRITES, "get", "get_range", "read_into", "head", "list", "begin", "write"})


def objects(store: MemoryStore) -> set[str]:
    """Every pack, manifest and part."""
    prefixes = ("packs/", "meta/run@1/_snap/", "staged/")
    return {key for key in keys_under(store, "") if key.startswith(prefixes)}


def test_a_pull_survives_a_crash_at_every_operation() -> None:
    """Nothing half is visible, the next worker finishes, and no byte too many is left."""
    near, _ = trained(2)
    clean = make_store()
    replicate(clean, near)
    deaths = 0
    for death, far in every_crash(make_store, lambda s: replicate(s, near), counted=EVERY):
        deaths += 1
        assert isinstance(far, MemoryStore)
        if find(far, "run") is not None:
            check_replica(far)
        report = replicate(far, near)
        assert not report.troubles, death
        log = check_replica(far)
        assert {entry.step for entry in log.fold.live()} == {0, 10}, death
        assert differing(near, far, list(log.fold.entries)) == [], death
        assert not log.fold.holds, death
        collect(log, ALL)
        assert objects(far) == objects(clean), death
    assert deaths > 60


def test_what_a_dead_pull_left_is_collected_once_its_snapshot_is_gone() -> None:
    near, _ = trained(2)
    for death, far in every_crash(make_store, lambda s: replicate(s, near)):
        assert isinstance(far, MemoryStore)
        gone = make_store()
        gone._objects.update(near._objects)
        delete(fresh_log(gone), "simulated")
        replicate(far, gone)
        if find(far, "run") is None:
            continue
        log = fresh_log(far)
        assert not log.fold.holds, death
        collect(log, ALL)
        check_replica(far)
        listed = {entry.id for entry in log.fold.live()}
        left = {key.split("/")[3] for key in keys_under(far, log.keys.snapshots)}
        assert left == listed, death
        if not listed:
            assert objects(far) == set(), death


@pytest.mark.parametrize("fault", ["fail", "lose", "late"])
def test_a_lost_answer_at_any_write_is_made_good_by_the_next_round(fault: Fault) -> None:
    near, _ = trained(2)
    whole = FaultyStore(make_store(), counted=WRITES)
    replicate(whole, near)
    for operation in whole.operations:
        far = make_store()
        shaky = FaultyStore(far, fault_at(operation.number, fault), counted=WRITES)
        replicate(shaky, near)
        shaky.land()
        replicate(far, near)
        log = check_replica(far)
        assert {entry.step for entry in log.fold.live()} == {0, 10}, operation
        assert publishes(far) == 2, operation
        collect(log, ALL)
        assert not log.fold.holds, operation


def publishes(store: Store) -> int:
    return sum(isinstance(record.body, Publish) for record in fresh_log(store).records())


def test_two_workers_at_once_publish_once() -> None:
    """The second worker does all of its work in the middle of the first one's, at every operation."""
    near, _ = trained(2)
    whole = FaultyStore(make_store())
    replicate(whole, near)
    for number in range(1, len(whole.operations) + 1):
        far = make_store()
        racing = FaultyStore(far)

        def other(operation: Operation, at: int = number, store: MemoryStore = far) -> None:
            if operation.number == at:
                replicate(store, near)

        racing.reset(other)
        report = replicate(racing, near)
        assert not report.troubles, number
        assert publishes(far) == 2, number
        log = check_replica(far)
        assert not log.fold.holds, number
        collect(log, ALL)
        assert len(pack_keys(far, log.keys)) == 5, number


def test_a_worker_whose_intent_another_withdrew_begins_again() -> None:
    """A worker that knows of fewer sites withdraws, a collection condemns what came: never the old keys again."""
    near, _ = trained(1)
    third = make_store()
    replicate(third, near)
    delete(fresh_log(near), "simulated")
    kinds: set[str] = set()
    whole = FaultyStore(make_store())
    replicate(whole, third)
    for number in range(1, len(whole.operations) + 1):
        far = make_store()
        racing = FaultyStore(far)

        def other(operation: Operation, at: int = number, store: MemoryStore = far) -> None:
            if operation.number == at and find(store, "run") is not None:
                replicate(store, near)
                collect(fresh_log(store), ALL)

        racing.reset(other)
        report = replicate(racing, third)
        kinds |= {type(trouble.error).__name__ for trouble in report.troubles}
        log = check_replica(far)
        assert steps(report) == [0] or report.troubles, number
        replicate(far, near)
        collect(fresh_log(far), ALL)
        check_replica(far)
        live = {entry.id for entry in log.refresh().live()}
        left = {key.split("/")[3] for key in keys_under(far, log.keys.snapshots)}
        assert left == live, number
        assert bool(pack_keys(far, log.keys)) == bool(live), number
    assert kinds <= {"Expired", "Conflict"}


def test_intents_are_not_written_twice() -> None:
    near, _ = trained(1)
    for death, far in every_crash(make_store, lambda s: replicate(s, near)):
        replicate(far, near)
        holds = [r for r in fresh_log(far).records() if isinstance(r.body, Hold)]
        assert len(holds) == 1, death
