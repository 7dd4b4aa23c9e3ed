"""What is copied, in which order and from where: pure, complete, explained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.format.record import ObjectRef
from fwstore.format.summary import SnapshotEntry
from fwstore.plan.replication import (
    Everything,
    Known,
    Priority,
    ReplicationPlan,
    plan_replication,
)


@dataclass(frozen=True)
class Wanted:
    every: int = 1
    tails: bool = True
    pins: bool = True


def entry(term: int, save: int) -> SnapshotEntry:
    return SnapshotEntry(
        id=f"{save:012d}-t{term}-s{save}-{'a' * 16}", step=save, term=term, save=save, parent=None,
        root=ObjectRef("ab" * 32, 1), tables=(), groups=(), foreign=(), bytes_logical=7,
        bytes_written=0, metrics={}, position=None, holds=(), source=None, seq=0, wall_time=0.0,
    )  # fmt: skip


def known(chain: list[SnapshotEntry], tails: list[SnapshotEntry] | None = None) -> Known:
    offers = {"a" * 32: {e.id: e for e in [*chain, *(tails or [])]}}
    return Known(chain=chain, offers=offers, here=set(), gone={}, marked={})


def saves(plan: ReplicationPlan) -> list[int]:
    return [transfer.entry.save for transfer in plan.transfers]


CHAIN = [entry(1, save) for save in range(12, 0, -1)]
TAILS = [entry(2, 3), entry(2, 2)]


def test_the_newest_comes_first_then_marks_then_history_then_tails() -> None:
    marked = {CHAIN[8].id: "pinned: keep", TAILS[1].id: "tagged 'odd'"}
    plan = plan_replication(replace(known(CHAIN, TAILS), marked=marked), Everything())
    assert saves(plan) == [12, 4, 2, 11, 10, 9, 8, 7, 6, 5, 3, 2, 1, 3]
    assert [t.priority for t in plan.transfers[:4]] == [0, 1, 1, 2]
    assert plan.transfers[1].reason == "pinned: keep"
    assert plan.transfers[-1].reason == "tail of term 2"


def test_every_nth_is_counted_by_save_and_the_newest_always_comes() -> None:
    plan = plan_replication(known(CHAIN[1:], TAILS), Wanted(every=5, tails=False))
    assert saves(plan) == [11, 10, 5]
    reasons = {passed.reason for passed in plan.passed_over}
    assert "the policy wants every 5th save, and this is 9" in reasons
    assert "the policy leaves tails where they are" in reasons


def test_pins_come_whatever_every_says_unless_the_policy_says_otherwise() -> None:
    marked = {CHAIN[5].id: "pinned: keep", TAILS[0].id: "tagged 'odd'"}
    with_pins = plan_replication(
        replace(known(CHAIN, TAILS), marked=marked), Wanted(every=100, tails=False)
    )
    assert saves(with_pins) == [12, 7, 3]
    without = Wanted(every=100, tails=False, pins=False)
    assert saves(plan_replication(replace(known(CHAIN, TAILS), marked=marked), without)) == [12]


def test_a_run_that_no_policy_sends_here_is_passed_over_whole() -> None:
    plan = plan_replication(known(CHAIN), None)
    assert plan.transfers == ()
    assert {passed.reason for passed in plan.passed_over} == {"no policy sends this run here"}


def test_every_source_that_has_a_snapshot_is_named_the_nearest_first() -> None:
    near, far = {CHAIN[0].id: CHAIN[0]}, {e.id: e for e in CHAIN[:2]}
    plan = plan_replication(
        replace(known(CHAIN), offers={"b" * 32: near, "c" * 32: far}), Everything()
    )
    assert [[site[0] for site, _ in t.offers] for t in plan.transfers] == [["b", "c"], ["c"]]


@given(st.data())
def test_nothing_that_is_here_or_gone_is_copied_and_all_else_is_copied_or_explained(
    data: st.DataObject,
) -> None:
    everyone = [*CHAIN, *TAILS]
    ids = [e.id for e in everyone]
    here = data.draw(st.sets(st.sampled_from(ids)))
    gone = data.draw(st.dictionaries(st.sampled_from(ids), st.just("expired here")))
    marked = data.draw(st.dictionaries(st.sampled_from(ids), st.just("pinned: x")))
    offered = data.draw(st.sets(st.sampled_from(ids)))
    policy = data.draw(
        st.builds(Wanted, every=st.integers(1, 5), tails=st.booleans(), pins=st.booleans())
    )
    offers = {"a" * 32: {e.id: e for e in everyone if e.id in offered}}
    facts = replace(known(CHAIN, TAILS), offers=offers, here=here, gone=gone, marked=marked)
    plan = plan_replication(facts, policy)
    copied = [t.snapshot for t in plan.transfers]
    passed = [p.snapshot for p in plan.passed_over]
    assert len({*copied, *passed}) == len(copied) + len(passed)
    assert not {*copied} & ({*here} | {*gone})
    assert {*copied, *passed} == (offered - here) | (offered & gone.keys())
    priorities = [t.priority for t in plan.transfers]
    assert priorities == sorted(priorities)
    newest = CHAIN[0].id
    if newest in offered - here and newest not in gone:
        assert copied[0] == newest
    for number in (Priority.HISTORY, Priority.TAIL):
        of_kind = [t.entry for t in plan.transfers if t.priority == number]
        assert of_kind == sorted(of_kind, key=lambda e: (e.term, e.save), reverse=True)


@pytest.mark.parametrize("later", range(1, 6))
def test_what_comes_later_changes_nothing_of_what_history_is_wanted(later: int) -> None:
    def wanted(chain: list[SnapshotEntry]) -> set[int]:
        return {s for s in saves(plan_replication(known(chain), Wanted(every=3))) if s % 3 == 0}

    assert wanted(CHAIN[later:]) <= wanted(CHAIN)
