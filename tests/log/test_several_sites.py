"""Terms over several sites: who is asked, who counts, what is fenced, and where the base may stand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fwstore.base.errors import (
    Conflict,
    Expired,
    Fenced,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from fwstore.format.keys import SITE_KEY
from fwstore.format.record import Expire, Open, Publish
from fwstore.format.vote import Vote, encode_vote, parse_vote
from fwstore.log.history import canonical_chain, view_of
from fwstore.log.lineage import delete, find, read_lineage
from fwstore.log.log import Log
from fwstore.log.site import Site
from fwstore.log.term import Term
from fwstore.log.terms import Candidate, take_term
from fwstore.store.base import Store
from support.faults import WRITES, Crash, Fault, FaultyStore, Operation, When, crash_at
from support.lineages import Saver, keys_under, made_site, make_runtime, read_packs


def three() -> tuple[Site, Site, Site]:
    """Two sites that train and a witness."""
    return made_site("a"), made_site("b"), made_site("c")


def at(home: Site, *others: Site, **options: Any) -> Candidate:
    """A candidate at one of three sites that vote, the others of which are given."""
    made = Candidate(
        name="run", home=home, witnesses=(home, *others), holder="job", read_packs=read_packs
    )
    return replace(made, **options)


def silent(site: Site) -> Site:
    return replace(site, store=FaultyStore(site.store, lambda _: "fail"), patience_s=0.01)


def log_at(site: Site) -> Log:
    lineage = find(site.store, "run")
    assert lineage is not None
    log = Log(site.store, lineage.keys, lineage.lineage, make_runtime(71), read_packs)
    log.refresh()
    return log


def publish(source: Site, target: Site, snapshot: str) -> None:
    """Say at a site that it has a snapshot of another one: what replication ends with."""
    lineage = find(source.store, "run")
    assert lineage is not None
    target.store.put(
        lineage.keys.catalog,
        [source.store.get(lineage.keys.catalog, limit_bytes=1 << 14)],
        mode="overwrite",
    )
    entry = log_at(source).fold.entries[snapshot]
    for info in [*source.store.list("packs/"), *source.store.list(lineage.keys.snapshots)]:
        content = source.store.get(info.key, limit_bytes=1 << 20)
        target.store.put(info.key, [content], mode="overwrite")
    body = Publish(
        snapshot=entry.id,
        step=entry.step,
        save=entry.save,
        parent=entry.parent,
        root=entry.root,
        tables=entry.tables,
        groups=entry.groups,
        source=source.uuid,
    )
    log_at(target).append(lambda _: body, term=entry.term)


def begun() -> tuple[Site, Site, Site, Saver]:
    """A run at `a` whose first two of three steps are also at `b`."""
    a, b, c = three()
    saver = Saver(take_term(at(a, b, c), make_runtime()))
    for step in (0, 10, 20):
        saver.commit(step)
    for entry in log_at(a).fold.live()[:2]:
        publish(a, b, entry.id)
    return a, b, c, saver


def test_a_run_that_is_known_elsewhere_comes_home_before_the_vote() -> None:
    a, b, c = three()
    Saver(take_term(at(a, b, c), make_runtime())).commit(0)
    seen: list[bool] = []

    def plan(operation: Operation) -> Fault | None:
        if operation.name == "create" and "/_term/" in operation.key:
            seen.append(find(b.store, "run") is not None)
        return None

    watched = replace(c, store=FaultyStore(c.store, plan))
    take_term(at(b, a, watched), make_runtime(1))
    assert seen
    assert all(seen)
    key = "catalog/run@1"
    assert b.store.get(key, limit_bytes=9999) == a.store.get(key, limit_bytes=9999)
    assert keys_under(b.store, "meta/_names/") == ["meta/_names/run@"]


def test_a_take_over_elsewhere_reads_every_slot_of_another_log_once() -> None:
    a, b, c = three()
    saver = Saver(take_term(at(a, b, c), make_runtime()))
    for step in range(5):
        saver.commit(step)
    slots = keys_under(a.store, "meta/run@1/_log/")
    far = FaultyStore(a.store)
    take_term(at(b, replace(a, store=far), c), make_runtime(1))
    reads = Counter(o.key for o in far.operations if o.name == "get")
    assert {key: reads[key] for key in slots} == dict.fromkeys(slots, 1)


def test_two_lineages_of_one_name_at_two_sites_are_a_conflict_that_names_both() -> None:
    a, b, c = three()
    first = take_term(replace(at(a), witnesses=(a,)), make_runtime())
    second = take_term(replace(at(b), witnesses=(b,)), make_runtime(1))
    assert first.lineage != second.lineage
    for home, other in ((a, b), (b, a)):
        with pytest.raises(Conflict) as told:
            take_term(at(home, other, c), make_runtime(2))
        assert first.lineage in told.value.message
        assert second.lineage in told.value.message
    with pytest.raises(Conflict, match="two lineages were created under one name"):
        take_term(at(c, a, b), make_runtime(3))


def test_a_run_deleted_at_home_goes_on_with_what_is_newer_elsewhere() -> None:
    a, b, c = three()
    delete(take_term(at(a, b, c), make_runtime()).log, "test")
    second = take_term(at(a, b, c), make_runtime(1))
    assert second.keys.generation == 2
    third = take_term(at(b, a, c), make_runtime(2))
    assert (third.keys.generation, third.lineage, third.number) == (2, second.lineage, 2)
    delete(log_at(b), "test")
    # Open at `a` still: each site deletes its own.
    assert take_term(at(b, a, c), make_runtime(3)).keys.generation == 3


def test_every_reachable_log_is_fenced_home_or_not() -> None:
    a, b, c, saver = begun()
    d = made_site("d")
    publish(a, d, log_at(a).fold.live()[0].id)
    term = take_term(at(b, a, c, witnesses=(a, b, c), sites=(d,)), make_runtime(1))
    assert [log_at(site).fold.fence for site in (a, b, d)] == [2, 2, 2]
    assert keys_under(c.store, "meta/run@1/_log/") == [], "a witness keeps no log"
    with pytest.raises(Fenced):
        saver.commit(30)
    assert term.base is not None
    assert term.base.step == 20


def test_the_next_home_fences_the_last_one_and_continues_from_it() -> None:
    a, b, c = three()
    old = Saver(take_term(at(a, b, c), make_runtime()))
    entry = old.commit(10)
    lineage = a.store.get(old.term.keys.catalog, limit_bytes=1 << 14)
    b.store.put(old.term.keys.catalog, [lineage], mode="create")
    term = take_term(at(b, a, c), make_runtime(1))
    assert term.number == 2
    assert term.base == entry
    with pytest.raises(Fenced):
        old.commit(20)
    assert [pin.snapshot for pin in old.term.log.refresh().pins.values()] == [entry.id]


def test_the_base_is_the_newest_anywhere_and_is_pinned_wherever_it_is_offered() -> None:
    a, b, c, _ = begun()
    term = take_term(at(b, a, c), make_runtime(1))
    assert term.base is not None
    assert (term.base.step, term.lends) == (20, False)
    assert [len(log_at(site).fold.pins) for site in (a, b)] == [1, 0]
    Saver(term).commit(30)
    assert [len(log_at(site).fold.pins) for site in (a, b)] == [0, 0]


def test_a_base_that_home_offers_lends_and_one_that_it_has_expired_does_not() -> None:
    a, b, c, _ = begun()
    newest = log_at(a).fold.live()[-1].id
    publish(a, b, newest)
    term = take_term(at(b, a, c), make_runtime(1))
    assert (term.base and term.base.id, term.lends) == (newest, True)
    log_at(b).append(lambda _: Expire((newest,), "test"))
    again = take_term(at(b, a, c, loadable=lambda _: True), make_runtime(2))
    assert (again.base and again.base.id, again.lends) == (newest, False)


def test_without_the_old_home_the_newest_that_came_over_is_the_base() -> None:
    a, b, c, zombie = begun()
    term = take_term(at(b, c, absent=(a.uuid,)), make_runtime(1))
    assert term.base is not None
    assert (term.number, term.base.step) == (2, 10)
    saver = Saver(term)
    saver.commit(11)
    # The zombie was not fenced: what it commits is no part of the history of term 2.
    zombie.commit(30)
    folds = {site.uuid: log_at(site).fold for site in (a, b)}
    assert [entry.step for entry in canonical_chain(view_of(folds))] == [11, 10, 0]


def test_a_run_that_was_begun_where_nobody_answers_is_not_begun_anew() -> None:
    a, b, c = three()
    Saver(take_term(at(a, b, c), make_runtime())).commit(0)
    with pytest.raises(Unavailable, match=f"begun at site {a.uuid}, which does not answer"):
        take_term(at(b, silent(a), c), make_runtime(1))
    assert not any(isinstance(r.body, Open) for r in log_at(b).records())
    assert take_term(at(b, a, c), make_runtime(2)).base is not None


def test_a_tail_of_another_site_may_be_asked_for() -> None:
    """Promotion: what the zombie committed past the base becomes canonical again."""
    a, b, c, zombie = begun()
    Saver(take_term(at(b, c, absent=(a.uuid,)), make_runtime(1))).commit(11)
    tail = zombie.commit(30)
    term = take_term(at(b, a, c), make_runtime(2), base=tail.id)
    assert term.base == tail
    Saver(term).commit(31)
    folds = {site.uuid: log_at(site).fold for site in (a, b)}
    assert [e.step for e in canonical_chain(view_of(folds))] == [31, 30, 20, 10, 0]
    with pytest.raises(NotFound):
        take_term(at(b, a, c), make_runtime(3), base=tail.id.replace("t1", "t7"))
    for site in (a, b):
        log_at(site).append(lambda _: Expire((tail.id,), "test"))
    with pytest.raises((Expired, NotFound)):
        take_term(at(b, a, c), make_runtime(4), base=tail.id)


def test_who_does_not_answer_counts_against_the_candidate() -> None:
    a, b, c = three()
    take_term(at(a, b, c), make_runtime())
    with pytest.raises(Unavailable, match="too few witnesses"):
        take_term(at(a, absent=(b.uuid, c.uuid)), make_runtime(1))
    assert take_term(at(a, b, absent=(c.uuid,)), make_runtime(2)).number == 2


def test_a_member_that_was_never_met_counts_against_the_candidate() -> None:
    a, b, c = three()
    with pytest.raises(Unavailable, match="before every witness was met: dallas"):
        take_term(at(a, b, absent=("?dallas",)), make_runtime())
    first = take_term(at(a, b, c), make_runtime(1))
    # Five votes in all: three are needed, whoever the other two are.
    wide = at(a, b, c, absent=("?d", "?e"))
    second = take_term(wide, make_runtime(2))
    stored = a.store.get(second.keys.vote(2), limit_bytes=1 << 14)
    # A set that cannot be written down must not be taken for a smaller one.
    assert set(parse_vote(stored, "vote").witnesses) == {a.uuid, b.uuid, c.uuid}
    assert second.lineage == first.lineage
    with pytest.raises(Unavailable, match="2 of 5"):
        take_term(at(a, b, absent=(c.uuid, "?d", "?e")), make_runtime(3))


def wipe(site: Site, uuid: str) -> None:
    """Let a store lose everything and become another site."""
    site.store.delete([info.key for info in site.store.list("")])
    made_site(uuid, site.store)


def wiped_at(site: Site, when: str) -> Site:
    """A site that is wiped as soon as something of that name was created there."""
    done: list[bool] = []

    def plan(operation: Operation) -> Fault | None:
        if done:
            return None
        if any(key.endswith(when) for key in keys_under(site.store, "meta/")):
            done.append(True)
            wipe(site, "9")
        return None

    return replace(site, store=FaultyStore(site.store, plan))


def test_a_vote_of_a_witness_that_was_wiped_does_not_count() -> None:
    """Else two jobs win one term: the first with the votes of `a` and `c`, the second with those of `b` and a new `c`."""
    a, b, c = three()
    wipe(c, "9")
    with pytest.raises(Unavailable, match=c.uuid):
        take_term(at(a, c, absent=(b.uuid,)), make_runtime())
    assert find(a.store, "run") is None


@pytest.mark.parametrize("when", ["_term/00000001", "_term/00000001.open"])
def test_a_witness_that_is_wiped_before_the_open_stops_it(when: str) -> None:
    a, b, c = three()
    with pytest.raises(Unavailable, match="wiped"):
        take_term(at(a, wiped_at(c, when), absent=(b.uuid,)), make_runtime())
    lineage = find(a.store, "run")
    assert lineage is None or not log_at(a).fold.opens
    # With a majority beside it, it is not missed.
    a, b, c = three()
    assert take_term(at(a, b, wiped_at(c, when)), make_runtime()).number == 1


def test_a_home_that_is_wiped_while_it_stands_does_not_vote_for_itself() -> None:
    a, b, c = three()
    with pytest.raises(Unavailable, match=a.uuid):
        take_term(at(wiped_at(a, "_term/00000001"), c, absent=(b.uuid,)), make_runtime())


def test_a_witness_that_refuses_the_credentials_is_silent() -> None:
    a, b, c = three()

    def refuse(operation: Operation) -> Fault | None:
        raise PermissionDenied("expired")

    refusing, other = (replace(site, store=FaultyStore(site.store, refuse)) for site in (b, c))
    assert take_term(at(a, refusing, c), make_runtime()).number == 1
    with pytest.raises(PermissionDenied):
        take_term(at(a, refusing, other), make_runtime(1))


def test_who_may_not_vote_is_told_so_at_once() -> None:
    a, b, c = three()
    take_term(at(a, b, c), make_runtime())

    def read_only(operation: Operation) -> Fault | None:
        if operation.writes:
            raise PermissionDenied("read only")
        return None

    def guarded(site: Site) -> Site:
        return replace(site, store=FaultyStore(site.store, read_only))

    assert take_term(at(a, guarded(b), c), make_runtime(1)).number == 2
    with pytest.raises(PermissionDenied):
        take_term(at(a, guarded(b), guarded(c)), make_runtime(2))
    alone = made_site("d")
    take_term(at(alone), make_runtime(3))
    with pytest.raises(PermissionDenied):
        take_term(at(guarded(alone)), make_runtime(4))


def silent_after(number: int, operation: Operation) -> Fault | None:
    return "fail" if operation.number > number else None


def test_a_site_that_falls_silent_in_the_middle_is_passed_over() -> None:
    a, b, c, _ = begun()
    for after in range(0, 40, 3):
        store = FaultyStore(a.store, partial(silent_after, after))
        falling = replace(a, store=store, patience_s=0.01)
        term = take_term(at(b, falling, c), make_runtime(100 + after))
        assert term.base is not None
        assert term.base.step in (10, 20), after


def test_a_lower_vote_of_a_dead_candidate_costs_a_number() -> None:
    a, b, c = three()
    lineage = take_term(at(a, b, c), make_runtime()).lineage
    dead = Vote(
        term=2,
        lineage=lineage,
        holder="dead",
        home=b.uuid,
        witnesses=(a.uuid, b.uuid, c.uuid),
        write_id="d" * 32,
    )
    c.store.put("meta/run@1/_term/00000002", [encode_vote(dead)], mode="create")
    assert take_term(at(a, b, c), make_runtime(1)).number == 3


def fresh_world() -> tuple[Store, Store, Store]:
    a, b, c, _ = begun()
    return a.store, b.store, c.store


@pytest.mark.slow
@pytest.mark.parametrize("where", ["home", "old home", "witness"])
def test_take_over_elsewhere_survives_a_crash_at_every_operation(where: str) -> None:
    """Killed at any operation on any of three stores, a take-over leaves what the next one continues from."""
    index = ("old home", "home", "witness").index(where)
    moments: tuple[When, ...] = ("before", "during")
    for when in moments:
        for number in range(1, 400):
            stores = list(fresh_world())
            sites = [Site(letter * 32, letter, s) for letter, s in zip("abc", stores, strict=True)]
            counted = WRITES | {"get", "list"}
            faulty = FaultyStore(stores[index], crash_at(number, when), counted=counted)
            dying = [replace(s, store=faulty) if i == index else s for i, s in enumerate(sites)]
            try:
                Saver(take_term(at(dying[1], dying[0], dying[2]), make_runtime(1))).commit(30)
            except Crash:
                check_after(sites, f"{when} {number} at {where}")
            else:
                assert number > 10
                break
        else:
            raise AssertionError("the take-over never came to its end")


def check_after(sites: list[Site], death: str) -> None:
    """Either site can go on, from nothing older than what there was, and one history is canonical."""
    a, b, c = sites
    for home, others, seed in ((b, (a, c), 2), (a, (b, c), 3)):
        term: Term = take_term(at(home, *others), make_runtime(seed))
        assert term.base is not None, death
        assert term.base.step >= 20, death
        Saver(term).commit(term.base.step + 10)
    folds = {site.uuid: log_at(site).fold for site in (a, b)}
    steps = [entry.step for entry in canonical_chain(view_of(folds))]
    assert steps[-3:] == [20, 10, 0], death
    assert steps == sorted(steps, reverse=True), death
    opened = [
        record.term
        for site in (a, b)
        for record in log_at(site).records()
        if isinstance(record.body, Open)
    ]
    assert len(opened) == len(set(opened)), death


def test_resuming_over_three_sites_asks_each_who_it_is_and_no_more_than_that() -> None:
    """The lineage object, votes, identity and the log: of another site only votes, retirements and slots are listed."""
    a, b, c, _ = begun()
    watched = replace(a, store=FaultyStore(a.store))
    take_term(at(b, watched, c), make_runtime(1))
    asked = watched.store
    assert isinstance(asked, FaultyStore)
    listed = [op.key for op in asked.operations if op.name == "list"]
    assert all("/_term/" in key or "/_log/" in key or key == "_site/" for key in listed), listed
    assert [op.key for op in asked.operations if op.key == SITE_KEY] == [SITE_KEY] * 2
    assert read_lineage(b.store, log_at(a).keys) == read_lineage(a.store, log_at(a).keys)
