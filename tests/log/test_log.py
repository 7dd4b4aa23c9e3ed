"""Appending and reading: dense, chained, few round trips, damage named."""

from __future__ import annotations

import pytest

from benchmarks.common.meter import Meter, metered
from fwstore.base.config import Environment, Limits
from fwstore.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Expired,
    Fenced,
    NotFound,
    Unavailable,
)
from fwstore.base.ids import SeededIds
from fwstore.format.record import AnyBody, Expire, Fence, Tag, Unpin, parse_record
from fwstore.format.summary import Hint, Summary, encode_hint, encode_summary, parse_summary
from fwstore.log.fold import Fold
from fwstore.log.lineage import delete
from fwstore.log.log import Log
from fwstore.sched import Runtime, system_runtime
from fwstore.store.memory import MemoryStore
from support.damage import rechecked
from support.faults import FaultyStore, late_at, lose_at
from support.lineages import (
    Saver,
    TestClock,
    keys_under,
    make_runtime,
    make_store,
    open_run,
    read_packs,
    resume,
)


def impatient() -> Runtime:
    """A runtime that gives a request up at the first silence."""
    return Runtime(
        clock=TestClock(),
        ids=SeededIds(7),
        scheduler=make_runtime().scheduler,
        limits=Limits(request_timeout_s=0.01),
        environment=Environment({}),
    )


def fill(log: Log, count: int) -> None:
    """Append records that change nothing."""
    for number in range(count):
        body = Unpin(f"{number:032x}")

        def make(_: Fold, body: Unpin = body) -> AnyBody:
            return body

        log.append(make)


def reopen(store: MemoryStore, log: Log) -> Log:
    again = Log(store, log.keys, log.lineage, make_runtime(5), read_packs)
    again.refresh()
    return again


def test_a_log_is_dense_and_chained() -> None:
    store = make_store()
    term = resume(store)
    fill(term.log, 5)
    records = list(term.log.records())
    assert [record.seq for record in records] == list(range(term.log.fold.seq + 1))
    assert len({record.previous for record in records}) == len(records)
    assert reopen(store, term.log).fold.export() == term.log.fold.export()


def test_two_appenders_share_one_log() -> None:
    store = make_store()
    term = resume(store)
    other = open_run(store, term)
    for _ in range(10):
        fill(term.log, 3)
        fill(other, 2)
    assert term.log.refresh().seq == other.refresh().seq == 1 + 50
    assert term.log.fold.export() == other.fold.export()


@pytest.mark.slow
def test_threads_race_for_every_slot() -> None:
    runtime = system_runtime()
    store = make_store()
    term = resume(store)
    logs = [Log(store, term.keys, term.lineage, runtime, read_packs) for _ in range(4)]
    runtime.scheduler.map(lambda log: fill(log, 20), logs)
    runtime.scheduler.close()
    kinds = [record.kind for record in reopen(store, term.log).records()]
    assert kinds.count("unpin") == 80


def test_h3_an_appender_reads_every_slot_before_it_creates_one() -> None:
    """A paused writer that finds the tail by hint would commit behind a fence it never read."""
    store = make_store()
    term = resume(store)
    saver = Saver(term)
    saver.commit(1)
    other = open_run(store, term)
    fill(other, 40)
    other.append(lambda _: Fence(), term=9)
    fill(other, 40)
    with pytest.raises(Fenced):
        saver.commit(2)
    assert [entry.step for entry in other.refresh().live()] == [1]


def test_h3_a_missing_slot_in_the_middle_is_corrupt_and_named() -> None:
    store = make_store()
    log = resume(store).log
    fill(log, 30)
    store.delete([log.keys.slot(17)])
    with pytest.raises(Corrupt, match="_log/000000/017"):
        reopen(store, log)


def test_h3_a_follower_sees_a_gap_too() -> None:
    store = make_store()
    term = resume(store)
    follower = open_run(store, term)
    fill(term.log, 10)
    store.delete([term.log.keys.slot(5)])
    with pytest.raises(Corrupt, match="_log/000000/005"):
        follower.refresh()


def test_a_slot_created_while_a_round_is_under_way_is_no_gap() -> None:
    """The round asked for slot n before it was created, and for slot n + 1 after."""
    store = make_store()
    log = resume(store).log
    fill(log, 3)
    late = RoundOrder(store, log.keys.slot(3))
    again = Log(late, log.keys, log.lineage, make_runtime(5), read_packs)
    assert again.refresh().seq == 4
    assert late.hidden == 0


class RoundOrder(MemoryStore):
    """A store that does not yet have one object when it is first asked."""

    def __init__(self, inner: MemoryStore, key: str) -> None:
        super().__init__(make_runtime())
        self._objects = inner._objects
        self._key = key
        self.hidden = 1

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        if key == self._key and self.hidden:
            self.hidden -= 1
            raise NotFound(f"{key} is not there yet")
        return super().get(key, limit_bytes=limit_bytes)


def test_a_missing_last_slot_is_seen_by_the_hint() -> None:
    store = make_store()
    log = resume(store).log
    fill(log, 31)
    assert log.fold.seq == 32
    store.delete([log.keys.slot(32)])
    with pytest.raises(Corrupt, match="_log/000000/032"):
        reopen(store, log)


def test_a_damaged_slot_is_corrupt_and_named() -> None:
    store = make_store()
    log = resume(store).log
    fill(log, 30)
    stored = store.get(log.keys.slot(9), limit_bytes=1 << 20)
    changed = stored.replace(b'"time":1', b'"time":2')
    assert changed != stored
    store.put(log.keys.slot(9), [changed], mode="overwrite")
    with pytest.raises(Corrupt, match=r"_log/000000/009.*checksum"):
        reopen(store, log)
    forged = rechecked(changed)
    store.put(log.keys.slot(9), [forged], mode="overwrite")
    with pytest.raises(Corrupt, match=r"_log/000000/010.*does not follow"):
        reopen(store, log)
    store.put(log.keys.slot(9), [stored[:-1]], mode="overwrite")
    with pytest.raises(Corrupt, match="_log/000000/009"):
        reopen(store, log)


def test_a_slot_of_another_lineage_is_corrupt() -> None:
    store = make_store()
    term = resume(store)
    other = Log(store, term.keys, "f" * 32, make_runtime(), read_packs)
    with pytest.raises(Corrupt, match="lineage"):
        other.refresh()


def test_an_object_that_vanished_is_told_from_one_that_was_collected() -> None:
    store = make_store()
    term = resume(store)
    entry = Saver(term).commit(1)
    assert isinstance(term.log.why_missing(entry.id), Corrupt)
    assert isinstance(term.log.why_missing(entry.id.replace("t1", "t2")), NotFound)
    open_run(store, term).append(lambda _: Expire((entry.id,), "test"))
    assert isinstance(term.log.why_missing(entry.id), Expired)


@pytest.mark.parametrize("plan", [lose_at, late_at])
def test_h11_an_answer_lost_at_any_create_appends_once(plan: object) -> None:
    """A retry sends the same bytes, so the slot is ours whichever attempt landed."""
    assert callable(plan)
    for number in range(1, 6):
        inner = make_store()
        resume(inner)
        store = FaultyStore(inner, plan(number), counted=frozenset({"create"}))
        log = Log(store, resume(inner).keys, list_uuid(inner), make_runtime(), read_packs)
        fill(log, 5)
        store.land()
        tokens = [record.body.pin for record in log.records() if isinstance(record.body, Unpin)]
        assert tokens == [f"{n:032x}" for n in range(5)]


def list_uuid(store: MemoryStore) -> str:
    return parse_record(store.get("meta/run@1/_log/000000/000", limit_bytes=1 << 14), "0").lineage


def test_a_save_given_up_as_unknown_may_still_land_and_is_found() -> None:
    inner = make_store()
    first = resume(inner)
    store = FaultyStore(inner, late_at(1), counted=frozenset({"create"}))
    log = Log(store, first.keys, first.lineage, impatient(), read_packs)
    with pytest.raises(Unavailable):
        log.append(lambda _: Tag("late", None))
    store.land()
    seen: list[int] = []

    def make(fold: Fold) -> AnyBody:
        seen.append(fold.seq)
        return Tag("after", None)

    record = log.append(make)
    assert record is not None
    assert [r.body.tag for r in log.records() if isinstance(r.body, Tag)] == ["late", "after"]
    assert seen == [record.seq - 1]


def test_an_unknown_save_that_never_lands_loses_its_slot() -> None:
    inner = make_store()
    first = resume(inner)
    store = FaultyStore(inner, late_at(1), counted=frozenset({"create"}))
    log = Log(store, first.keys, first.lineage, impatient(), read_packs)
    with pytest.raises(Unavailable):
        log.append(lambda _: Tag("late", None))
    log.append(lambda _: Tag("after", None))
    store.land()
    tags = [r.body.tag for r in reopen(inner, log).records() if isinstance(r.body, Tag)]
    assert tags == ["after"]


def test_h15_opening_three_thousand_records_takes_few_round_trips() -> None:
    store = make_store()
    log = resume(store).log
    fill(log, 3000)
    scheduler = Meter()
    counted = metered(store, scheduler)
    far = Log(counted, log.keys, log.lineage, make_runtime(1, scheduler), read_packs)
    assert far.refresh().export() == log.fold.export()
    assert scheduler.rounds <= 4
    assert scheduler.requests.total() <= 150
    scheduler.rounds = 0
    far.refresh()
    assert scheduler.rounds == 1


@pytest.mark.parametrize("lost", ["hint", "summaries", "both"])
def test_h15_without_hint_or_summaries_the_slots_say_the_same(lost: str) -> None:
    store = make_store()
    log = resume(store).log
    fill(log, 1500)
    if lost != "summaries":
        store.delete([log.keys.hint])
    if lost != "hint":
        store.delete(keys_under(store, f"{log.keys.log}sum/"))
    scheduler = Meter()
    far = Log(
        metered(store, scheduler),
        log.keys,
        log.lineage,
        make_runtime(1, scheduler),
        read_packs,
    )
    assert far.refresh().export() == log.fold.export()
    assert scheduler.rounds <= 10


def test_h15_a_hint_far_behind_costs_no_more_than_two_pages() -> None:
    store = make_store()
    log = resume(store).log
    fill(log, 700)
    store.put(log.keys.hint, [encode_hint(Hint(log.lineage, 3, -1))], mode="overwrite")
    scheduler = Meter()
    far = Log(
        metered(store, scheduler),
        log.keys,
        log.lineage,
        make_runtime(1, scheduler),
        read_packs,
    )
    assert far.refresh().seq == log.fold.seq
    assert scheduler.rounds <= 5


@pytest.mark.parametrize("wrong", ["noise", "flip", "other record", "other lineage"])
def test_a_wrong_summary_is_passed_over(wrong: str) -> None:
    store = make_store()
    log = resume(store).log
    fill(log, 300)
    newest = keys_under(store, f"{log.keys.log}sum/")[-1]
    stored = store.get(newest, limit_bytes=1 << 20)
    summary = parse_summary(stored)
    bad = {
        "noise": b"noise",
        "flip": stored[:-3] + bytes([stored[-3] ^ 1]) + stored[-2:],
        "other record": encode_summary(
            Summary(summary.lineage, summary.seq, "0" * 64, summary.state)
        ),
        "other lineage": encode_summary(
            Summary("e" * 32, summary.seq, summary.record, summary.state)
        ),
    }[wrong]
    store.put(newest, [bad], mode="overwrite")
    assert reopen(store, log).fold.export() == log.fold.export()


@pytest.mark.parametrize("content", [b"", b"noise", encode_hint(Hint("e" * 32, 9999, 9))])
def test_a_wrong_hint_is_passed_over(content: bytes) -> None:
    store = make_store()
    log = resume(store).log
    fill(log, 40)
    store.put(log.keys.hint, [content], mode="overwrite")
    assert reopen(store, log).fold.seq == log.fold.seq


def test_a_summary_that_cannot_be_written_fails_no_append() -> None:
    inner = make_store()
    first = resume(inner)
    store = FaultyStore(inner)
    log = Log(store, first.keys, first.lineage, make_runtime(), read_packs)
    log.refresh()
    store.reset(lambda operation: "fail" if "/sum/" in operation.key else None)
    fill(log, 140)
    assert not keys_under(inner, f"{first.keys.log}sum/")
    store.reset()
    fill(log, 1)
    assert len(keys_under(inner, f"{first.keys.log}sum/")) == 1


def test_every_record_names_the_newest_of_its_kind() -> None:
    store = make_store()
    term = resume(store)
    saver = Saver(term)
    for step in range(150):
        saver.commit(step)
    fold = Fold(term.lineage)
    for record in term.log.records():
        expected = fold.anchors
        assert record.anchors.commit == expected.commit
        assert record.anchors.open == expected.open
        assert record.anchors.fence == fold.fence
        assert record.anchors.summary >= expected.summary
        fold.apply(record, lambda uses, entry: False)
    assert record.anchors.summary > 100


def test_a_deleted_lineage_takes_nothing_more() -> None:
    store = make_store()
    term = resume(store)
    saver = Saver(term)
    entry = saver.commit(1)
    delete(open_run(store, term), "test")
    with pytest.raises(Conflict, match="deleted"):
        saver.commit(2)
    assert isinstance(term.log.why_missing(entry.id), Expired)


def test_the_same_save_is_recorded_once() -> None:
    store = make_store()
    term = resume(store)
    saver = Saver(term)
    commit, _ = saver.write(1)
    assert term.commit(commit) == term.commit(commit)
    saver.save -= 1
    other, _ = saver.write(2)
    with pytest.raises(AlreadyExists):
        term.commit(other)
