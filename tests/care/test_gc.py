"""Garbage collection: what goes, what stays, and that any worker can finish it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from blake3 import blake3

from fwstore.base.errors import Conflict, Corrupt, Expired
from fwstore.care.gc import GcOptions, GcReport, collect
from fwstore.care.orphans import COORDINATION, DEAD_MANIFEST, DEAD_PACK, LATE_COPY
from fwstore.care.survey import UNUSED_MANIFEST, UNUSED_PACK
from fwstore.format.packtable import PackInfo, parse_pack_table
from fwstore.format.record import Commit, Expire, Foreign, Hold, ObjectRef, Unpin
from fwstore.format.root import LineageRef, Root, encode_root
from fwstore.log.history import history
from fwstore.log.lineage import delete, list_lineages
from fwstore.log.log import Log
from fwstore.log.pins import pin, tag, unpin
from fwstore.plan.mark import Garbage
from fwstore.plan.retention import Keep
from support.faults import Crash, Fault, FaultyStore, Operation
from support.lineages import (
    Saver,
    TestClock,
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


def reasons(report: GcReport) -> set[str]:
    return {line.reason for line in report.garbage}


def test_retention_frees_what_only_expired_snapshots_use() -> None:
    store, saver = trained()
    before = sum(info.size for info in store.list("packs/"))
    report = collect(fresh_log(store), LAST_TWO)
    assert canonical_steps(store) == [50, 40]
    assert [verdict.step for verdict in report.expired] == [30, 20, 10, 0]
    assert reasons(report) == {UNUSED_PACK, UNUSED_MANIFEST}
    assert len(pack_keys(store, saver.term.keys)) == 1 + 2 * 2
    after = sum(info.size for info in store.list("packs/"))
    packs = sum(line.bytes for line in report.garbage if line.reason == UNUSED_PACK)
    assert before - after == packs == 8 * saver.packs[0].size
    assert report.bytes_deleted == report.bytes_garbage
    assert not missing_of_roots(fresh_log(store))
    saver.commit(60, reuse=saver.packs)
    assert canonical_steps(store) == [60, 50, 40]


def test_a_second_collection_finds_nothing() -> None:
    store, _ = trained()
    collect(fresh_log(store), LAST_TWO)
    slots = fresh_log(store).fold.seq
    report = collect(fresh_log(store), LAST_TWO)
    assert (report.garbage, report.expired, report.objects_deleted) == ((), (), 0)
    assert fresh_log(store).fold.seq == slots


def test_dry_run_explains_every_byte_and_writes_nothing() -> None:
    store, saver = trained()
    saver.write(999)
    resume(store, make_runtime(3))
    before = keys_under(store, "")
    explained: list[Garbage] = []
    plan = collect(fresh_log(store), replace(LAST_TWO, dry_run=True, explain=explained.append))
    assert keys_under(store, "") == before
    assert sum(found.size for found in explained) == plan.bytes_garbage
    assert len({found.key for found in explained}) == len(explained)
    report = collect(fresh_log(store), LAST_TWO)
    assert report.garbage == plan.garbage
    assert report.expired == plan.expired
    assert set(before) - set(keys_under(store, "")) == {found.key for found in explained}


def test_nothing_of_a_root_is_ever_deleted() -> None:
    store, _ = trained()
    log = fresh_log(store)
    chain = history(log.fold)
    token = pin(log, chain[5].id, "paper")
    tag(log, "best", chain[3].id)
    report = collect(fresh_log(store), LAST_TWO)
    assert canonical_steps(store) == [50, 40, 20, 0]
    assert [v.reason for v in report.kept if v.step in (0, 20)] == [
        "tagged 'best'",
        "pinned: paper",
    ]
    assert not missing_of_roots(fresh_log(store))
    unpin(fresh_log(store), token)
    collect(fresh_log(store), LAST_TWO)
    assert canonical_steps(store) == [50, 40, 20]
    assert not missing_of_roots(fresh_log(store))


def test_an_expired_snapshot_keeps_its_bytes_while_a_pin_stands() -> None:
    store, _ = trained()
    log = fresh_log(store)
    oldest = history(log.fold)[-1]
    token = pin(log, oldest.id, "long reader")
    log.append(lambda _: Expire((oldest.id,), "by hand"))
    collect(fresh_log(store), GcOptions())
    assert keys_under(store, log.keys.snapshot(oldest.id))
    unpin(fresh_log(store), token)
    collect(fresh_log(store), GcOptions())
    assert not keys_under(store, log.keys.snapshot(oldest.id))


def test_h10_the_base_of_the_newest_open_is_never_collected() -> None:
    store, _ = trained()
    chain = history(fresh_log(store).fold)
    term = resume(store, make_runtime(3), base=chain[4].id)
    collect(fresh_log(store), GcOptions(keep=Keep(last=1), tails_s=-1e9))
    fold = fresh_log(store).fold
    assert chain[4].id in fold.roots()
    assert not missing_of_roots(fresh_log(store))
    Saver(term).commit(11)
    collect(fresh_log(store), GcOptions(keep=Keep(last=1), tails_s=-1e9))
    assert canonical_steps(store) == [11, 10]


def test_finished_base_pins_are_lifted_by_the_collector() -> None:
    store, _ = trained()
    term = resume(store, make_runtime(3))
    term._pinned = []
    Saver(term).commit(60)
    assert len(fresh_log(store).fold.pins) == 1
    assert collect(fresh_log(store), GcOptions()).pins_lifted == 1
    assert not fresh_log(store).fold.pins


def test_tails_expire_after_their_time() -> None:
    store, _ = trained()
    chain = history(fresh_log(store).fold)
    Saver(resume(store, make_runtime(3), base=chain[3].id)).commit(21)
    log = fresh_log(store)
    report = collect(log, GcOptions(keep=Keep(last=9)))
    assert report.expired == ()
    assert isinstance(log.runtime.clock, TestClock)
    log.runtime.clock.now += 15 * 86_400
    report = collect(log, GcOptions(keep=Keep(last=9)))
    assert {verdict.step for verdict in report.expired} == {30, 40, 50}
    assert canonical_steps(store) == [21, 20, 10, 0]


def test_h13_packs_in_flight_are_left_alone() -> None:
    """A save that takes longer than the time between two collections must still commit."""
    store, saver = trained()
    commit, _ = saver.write(60, reuse=saver.packs)
    for _ in range(3):
        report = collect(fresh_log(store), LAST_TWO)
        assert not {DEAD_PACK, DEAD_MANIFEST} & reasons(report)
    saver.term.commit(commit)
    assert canonical_steps(store) == [60, 50, 40]
    assert not missing_of_roots(fresh_log(store))


def test_what_a_dead_save_left_is_collected_once_it_is_surely_dead() -> None:
    store, saver = trained()
    saver.write(60)
    assert not reasons(collect(fresh_log(store), GcOptions()))
    saver.commit(70)
    assert reasons(collect(fresh_log(store), GcOptions())) == {DEAD_PACK, DEAD_MANIFEST}
    saver.write(80)
    resume(store, make_runtime(4))
    assert reasons(collect(fresh_log(store), GcOptions())) == {DEAD_PACK, DEAD_MANIFEST}
    assert not missing_of_roots(fresh_log(store))
    assert not reasons(collect(fresh_log(store), GcOptions()))


def test_what_a_hold_names_stays_until_it_ends() -> None:
    """A copy under way has objects here that no snapshot of this log refers to yet."""
    store, saver = trained()
    commit, _ = saver.write(60)
    hold = Hold(
        hold="4" * 32,
        snapshot=commit.snapshot,
        save=commit.save,
        home="5" * 32,
        tables=commit.tables,
        groups=commit.groups,
        intent=True,
    )
    fresh_log(store).append(lambda _: hold, term=1)
    resume(store, make_runtime(4))
    assert not reasons(collect(fresh_log(store), GcOptions()))
    fresh_log(store).append(lambda _: Unpin("4" * 32))
    assert reasons(collect(fresh_log(store), GcOptions())) == {DEAD_PACK, DEAD_MANIFEST}


def test_h14_what_is_garbage_does_not_depend_on_what_is_canonical() -> None:
    """Two sites may disagree for a while; without retention a tail is as safe as the chain."""
    store, _ = trained()
    chain = history(fresh_log(store).fold)
    Saver(resume(store, make_runtime(3), base=chain[-1].id)).commit(1)
    report = collect(fresh_log(store), GcOptions())
    assert not report.garbage
    assert not missing_of_roots(fresh_log(store))


def test_h5_condemned_keys_that_turn_up_again_are_deleted_and_never_trusted() -> None:
    """A put that lands after the sweep brings no dead pack back to life."""
    store, saver = trained()
    doomed = pack_keys(store, saver.term.keys)
    collect(fresh_log(store), LAST_TWO)
    late = min(doomed - pack_keys(store, saver.term.keys))
    store.put(late, [bytes(1000)], mode="create")
    report = collect(fresh_log(store), LAST_TWO)
    assert reasons(report) == {LATE_COPY}
    assert late not in pack_keys(store, saver.term.keys)


def test_h4_a_commit_behind_the_condemn_of_its_packs_is_refused() -> None:
    store, saver = trained()
    saver.commit(60, fresh=2)
    stale = saver.packs
    saver.commit(70)
    saver.commit(80)
    collect(fresh_log(store), LAST_TWO)
    with pytest.raises(Conflict, match="condemned"):
        saver.commit(90, reuse=stale)
    assert canonical_steps(store) == [80, 70]


def test_h17_a_reader_of_collected_bytes_gets_expired() -> None:
    store, _ = trained()
    log = fresh_log(store)
    oldest = history(log.fold)[-1]
    collect(fresh_log(store), LAST_TWO)
    assert isinstance(log.why_missing(oldest.id), Expired)


def test_delete_follows_condemn() -> None:
    """At every delete the log already condemns the key; the list exists before its record."""
    store, _ = trained()
    watched = FaultyStore(store)

    def plan(operation: Operation) -> Fault | None:
        fold = fresh_log(store).fold
        if operation.name == "delete":
            assert fold.condemned
        if operation.name == "create" and "_log/" in operation.key:
            assert len(keys_under(store, fresh_log(store).keys.condemned(""))) >= len(
                fold.condemned
            )
        return None

    watched.reset(plan)
    assert collect(fresh_log(watched), LAST_TWO).objects_deleted


def test_grace_waits_before_it_deletes() -> None:
    store, _ = trained()
    log = fresh_log(store)
    patient = replace(LAST_TWO, grace_s=3600.0)
    assert collect(log, patient).objects_deleted == 0
    assert canonical_steps(store) == [50, 40]
    assert isinstance(log.runtime.clock, TestClock)
    log.runtime.clock.now += 7200
    assert collect(log, patient).objects_deleted == 8 + 12


def test_without_a_grace_clocks_do_not_matter() -> None:
    store, _ = trained()
    ahead = fresh_log(store)
    assert isinstance(ahead.runtime.clock, TestClock)
    ahead.runtime.clock.now += 1e6
    collect(ahead, replace(LAST_TWO, grace_s=1.0))
    assert collect(fresh_log(store), LAST_TWO).objects_deleted == 8 + 12


def test_foreign_objects_are_left_alone() -> None:
    store, saver = trained()
    strange = [f"{saver.term.keys.packs}README", f"{saver.term.keys.snapshots}notes/root"]
    for key in strange:
        store.put(key, [b"mine"], mode="create")
    resume(store, make_runtime(3))
    collect(fresh_log(store), LAST_TWO)
    assert set(strange) <= set(keys_under(store, ""))


def test_coordination_of_dead_terms_is_deleted() -> None:
    store, saver = trained()
    old = saver.term.keys.coordination("job-1") + "1/part/0"
    store.put(old, [b"x"], mode="overwrite")
    assert not reasons(collect(fresh_log(store), GcOptions()))
    later = make_runtime(3)
    assert isinstance(later.clock, TestClock)
    later.clock.now += 2 * 86_400
    resume(store, later)
    assert reasons(collect(fresh_log(store), GcOptions())) == {COORDINATION}
    assert not keys_under(store, old)


def test_a_deleted_run_is_freed_but_for_what_is_pinned() -> None:
    store, saver = trained()
    log = fresh_log(store)
    oldest = history(log.fold)[-1]
    token = pin(log, oldest.id, "borrowed", borrower="sft@1")
    delete(log, "by its owner")
    collect(fresh_log(store), GcOptions())
    assert len(pack_keys(store, saver.term.keys)) == 3
    assert not missing_of_roots(fresh_log(store))
    unpin(fresh_log(store), token)
    collect(fresh_log(store), GcOptions())
    assert not keys_under(store, "packs/")
    assert not keys_under(store, saver.term.keys.snapshots)
    assert list_lineages(store) == []


def test_a_deleted_run_is_freed_though_a_job_died_that_was_taking_it_over() -> None:
    """It had pinned its base, and opened nothing: nobody else will lift that pin."""
    store, saver = trained()
    dying = FaultyStore(store)

    def die_behind_the_pin(operation: Operation) -> Fault | None:
        return "crash" if operation.writes and operation.key.endswith(".open") else None

    dying.reset(die_behind_the_pin)
    with pytest.raises(Crash):
        resume(dying, make_runtime(3))
    assert fresh_log(store).fold.pins
    delete(fresh_log(store), "by its owner")
    assert collect(fresh_log(store), GcOptions()).pins_lifted == 1
    assert not keys_under(store, "packs/")
    assert not keys_under(store, saver.term.keys.snapshots)


def test_a_borrowed_pin_is_lifted_with_the_last_snapshot_that_needs_it() -> None:
    store, _ = trained()
    donor = fresh_log(store)
    lent = history(donor.fold)[0]
    token = pin(donor, lent.id, "fork", borrower="fork@1")
    borrower = Saver(resume(store, make_runtime(5), name="fork"))
    foreign = Foreign(label="run@1", lineage=donor.lineage, snapshot=lent.id, pin=token)
    for step, uses in ((0, (foreign,)), (1, (foreign,)), (2, ())):
        commit, _ = borrower.write(step)
        _commit_with_root(borrower, commit, uses)
    options = GcOptions(
        keep=Keep(last=2), open_log=lambda label: fresh_log(store, label.split("@")[0])
    )
    collect(fresh_log(store, "fork"), options)
    assert token in fresh_log(store).fold.pins
    collect(fresh_log(store, "fork"), replace(options, keep=Keep(last=1)))
    assert token not in fresh_log(store).fold.pins


def test_a_pin_of_a_borrower_that_died_is_lifted_once_its_term_has_passed() -> None:
    store, _ = trained()
    donor = fresh_log(store)
    lent = history(donor.fold)[0]
    resume(store, make_runtime(5), name="fork")
    token = pin(donor, lent.id, "fork", borrower="fork@1", borrower_term=1)
    options = GcOptions(open_log=lambda label: fresh_log(store, label.split("@")[0]))
    assert collect(fresh_log(store), options).pins_lifted == 0
    resume(store, make_runtime(6), name="fork")
    assert collect(fresh_log(store), replace(options, orphans=False)).pins_lifted == 0
    assert collect(fresh_log(store), replace(options, dry_run=True)).pins_lifted == 1
    assert token in fresh_log(store).fold.pins
    assert collect(fresh_log(store), options).pins_lifted == 1
    assert token not in fresh_log(store).fold.pins


def test_a_pin_that_the_open_term_may_name_again_is_kept() -> None:
    """Its snapshots may leave out borrowed tensors for a while; those that a save under way has do not."""
    store, _ = trained()
    donor = fresh_log(store)
    lent = history(donor.fold)[0]
    borrower = Saver(resume(store, make_runtime(5), name="fork"))
    token = pin(donor, lent.id, "fork", borrower="fork@1", borrower_term=1)
    foreign = Foreign(label="run@1", lineage=donor.lineage, snapshot=lent.id, pin=token)
    for step, uses in ((0, (foreign,)), (1, ())):
        commit, _ = borrower.write(step)
        _commit_with_root(borrower, commit, uses)
    options = GcOptions(
        keep=Keep(last=1), open_log=lambda label: fresh_log(store, label.split("@")[0])
    )
    collect(fresh_log(store, "fork"), options)
    assert token in fresh_log(store).fold.pins
    delete(fresh_log(store, "fork"), "by its owner")
    assert collect(fresh_log(store), options).pins_lifted == 1


def _commit_with_root(saver: Saver, commit: Commit, foreign: tuple[Foreign, ...]) -> None:
    """Commit a snapshot whose root names the lineages it borrows from."""
    term = saver.term
    own = LineageRef(term.keys.label, term.lineage)
    stored = encode_root(
        Root(
            lineage=own,
            snapshot=commit.snapshot,
            step=commit.step,
            term=term.number,
            save=commit.save,
            lineages=(own, *[LineageRef(f.label, f.lineage) for f in foreign]),
        )
    )
    term.log.store.put(term.keys.root(commit.snapshot), [stored], mode="overwrite")
    reference = ObjectRef(blake3(stored).hexdigest(), len(stored))
    body = msgspec.structs.replace(commit, root=reference, foreign=foreign)
    saver.parent = term.commit(body)


def test_root_born_during_mark_is_kept() -> None:
    """A snapshot committed between the mark and the record keeps the packs that it reuses."""
    store, saver = trained()
    oldest_packs = [
        pack for pack in _all_packs(fresh_log(store)) if (pack.term, pack.save) == (1, 2)
    ]
    racing = FaultyStore(store)
    born: list[int] = []

    def plan(operation: Operation) -> Fault | None:
        # The list of the first condemn is being written: the mark is made, its record is not.
        if operation.name == "create" and "_condemned/" in operation.key and not born:
            born.append(60)
            saver.commit(60, reuse=oldest_packs)
        return None

    racing.reset(plan)
    collect(fresh_log(racing), LAST_TWO)
    assert born
    assert canonical_steps(store)[0] == 60
    assert not missing_of_roots(fresh_log(store))


def _all_packs(log: Log) -> list[PackInfo]:
    rows: dict[str, PackInfo] = {}
    for name in log.fold.entries:
        stored = log.store.get(log.keys.pack_table(name, 0), limit_bytes=1 << 20)
        rows |= {row.token: row for row in parse_pack_table(stored)[1]}
    return list(rows.values())


def test_a_damaged_pack_table_stops_the_collection_and_nothing_is_deleted() -> None:
    store, _ = trained()
    log = fresh_log(store)
    newest = history(log.fold)[0]
    table = log.keys.pack_table(newest.id, 0)
    stored = bytearray(store.get(table, limit_bytes=1 << 20))
    stored[len(stored) // 2] ^= 1
    store.put(table, [bytes(stored)], mode="overwrite")
    packs = pack_keys(store, log.keys)
    with pytest.raises(Corrupt, match="packs-00000"):
        collect(fresh_log(store), LAST_TWO)
    store.delete([table])
    with pytest.raises(Corrupt, match="missing"):
        collect(fresh_log(store), LAST_TWO)
    assert pack_keys(store, log.keys) == packs


def test_a_record_that_hides_a_group_stops_the_collection() -> None:
    store, saver = trained()
    commit, _ = saver.write(60, reuse=saver.packs)
    saver.parent = saver.term.commit(msgspec.structs.replace(commit, groups=commit.groups[1:]))
    saver.commit(70)
    saver.commit(80)
    packs = pack_keys(store, saver.term.keys)
    with pytest.raises(Corrupt, match="does not list group"):
        collect(fresh_log(store), LAST_TWO)
    assert pack_keys(store, saver.term.keys) == packs
