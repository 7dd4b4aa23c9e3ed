"""What replication and garbage collection leave each other: intents, what was given up, what died."""

from __future__ import annotations

import pytest

from fwstore.base.errors import Expired
from fwstore.care.gc import GcOptions, collect
from fwstore.care.orphans import STAGED_PART
from fwstore.format.keys import staged_part
from fwstore.format.record import Expire, Hold, Publish, Unpin
from fwstore.log.lineage import delete, find
from fwstore.plan.retention import Keep
from fwstore.store.memory import MemoryStore
from support.faults import Fault, FaultyStore, Operation
from support.lineages import (
    SITE,
    fresh_log,
    keys_under,
    make_store,
    open_run,
    pack_keys,
    trained,
)
from support.replicas import (
    check_replica,
    differing,
    published,
    replicate,
    replicator,
    steps,
)

ALL = GcOptions()


def _dies_before_the_manifest(operation: Operation) -> Fault | None:
    manifest = operation.writes and operation.key.startswith("meta/run@1/_snap")
    return "crash" if manifest else None


def test_an_intent_proves_nothing() -> None:
    """H2: packs that only an intent covers are looked at before a publish rests on them."""
    near, saver = trained(1)
    far = make_store()
    dying = FaultyStore(far)
    first = fresh_log(near).fold.live()[0]
    # A worker that dies after its intent, and a pack that is damaged under its very key.
    dying.reset(lambda o: "crash" if o.name == "commit" else None)
    with pytest.raises(BaseException, match="injected"):
        replicate(dying, near)
    key = min(pack_keys(near, saver.term.keys))
    far.put(key, [bytes(near.head(key).size)], mode="create")
    assert steps(replicate(far, near)) == [0]
    assert differing(near, far, [first.id]) == []


def test_what_was_given_up_here_is_not_fetched_again() -> None:
    near, _ = trained(4)
    far = make_store()
    replicate(far, near)
    collect(fresh_log(far), GcOptions(keep=Keep(last=2)))
    assert sorted(published(far)) == [20, 30]
    report = replicate(far, near)
    assert report.copied == ()
    assert {passed.reason for _, passed in report.passed_over} == {
        "was collected and is not fetched again"
    }


def test_what_was_given_up_so_long_ago_that_the_log_forgot_is_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fwstore.log.fold.GONE_MAX", 1)
    near, _ = trained(4)
    far = make_store()
    replicate(far, near)
    collect(fresh_log(far), GcOptions(keep=Keep(last=1)))
    report = replicate(far, near)
    assert report.copied == ()
    assert len(report.passed_over) == 3
    assert not report.troubles


def test_a_condemned_pack_comes_back_under_the_next_incarnation() -> None:
    """H5: its old key is never written again, and tables and root name the new one."""
    near, saver = trained(1)
    frozen = saver.packs
    far = make_store()
    replicate(far, near)
    # The far site gives up all that it has, packs that the next save uses among them.
    collect_everything(far)
    saver.commit(10, fresh=1, reuse=frozen[:1])
    watched = FaultyStore(far)
    assert steps(replicate(watched, near)) == [10]
    log = check_replica(far)
    old = frozen[0].key([saver.term.keys])
    assert f"{old}.1" in pack_keys(far, log.keys)
    assert old not in {o.key for o in watched.operations if o.writes}
    newest = fresh_log(near).fold.entries
    assert log.fold.entries[list(newest)[-1]].root != list(newest.values())[-1].root
    # A third site takes it from there under its own names.
    third = make_store()
    assert steps(replicate(third, far)) == [10]
    assert old in pack_keys(third, log.keys)
    assert check_replica(third).fold.live()[0].root == list(newest.values())[-1].root


def collect_everything(store: MemoryStore) -> None:
    """Expire and collect all that a site offers."""
    log = fresh_log(store)
    names = tuple(entry.id for entry in log.fold.live())
    log.append(lambda _: Expire(names, "simulated"))
    collect(log, ALL)
    assert not log.fold.entries


def test_gone_at_the_source_before_it_was_copied_is_withdrawn_and_leaves_nothing() -> None:
    near, _ = trained(2)
    far = make_store()
    dying = FaultyStore(far, _dies_before_the_manifest)
    with pytest.raises(BaseException, match="injected"):
        replicate(dying, near)
    log = fresh_log(far)
    assert [hold.intent for hold in log.fold.holds.values()] == [True]
    assert pack_keys(far, log.keys)
    # While the intent stands, no collection touches what was copied.
    assert not collect(log, ALL).garbage
    delete(fresh_log(near), "simulated")
    report = replicate(far, near)
    assert report.withdrawn == 1
    log = fresh_log(far)
    assert not log.fold.holds
    collect(log, ALL)
    assert pack_keys(far, log.keys) == set()
    assert keys_under(far, log.keys.snapshots) == []


def test_an_intent_is_kept_while_a_site_that_may_have_the_rest_is_silent() -> None:
    near, _ = trained(1)
    far, third = make_store(), make_store()
    replicate(third, near)
    dying = FaultyStore(far, _dies_before_the_manifest)
    with pytest.raises(BaseException, match="injected"):
        replicate(dying, near, third)
    delete(fresh_log(near), "simulated")
    silent = FaultyStore(third, lambda o: "fail")
    report = replicate(far, near, silent)
    assert report.withdrawn == 0
    assert [trouble.site for trouble in report.troubles] == ["third"]
    assert steps(replicate(far, near, third)) == [0]


def test_gone_while_it_is_copied_is_noted_and_withdrawn() -> None:
    near, _ = trained(3)
    far = make_store()
    seen: list[Operation] = []

    def expire_meanwhile(operation: Operation) -> None:
        if operation.name == "read_into" and not seen:
            seen.append(operation)
            collect_everything(near)

    report = replicate(far, FaultyStore(near, expire_meanwhile))
    assert report.copied == ()
    assert [type(trouble.error) for trouble in report.troubles] == [Expired]
    assert report.withdrawn == 1
    log = fresh_log(far)
    collect(log, ALL)
    assert pack_keys(far, log.keys) == set()


def test_collection_here_never_takes_what_is_being_copied() -> None:
    """A collector runs between any two operations of the copy; orphans of other saves go, ours stay."""
    near, _ = trained(3)
    for number in range(1, 60, 2):
        far = make_store()
        racing = FaultyStore(far)

        def collect_at(operation: Operation, at: int = number, store: MemoryStore = far) -> None:
            if operation.number == at and find(store, "run") is not None:
                collect(fresh_log(store), ALL)

        racing.reset(collect_at)
        report = replicate(racing, near)
        assert steps(report) == [20, 10, 0], number
        assert not report.troubles, number
        check_replica(far)


@pytest.mark.parametrize("intent", [False, True])
def test_a_hold_that_is_no_intent_is_proof(*, intent: bool) -> None:
    """What it lists is not even looked at; what an intent covers is."""
    near, saver = trained(1)
    far = make_store()
    replicate(far, near)
    keys, entry = saver.term.keys, saver.commit(10, fresh=1)
    (own,) = [pack.key([keys]) for pack in saver.packs if pack.save == saver.save]
    token = "4" * 32
    table, listed = keys.pack_table(entry.id, 0), keys.hold_table(entry.id, token, 0)
    for there, here in ((own, own), (table, listed)):
        far.put(here, [near.get(there, limit_bytes=1 << 20)], mode="create")
    hold = Hold(
        hold=token,
        snapshot=entry.id,
        save=entry.save,
        home=SITE,
        tables=entry.tables,
        groups=entry.groups,
        intent=intent,
    )
    fresh_log(far).append(lambda _: hold, term=1)
    watched = FaultyStore(far)
    assert steps(replicate(watched, near)) == [10]
    reads = [o for o in watched.operations if o.key == own and not o.writes]
    assert bool(reads) is intent


def test_an_intent_ends_with_the_publish() -> None:
    near, saver = trained(1)
    far = make_store()
    replicate(far, near)
    records = [record.body for record in fresh_log(far).records()]
    kinds = [type(body) for body in records]
    assert kinds.index(Hold) < kinds.index(Publish)
    assert Unpin not in kinds
    assert [body.source for body in records if isinstance(body, Publish)] == ["5" * 32]
    assert open_run(far, saver.term).fold.holds == {}


def test_parts_of_copies_that_ended_are_collected_and_those_under_way_are_not() -> None:
    near, saver = trained(2)
    far = make_store()
    replicate(far, near)
    pack = saver.packs[0].key([saver.term.keys])
    far.put(staged_part(pack, 64, 10), [b"x" * 10], mode="overwrite")
    (line,) = collect(fresh_log(far), ALL).garbage
    assert (line.reason, line.objects, line.bytes) == (STAGED_PART, 1, 10)
    assert keys_under(far, "staged/") == []
    saver.commit(50)
    dying = FaultyStore(far, _dies_before_the_manifest)
    with pytest.raises(BaseException, match="injected"):
        replicate(dying, near)
    (own,) = [p for p in saver.packs if p.save == saver.save]
    far.put(staged_part(own.key([saver.term.keys]), 64, 10), [b"x" * 10], mode="overwrite")
    assert not collect(fresh_log(far), ALL).garbage


def test_parts_of_a_copy_that_began_while_a_collection_ran_are_left_alone() -> None:
    near, saver = trained(1)
    far = make_store()
    replicate(far, near)
    saver.commit(10, fresh=1)
    (own,) = [p for p in saver.packs if p.save == saver.save]
    part = staged_part(own.key([saver.term.keys]), 64, 10)

    def begin(operation: Operation) -> None:
        if operation.name == "list" and operation.key == saver.term.keys.staged:
            with pytest.raises(BaseException, match="injected"):
                replicate(FaultyStore(far, _dies_before_the_manifest), near)
            far.put(part, [b"x" * 10], mode="overwrite")

    log = open_run(FaultyStore(far, begin), saver.term)
    assert not collect(log, ALL).garbage
    assert keys_under(far, "staged/") == [part]


def test_a_policy_that_changes_in_the_middle_loses_nothing_that_came() -> None:
    """What is no longer wanted stays under its intent until it is wanted again, or gone at its source."""
    near, _ = trained(1)
    far = make_store()
    dying = FaultyStore(far, _dies_before_the_manifest)
    with pytest.raises(BaseException, match="injected"):
        replicate(dying, near)
    packs = pack_keys(far, fresh_log(far).keys)
    report = replicator(far, near, policy=lambda _: None).once()
    assert (report.copied, report.troubles, report.withdrawn) == ((), (), 0)
    assert {p.reason for _, p in report.passed_over} == {"no policy sends this run here"}
    assert not collect(fresh_log(far), ALL).garbage
    watched = FaultyStore(near)
    assert steps(replicate(far, watched)) == [0]
    assert not [o for o in watched.operations if o.key in packs]
