"""Rounds of replication over whole sites: order, proof, gone, refused, silent."""

from __future__ import annotations

from typing import Any

from fwstore.base.errors import Conflict, Corrupt, PermissionDenied, Unavailable
from fwstore.log.lineage import delete
from fwstore.log.pins import pin, tag
from fwstore.log.site import Site
from fwstore.log.terms import Candidate, take_term
from fwstore.plan.replication import Policy
from fwstore.store.memory import MemoryStore
from support.faults import Fault, FaultyStore, Operation
from support.lineages import (
    Saver,
    canonical_steps,
    fresh_log,
    keys_under,
    make_runtime,
    make_store,
    pack_keys,
    read_packs,
    resume,
    trained,
)
from support.replicas import (
    THIRD,
    check_replica,
    differing,
    published,
    replicate,
    replicator,
    steps,
)


def test_everything_arrives_newest_first_and_byte_for_byte() -> None:
    near, saver = trained(5)
    far = make_store()
    report = replicate(far, near)
    assert steps(report) == [40, 30, 20, 10, 0]
    assert not report.troubles
    assert not report.left
    log = check_replica(far)
    assert canonical_steps(far) == canonical_steps(near)
    assert differing(near, far, list(log.fold.entries)) == []
    assert keys_under(far, "staged/") == []
    assert not log.fold.holds
    assert pack_keys(far, saver.term.keys) == pack_keys(near, saver.term.keys)


def test_what_records_prove_to_be_here_crosses_once() -> None:
    """The frozen pack of the first save is used by all: it is asked of the near site once."""
    near, saver = trained(5)
    watched = FaultyStore(near)
    replicate(make_store(), watched)
    frozen = saver.packs[0].key([saver.term.keys])
    reads = [o for o in watched.operations if o.key == frozen]
    assert [o.name for o in reads] == ["get_range", "read_into"]


def test_a_second_round_copies_nothing_and_writes_nothing() -> None:
    near, _ = trained(3)
    far = make_store()
    worker = replicator(far, near)
    worker.once()
    watched = FaultyStore(far)
    for again in (worker, replicator(watched, near)):
        assert again.once().copied == ()
    assert not [o for o in watched.operations if o.writes]


def test_one_bad_snapshot_stops_no_other_and_is_tried_last() -> None:
    near, saver = trained(3)
    saver.commit(50, fresh=1)
    bad = next(p for p in saver.packs if p.save == saver.save).key([saver.term.keys])
    good = near.get(bad, limit_bytes=1 << 20)
    near.put(bad, [good[:100] + bytes([good[100] ^ 1]) + good[101:]], mode="overwrite")
    far = make_store()
    worker = replicator(far, near)
    report = worker.once()
    assert steps(report) == [20, 10, 0]
    (trouble,) = report.troubles
    assert isinstance(trouble.error, Corrupt)
    assert bad in str(trouble.error)
    assert "near" in str(trouble.error)
    assert [transfer.step for _, transfer in report.left] == [50]
    saver.commit(60, fresh=1)
    near.put(bad, [good], mode="overwrite")
    assert steps(worker.once()) == [60, 50]
    check_replica(far)


def test_every_flipped_byte_of_a_manifest_at_its_source_is_noticed() -> None:
    near, _ = trained(1)
    (entry,) = fresh_log(near).fold.live()
    for key in keys_under(near, f"meta/run@1/_snap/{entry.id}/"):
        content = near.get(key, limit_bytes=1 << 20)
        for place in range(0, len(content), 7):
            bad = make_store()
            bad._objects.update(near._objects)
            flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            bad.put(key, [flipped], mode="overwrite")
            far = make_store()
            (trouble,) = replicate(far, bad).troubles
            assert isinstance(trouble.error, Corrupt), (key, place)
            assert key in str(trouble.error)
            assert published(far) == []
            assert steps(replicate(far, bad, near)) == [0]
            assert differing(near, far, [entry.id]) == []


def test_a_third_site_gives_what_the_first_has_lost() -> None:
    near, saver = trained(2)
    third, far = make_store(), make_store()
    replicate(third, near)
    near.delete([min(pack_keys(near, saver.term.keys))])
    assert steps(replicate(far, near, third)) == [10, 0]
    check_replica(far)


def test_a_site_that_dies_in_the_middle_is_replaced_by_the_next() -> None:
    near, _ = trained(3)
    third = make_store()
    replicate(third, near)
    whole = FaultyStore(near)
    replicate(make_store(), whole)
    for number in range(4, len(whole.operations), 3):
        far = make_store()

        def dies(operation: Operation, at: int = number) -> Fault | None:
            return "fail" if operation.number >= at else None

        dying = FaultyStore(near, dies)
        assert sorted(steps(replicate(far, dying, third))) == [0, 10, 20], number
        check_replica(far)


def test_a_log_that_is_shorter_than_was_heard_is_refused_and_told() -> None:
    near, saver = trained(2)
    backup = make_store()
    backup._objects.update(near._objects)
    saver.commit(50)
    far = make_store()
    replicate(far, near)
    before = published(far)
    for fallen in (backup, diverged(backup)):
        report = replicate(far, fallen)
        (trouble,) = report.troubles
        assert isinstance(trouble.error, Conflict)
        assert "older backup" in str(trouble.error)
        assert trouble.site == "near"
        assert published(far) == before
    # Others go on, and so does it when it is itself again.
    saver.commit(60)
    assert steps(replicate(far, near)) == [60]


def diverged(store: MemoryStore) -> MemoryStore:
    """A store that went on by itself after it was restored."""
    other = make_store()
    other._objects.update(store._objects)
    saver = Saver(resume(other, make_runtime(77)))
    for step in range(70, 100, 10):
        saver.commit(step)
    return other


def test_what_was_heard_is_derived_and_lost_without_harm() -> None:
    near, saver = trained(2)
    far = make_store()
    replicate(far, near)
    keys = keys_under(far, "meta/run@1/_heard/")
    assert len(keys) == 2
    far.put(keys[0], [b"damaged"], mode="overwrite")
    far.delete([keys[1]])
    saver.commit(50)
    assert steps(replicate(far, near)) == [50]
    assert keys_under(far, "meta/run@1/_heard/") == keys


def test_another_lineage_of_the_same_name_is_refused_with_both_uuids() -> None:
    near, saver = trained(1)
    other = make_store()
    # The uuid of a lineage follows from its witnesses.
    alone = Site(THIRD, "third", other)
    stands = Candidate(
        name="run", home=alone, witnesses=(alone,), holder="job", read_packs=read_packs
    )
    term = take_term(stands, make_runtime(55))
    assert term.lineage != saver.term.lineage
    report = replicate(make_store(), near, other)
    (trouble,) = report.troubles
    assert isinstance(trouble.error, Conflict)
    assert trouble.site == "third"
    assert saver.term.lineage in str(trouble.error)
    assert term.lineage in str(trouble.error)
    assert steps(report) == [0]


def test_a_run_that_was_deleted_here_is_not_brought_back() -> None:
    near, saver = trained(1)
    far = make_store()
    replicate(far, near)
    delete(fresh_log(far), "not wanted here")
    saver.commit(10)
    report = replicate(far, near)
    assert (report.copied, report.left, report.troubles) == ((), (), ())


def test_a_run_that_is_deleted_here_in_the_middle_ends_the_round() -> None:
    near, _ = trained(3)
    far = make_store()

    def delete_meanwhile(operation: Operation) -> None:
        if operation.name == "read_into" and published(far) == [20]:
            delete(fresh_log(far), "not wanted here")

    report = replicate(far, FaultyStore(near, delete_meanwhile))
    assert steps(report) == [20]
    assert len(report.troubles) == 1, "the copy that was under way"


def test_a_run_that_no_policy_sends_here_leaves_no_trace() -> None:
    near, _ = trained(1)
    far = make_store()

    def nowhere(run: str) -> Policy | None:
        return None

    report = replicator(far, near, policy=nowhere).once()
    assert (report.copied, keys_under(far, "")) == ((), [])


def test_pins_and_tags_come_before_history() -> None:
    near, _ = trained(6)
    log = fresh_log(near)
    by_step = {entry.step: entry.id for entry in log.fold.live()}
    pin(log, by_step[10], "for the paper")
    tag(log, "best", by_step[20])
    assert steps(replicate(make_store(), near)) == [50, 20, 10, 40, 30, 0]


def test_what_is_newest_when_its_turn_comes_is_copied_first() -> None:
    near, saver = trained(3)
    far = make_store()
    saved: list[int] = []

    def save_meanwhile(operation: Operation) -> None:
        if operation.name == "read_into" and len(saved) < 2:
            saved.append(100 + len(saved))
            saver.commit(saved[-1])

    assert steps(replicate(far, FaultyStore(near, save_meanwhile))) == [20, 101, 100, 10, 0]


def test_a_site_that_follows_a_higher_term_is_fenced_late() -> None:
    near, _ = trained(1)
    Saver(resume(near, make_runtime(8))).commit(10)
    far = make_store()
    assert replicate(far, near).fenced == ("run",)
    assert fresh_log(far).fold.fence == 2
    assert replicate(far, near).fenced == ()


def test_a_store_of_its_own_that_does_not_answer_is_told_and_the_next_round_goes_on() -> None:
    near, _ = trained(2)
    far = make_store()
    failing = FaultyStore(far, lambda o: "fail" if o.number > 25 else None)
    report = replicate(failing, near)
    assert any(isinstance(trouble.error, Unavailable) for trouble in report.troubles)
    assert sorted([*steps(report), *steps(replicate(far, near))]) == [0, 10]
    check_replica(far)


class Denied(FaultyStore):
    """A store whose credentials have run out."""

    expired = True

    def act(self, name: str, key: str, *rest: Any) -> Any:
        if self.expired:
            raise PermissionDenied("the token has expired")
        return super().act(name, key, *rest)


def test_credentials_that_ran_out_at_one_site_stop_nobody_else() -> None:
    near, saver = trained(2)
    third, far = make_store(), make_store()
    replicate(third, near)
    denied = Denied(near)
    report = replicate(far, denied, third)
    assert steps(report) == [10, 0]
    (trouble,) = report.troubles
    assert isinstance(trouble.error, PermissionDenied)
    assert trouble.site == "near"
    saver.commit(20)
    denied.expired = False
    assert steps(replicate(far, denied, third)) == [20]
