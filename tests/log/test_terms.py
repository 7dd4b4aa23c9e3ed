"""One writer per term: elections, fences, bases, crashes, races."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.common.meter import Meter, metered
from fwstore.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Expired,
    Fenced,
    FwstoreError,
    NotFound,
    Unavailable,
)
from fwstore.format.record import Commit, Expire, Fence, Open
from fwstore.format.vote import Receipt, Vote, encode_vote, parse_vote
from fwstore.log.fold import Fold
from fwstore.log.history import history
from fwstore.log.lineage import delete, find, list_lineages
from fwstore.log.log import Log
from fwstore.log.site import Site
from fwstore.log.term import Term
from fwstore.log.terms import Candidate, take_term
from fwstore.sched import system_runtime
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from support.faults import (
    WRITES,
    Fault,
    FaultyStore,
    Operation,
    Plan,
    every_crash,
    fail_at,
    late_at,
    lose_at,
)
from support.lineages import (
    SITE,
    Saver,
    candidate,
    keys_under,
    made_site,
    make_runtime,
    make_store,
    open_run,
    read_packs,
    resume,
)

STEPS = [0, 10, 20]


def begun() -> MemoryStore:
    """A store with a run of three steps."""
    store = make_store()
    saver = Saver(resume(store))
    for step in STEPS:
        saver.commit(step)
    return store


def steps(store: Store, name: str = "run") -> list[int]:
    """The canonical steps, newest first, as a new process sees them."""
    lineage = find(store, name)
    assert lineage is not None
    log = Log(store, lineage.keys, lineage.lineage, make_runtime(77), read_packs)
    return [entry.step for entry in history(log.refresh())]


def test_a_run_is_born_with_its_first_term() -> None:
    store = make_store()
    assert find(store, "run") is None
    term = resume(store)
    lineage = find(store, "run")
    assert lineage is not None
    assert (term.number, term.base, term.lineage) == (1, None, lineage.lineage)
    vote = parse_vote(store.get(term.keys.vote(1), limit_bytes=1 << 14), "vote")
    assert (vote.lineage, vote.home, vote.witnesses) == (lineage.lineage, SITE, (SITE,))


def test_a_term_continues_from_the_newest_snapshot() -> None:
    store = begun()
    term = resume(store, make_runtime(1))
    assert term.number == 2
    assert term.base is not None
    assert term.base.step == 20
    Saver(term).commit(30)
    assert steps(store) == [30, 20, 10, 0]


def test_zombie_is_fenced_and_its_record_does_not_count() -> None:
    store = make_store()
    zombie = Saver(resume(store))
    zombie.commit(0)
    newer = resume(store, make_runtime(1))
    with pytest.raises(Fenced, match="term 2"):
        zombie.commit(10)
    with pytest.raises(Fenced):
        zombie.term.check()
    newer.check()
    assert steps(store) == [0]


def test_h12_fences_are_compared_by_term() -> None:
    """A late fence of a lower term must not stop the newest writer."""
    store = make_store()
    saver = Saver(resume(store))
    saver.commit(0)
    newest = Saver(resume(store, make_runtime(1)))
    open_run(store, newest.term).append(lambda _: Fence(), term=1)
    newest.commit(10)
    assert steps(store) == [10, 0]


def test_h9_every_home_is_fenced_before_the_base_is_chosen() -> None:
    """A winner paused before its open is fenced by the next one, and opens nothing later."""
    store = begun()
    paused = FaultyStore(store)

    def plan(operation: Operation) -> Fault | None:
        if operation.key.endswith(".open") and operation.name == "create":
            resume(store, make_runtime(8))
        return None

    paused.reset(plan)
    with pytest.raises(Fenced):
        resume(paused, make_runtime(1))
    opens = [
        record.term
        for record in open_run(store, resume(store, make_runtime(9))).records()
        if isinstance(record.body, Open)
    ]
    assert opens == [1, 3, 4]


def test_h10_base_is_pinned_between_choice_and_first_commit() -> None:
    store = begun()
    term = resume(store, make_runtime(1))
    assert term.base is not None
    fold = open_run(store, term).fold
    assert [(pin.snapshot, pin.base_of) for pin in fold.pins.values()] == [(term.base.id, 2)]
    records = {record.kind: record.seq for record in term.log.records(5)}
    assert records["fence"] < records["pin"] < records["open"]
    Saver(term).commit(30)
    assert not open_run(store, term).fold.pins


def test_h10_a_base_that_expires_before_its_pin_is_chosen_again() -> None:
    store = begun()
    racing = FaultyStore(store)
    done: list[str] = []

    def plan(operation: Operation) -> Fault | None:
        # After the fence, before the pin: retention expires the newest snapshot.
        if operation.name == "create" and operation.key.endswith("_log/000000/006") and not done:
            lineage = find(store, "run")
            assert lineage is not None
            log = Log(store, lineage.keys, lineage.lineage, make_runtime(4), read_packs)
            newest = history(log.refresh())[0].id
            done.append(newest)
            log.append(lambda _: Expire((newest,), "test"))
        return None

    racing.reset(plan)
    term = resume(racing, make_runtime(1))
    assert done
    assert term.base is not None
    assert term.base.step == 10


def test_a_base_may_be_asked_for_and_what_follows_it_becomes_a_tail() -> None:
    store = begun()
    lineage = find(store, "run")
    assert lineage is not None
    log = Log(store, lineage.keys, lineage.lineage, make_runtime(), read_packs)
    older = history(log.refresh())[1]
    term = resume(store, make_runtime(1), base=older.id)
    assert term.base == older
    assert steps(store) == [10, 0]
    Saver(term).commit(11)
    assert steps(store) == [11, 10, 0]
    promoted = history(log.refresh())
    assert [entry.step for entry in promoted] == [11, 10, 0]
    with pytest.raises(NotFound):
        resume(store, make_runtime(2), base=older.id.replace("t1", "t7"))
    log.append(lambda _: Expire((older.id,), "test"))
    with pytest.raises(Expired):
        resume(store, make_runtime(3), base=older.id)


def test_a_base_that_cannot_be_loaded_is_passed_over_and_unpinned() -> None:
    store = begun()
    picky = replace(candidate(store), loadable=lambda entry: entry.step < 20)
    term = take_term(picky, make_runtime(1))
    assert term.base is not None
    assert term.base.step == 10
    assert len(open_run(store, term).fold.pins) == 1
    with pytest.raises(Corrupt, match="none of the"):
        take_term(replace(candidate(store), loadable=lambda _: False), make_runtime(2))


def test_names_are_unique_without_regard_to_case() -> None:
    store = make_store()
    resume(store, name="org/Llama")
    with pytest.raises(AlreadyExists, match="org/Llama"):
        resume(store, make_runtime(1), name="org/llama")
    resume(store, make_runtime(2), name="org/Llama")
    resume(store, make_runtime(3), name="org")
    assert [keys.name for keys in list_lineages(store)] == ["org", "org/Llama"]


def test_a_deleted_name_returns_as_the_next_generation() -> None:
    store = begun()
    old = resume(store, make_runtime(1))
    delete(old.log, "by its owner")
    assert list_lineages(store) == []
    term = resume(store, make_runtime(2))
    assert (term.keys.label, term.number, term.base) == ("run@2", 1, None)
    assert term.lineage != old.lineage
    Saver(term).commit(5)
    assert steps(store) == [5]
    assert [keys.label for keys in list_lineages(store)] == ["run@2"]
    with pytest.raises(Conflict):
        Saver(old).commit(99)


def test_h7_birth_uses_the_uuid_of_the_vote_that_was_won() -> None:
    """The winner of term 1, before other witnesses, dies before it writes the lineage; its successor takes its uuid."""
    store, uuid = make_store(), "e" * 32
    dead = Vote(
        term=1, lineage=uuid, holder="dead", home=SITE, witnesses=(SITE,), write_id="d" * 32
    )
    store.put("meta/run@1/_term/00000001", [encode_vote(dead)], mode="create")
    term = resume(store)
    assert (term.number, term.lineage) == (2, uuid)


def test_h7_candidates_before_the_same_witnesses_bear_one_lineage() -> None:
    """Two who win terms 1 and 2 while neither sees the votes of the other: the uuid is no matter of chance."""
    first, second = resume(make_store(), make_runtime(1)), resume(make_store(), make_runtime(2))
    assert first.lineage == second.lineage
    assert first.lineage != resume(make_store(), name="other").lineage
    elsewhere = Site("6" * 32, "elsewhere", make_store())
    other = replace(candidate(elsewhere.store), home=elsewhere, witnesses=(elsewhere,))
    assert take_term(other, make_runtime()).lineage != first.lineage


def test_h7_two_lineages_of_one_name_are_a_conflict_that_names_both() -> None:
    store = begun()
    alien = Vote(
        term=9,
        lineage="e" * 32,
        holder="twin",
        home=SITE,
        witnesses=(SITE,),
        write_id="d" * 32,
    )
    store.put("meta/run@1/_term/00000009", [encode_vote(alien)], mode="create")
    lineage = find(store, "run")
    assert lineage is not None
    with pytest.raises(Conflict, match=f"{lineage.lineage}.*{'e' * 32}"):
        resume(store, make_runtime(1))


def test_a_spent_term_number_is_not_used_again() -> None:
    store = begun()
    store.put(
        "meta/run@1/_term/00000005",
        [
            encode_vote(
                Vote(
                    term=5,
                    lineage=resume(store, make_runtime(1)).lineage,
                    holder="died",
                    home=SITE,
                    witnesses=(SITE,),
                    write_id="d" * 32,
                )
            )
        ],
        mode="create",
    )
    assert resume(store, make_runtime(2)).number == 6


def test_a_receipt_without_an_open_in_a_home_that_was_read_opened_nothing() -> None:
    store = begun()
    lineage = find(store, "run")
    assert lineage is not None
    vote = Vote(
        term=7,
        lineage=lineage.lineage,
        holder="died before its open",
        home=SITE,
        witnesses=(SITE,),
        write_id="d" * 32,
    )
    store.put("meta/run@1/_term/00000007", [encode_vote(vote)], mode="create")
    receipt = Receipt(term=7, lineage=lineage.lineage, home=SITE, base=None, write_id="d" * 32)
    store.put("meta/run@1/_term/00000007.open", [encode_vote(receipt)], mode="create")
    term = resume(store, make_runtime(1))
    assert term.base is not None
    assert term.base.step == 20


def three_sites() -> list[Site]:
    return [made_site(letter) for letter in "abc"]


def at(home: Site, sites: tuple[Site, ...], holder: str = "job") -> Candidate:
    return Candidate(name="run", home=home, witnesses=sites, holder=holder, read_packs=read_packs)


def test_a_majority_of_witnesses_is_needed_and_enough() -> None:
    a, b, c = three_sites()
    down = FaultyStore(c.store, lambda _: "fail")
    term = take_term(at(a, (a, b, Site(c.uuid, "c", down))), make_runtime())
    assert term.number == 1
    assert not keys_under(c.store, "meta/")
    gone = [Site(site.uuid, "gone", FaultyStore(site.store, lambda _: "fail")) for site in (b, c)]
    with pytest.raises(Unavailable, match="witnesses"):
        take_term(at(a, (a, *gone)), make_runtime(1))


def test_h7_witness_sets_named_in_votes_join_the_electorate() -> None:
    """A candidate that knows {a} alone must still win a majority of {a, b, c}."""
    a, b, c = three_sites()
    take_term(at(a, (a, b, c)), make_runtime())
    with pytest.raises(Unavailable, match="witnesses"):
        take_term(at(a, (a,)), make_runtime(1))
    narrow = replace(at(a, (a,)), sites=(b, c))
    assert take_term(narrow, make_runtime(2)).number == 2
    assert keys_under(b.store, "meta/run@1/_term/00000002")


def test_h7_witness_sets_of_an_earlier_topology_still_vote() -> None:
    a, b, c = three_sites()
    d, e = made_site("d"), made_site("e")
    take_term(at(a, (a, b, c)), make_runtime())
    assert take_term(replace(at(a, (c, d, e)), sites=(a, b)), make_runtime(1)).number == 2
    with pytest.raises(Unavailable, match="witnesses"):
        take_term(at(a, (a, b, c)), make_runtime(2))
    assert take_term(replace(at(a, (a, b, c)), sites=(d, e)), make_runtime(3)).number == 3


def test_h6_votes_are_read_again_before_the_open() -> None:
    """While the winner of a term writes its receipt, another home wins a higher term and opens."""
    a, b, c = three_sites()
    cut = Site(a.uuid, "a", FaultyStore(a.store, lambda _: "fail"))
    won: list[int] = []

    def plan(operation: Operation) -> Fault | None:
        if operation.key.endswith(".open") and operation.name == "create" and not won:
            won.append(0)
            won.append(take_term(at(b, (cut, b, c)), make_runtime(9)).number)
        return None

    slow = Site(b.uuid, "b", FaultyStore(b.store, plan))
    with pytest.raises(Fenced, match="term 2"):
        take_term(at(a, (a, slow, c)), make_runtime())
    assert won == [0, 2]
    slots = keys_under(a.store, "meta/run@1/_log/000000/")
    assert len(slots) == 1, "the fence of term 1, and no open"


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize("plan", [lose_at, late_at, fail_at])
def test_a_lost_answer_at_any_create_changes_nothing(
    number: int, plan: Callable[[int], Plan]
) -> None:
    inner = begun()
    store = FaultyStore(inner, plan(number), counted=frozenset({"create"}))
    saver = Saver(resume(store, make_runtime(1)))
    saver.commit(30)
    store.land()
    saver.commit(40)
    assert steps(inner) == [40, 30, *reversed(STEPS)]
    records = list(saver.term.log.records())
    assert [record.term for record in records if isinstance(record.body, Open)] == [1, 2]
    assert sum(isinstance(record.body, Commit) for record in records) == 5


def test_take_over_survives_a_crash_at_every_operation() -> None:
    def scenario(store: Store) -> None:
        Saver(resume(store, make_runtime(1))).commit(30)

    deaths = 0
    for death, store in every_crash(begun, scenario, counted=WRITES | {"get", "list"}):
        deaths += 1
        fold = open_after(store)
        assert sorted(e.step for e in fold.live())[:3] == STEPS, death
        term = resume(store, make_runtime(2))
        assert term.base is not None, death
        assert term.base.step in (20, 30), death
        Saver(term).commit(40)
        assert steps(store)[0] == 40, death
        assert set(STEPS) < set(steps(store)), death
        assert one_open_per_term(store), death
    assert deaths > 30


def test_birth_survives_a_crash_at_every_operation() -> None:
    def scenario(store: Store) -> None:
        Saver(resume(store)).commit(0)

    for death, store in every_crash(make_store, scenario, counted=WRITES):
        saver = Saver(resume(store, make_runtime(2)))
        saver.commit(10)
        assert steps(store)[0] == 10, death
        assert one_open_per_term(store), death


def test_deletion_survives_a_crash_at_every_operation() -> None:
    def scenario(store: Store) -> None:
        delete(resume(store, make_runtime(1)).log, "test")

    for death, store in every_crash(begun, scenario, counted=WRITES):
        term = resume(store, make_runtime(2))
        assert term.keys.generation in (1, 2), death
        delete(term.log, "again")
        assert list_lineages(store) == [], death


def open_after(store: Store) -> Fold:
    lineage = find(store, "run")
    assert lineage is not None
    return Log(store, lineage.keys, lineage.lineage, make_runtime(55), read_packs).refresh()


def one_open_per_term(store: Store) -> bool:
    lineage = find(store, "run")
    assert lineage is not None
    log = Log(store, lineage.keys, lineage.lineage, make_runtime(56), read_packs)
    opened = [record.term for record in log.records() if isinstance(record.body, Open)]
    return len(opened) == len(set(opened)) and opened == sorted(opened)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_racing_candidates_open_one_term_each_and_one_stays(seed: int) -> None:
    runtime = system_runtime()
    store = begun()

    def race(number: int) -> Term | FwstoreError:
        own = replace(
            make_runtime(seed * 100 + number), scheduler=runtime.scheduler, clock=runtime.clock
        )
        try:
            return resume(store, own)
        except Conflict as error:
            return error

    results = runtime.scheduler.map(race, range(4), limit=4)
    terms = [result for result in results if isinstance(result, Term)]
    assert terms
    assert len({term.number for term in terms}) == len(terms)
    assert one_open_per_term(store)
    newest = max(terms, key=lambda term: term.number)
    Saver(newest).commit(30)
    for term in terms:
        if term is not newest:
            with pytest.raises(Fenced):
                Saver(term).commit(31)
    runtime.scheduler.close()


def test_resuming_takes_few_round_trips() -> None:
    store = begun()
    scheduler = Meter()
    far = metered(store, scheduler)
    term = resume(far, make_runtime(1, scheduler))
    assert scheduler.rounds <= 14
    saver = Saver(term)
    commit, packs = saver.write(30)
    scheduler.rounds = 0
    term.commit(commit, [pack.key([term.keys]) for pack in packs])
    assert scheduler.rounds == 2, "commit, and once the unpin of the base"
    commit, _ = saver.write(40)
    scheduler.rounds = 0
    term.commit(commit)
    assert scheduler.rounds == 1
