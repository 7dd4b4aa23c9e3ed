"""The canonical chain and its branches, also where parents were collected."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fwstore.format.record import ObjectRef
from fwstore.format.summary import OpenEntry, SnapshotEntry
from fwstore.format.vote import Receipt
from fwstore.log.fold import Fold
from fwstore.log.history import View, branches, canonical_chain, view_of
from support.stored import LINEAGE, SITE

REF = ObjectRef("ab" * 32, 1)


def name(term: int, save: int) -> str:
    return f"{save:012d}-t{term}-s{save}-{'a' * 16}"


def entry(term: int, save: int, parent: str | None) -> SnapshotEntry:
    return SnapshotEntry(
        id=name(term, save), step=save, term=term, save=save, parent=parent, root=REF, tables=(),
        groups=(), foreign=(), bytes_logical=0, bytes_written=0, metrics={}, position=None,
        holds=(), source=None, seq=0, wall_time=0.0,
    )  # fmt: skip


def opened(term: int, base: str | None, home: str = SITE) -> OpenEntry:
    return OpenEntry(term, "job", home, base, 0, 0.0)


def view(opens: list[OpenEntry], entries: list[SnapshotEntry], live: set[str]) -> View:
    return View({one.term: one for one in opens}, {one.id: one for one in entries}, frozenset(live))


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_the_chain_does_not_depend_on_what_was_collected(counts: list[int], draw: Random) -> None:
    """Every term saves some steps and continues from a random step before; any of them may be gone."""
    every: list[SnapshotEntry] = []
    opens: list[OpenEntry] = []
    parent_of: dict[str, str | None] = {}
    for term, count in enumerate(counts, start=1):
        base = draw.choice([None, *parent_of]) if parent_of else None
        opens.append(opened(term, base))
        for save in range(1, count + 1):
            made = entry(term, save, base)
            parent_of[made.id] = base
            every.append(made)
            base = made.id
    head = next((one.id for one in reversed(every) if one.term == len(counts)), opens[-1].base)
    expected: list[str] = []
    while head is not None:
        expected.append(head)
        head = parent_of[head]
    kept = [one for one in every if draw.random() < 0.7]
    found = view(opens, kept, {one.id for one in kept})
    chain = [one.id for one in canonical_chain(found)]
    assert chain == [one for one in expected if one in found.live]
    beside = [one.id for branch in branches(found) for one in branch.snapshots]
    assert sorted(chain + beside) == sorted(found.live)


def test_expired_snapshots_are_stepped_over() -> None:
    entries = [entry(1, 1, None), entry(1, 2, name(1, 1)), entry(1, 3, name(1, 2))]
    found = view([opened(1, None)], entries, {name(1, 3), name(1, 1)})
    assert [one.save for one in canonical_chain(found)] == [3, 1]


def test_a_term_without_commits_leaves_its_base_the_head() -> None:
    entries = [entry(1, 1, None), entry(1, 2, name(1, 1))]
    found = view([opened(1, None), opened(2, name(1, 1))], entries, {name(1, 1), name(1, 2)})
    assert [one.save for one in canonical_chain(found)] == [1]
    (tail,) = branches(found)
    assert (tail.name, tail.head.id, tail.base) == ("t1", name(1, 2), None)


def test_a_receipt_stands_for_an_open_where_its_home_was_not_read() -> None:
    fold = Fold(LINEAGE)
    fold.entries = {one.id: one for one in (entry(1, 1, None), entry(1, 2, name(1, 1)))}
    fold.opens = {1: opened(1, None)}
    elsewhere = Receipt(term=2, lineage=LINEAGE, home="7" * 32, base=name(1, 1), write_id="8" * 32)
    assert [e.save for e in canonical_chain(view_of({SITE: fold}, [elsewhere]))] == [1]
    both = {SITE: fold, "7" * 32: Fold(LINEAGE)}
    assert [e.save for e in canonical_chain(view_of(both, [elsewhere]))] == [2, 1]


def test_a_circle_of_parents_ends() -> None:
    entries = [entry(1, 1, name(1, 2)), entry(1, 2, name(1, 1))]
    found = view([opened(1, name(1, 2))], entries, {name(1, 1), name(1, 2)})
    assert [one.save for one in canonical_chain(found)] == [2, 1]
