"""What the log of a replica alone tells of the history of a run that was written elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fwstore.care.gc import GcOptions, collect
from fwstore.format.record import Hold, Publish
from fwstore.log.history import branches, view_of
from fwstore.plan.retention import Keep
from fwstore.store.memory import MemoryStore
from support.lineages import (
    Saver,
    canonical_steps,
    fresh_log,
    make_runtime,
    make_store,
    resume,
)
from support.replicas import check_replica, published, replicate, replicator

OLD = GcOptions(tails_s=-1e12)


@dataclass(frozen=True)
class EveryFourth:
    every: int = 4
    tails: bool = True
    pins: bool = True


def three_terms() -> tuple[MemoryStore, list[int]]:
    """A run of three terms; the second began before the end of the first, whose rest is a tail."""
    near = make_store()
    first = Saver(resume(near))
    for step in (10, 20, 30):
        first.commit(step)
    base = fresh_log(near).fold.live()[1]
    second = Saver(resume(near, make_runtime(2), base=base.id))
    for step in (40, 50):
        second.commit(step)
    third = Saver(resume(near, make_runtime(3)))
    for step in (60, 70, 80, 90):
        third.commit(step)
    return near, canonical_steps(near)


def test_the_canonical_history_and_its_tails_are_the_same_at_a_replica() -> None:
    near, chain = three_terms()
    assert chain == [90, 80, 70, 60, 50, 40, 20, 10]
    far = make_store()
    replicate(far, near)
    assert canonical_steps(far) == chain
    found = branches(view_of({"": fresh_log(far).fold}))
    assert [(branch.name, [e.step for e in branch.snapshots]) for branch in found] == [("t1", [30])]


def test_the_chain_goes_on_where_a_term_in_between_was_collected_here() -> None:
    """The base of a term stands in its publish: its open is in a log elsewhere."""
    near, _ = three_terms()
    far = make_store()
    replicate(far, near)
    collect(fresh_log(far), GcOptions(keep=Keep(every_steps=60)))
    assert sorted(published(far)) == [10, 30, 60, 90]
    assert canonical_steps(far) == [90, 60, 10]
    # A summary tells the same as the slots.
    fold = fresh_log(far).fold
    assert fold.bases == {2: fold.bases[2], 3: fold.bases[3]}
    assert [int(base.split("-")[0]) for base in fold.bases.values()] == [50, 20]
    again = fold.restore(fold.lineage, fold.seq, fold.digest, fold.export())
    assert again.bases == fold.bases


def test_the_chain_is_whole_though_only_some_of_it_is_wanted_here() -> None:
    near, _ = three_terms()
    far = make_store()
    replicator(far, near, policy=lambda _: EveryFourth()).once()
    # The newest always, every fourth save, and the tail: the rest is elsewhere.
    assert canonical_steps(far) == [90]
    third = make_store()
    replicate(third, far)
    assert canonical_steps(third) == [90]
    assert fresh_log(third).fold.bases == fresh_log(far).fold.bases


def test_tails_expire_at_a_replica_once_it_knows_what_came_after() -> None:
    near, chain = three_terms()
    far = make_store()
    replicate(far, near)
    collect(fresh_log(far), OLD)
    assert sorted(published(far), reverse=True) == chain
    check_replica(far)


def test_an_intent_says_that_its_save_was_recorded() -> None:
    near, _ = three_terms()
    far = make_store()
    replicate(far, near)
    records = list(fresh_log(far).records())
    intents = [r for r in records if isinstance(r.body, Hold)]
    assert intents
    assert all(isinstance(r.body, Hold) and r.body.tables == () for r in intents)
    first = [r.body for r in records if isinstance(r.body, Publish) and r.term == 1]
    assert [body.base for body in first] == [msgspec.UNSET] * 3
