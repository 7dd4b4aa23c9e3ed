"""What the snapshots of a run mean: the canonical chain, and the tails beside it.

Invariant: the canonical chain is found from opens and parents, never from step numbers or time; every
snapshot on offer is on the chain or on exactly one branch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fwstore.format.keys import parse_snapshot_id
from fwstore.format.summary import OpenEntry, SnapshotEntry
from fwstore.format.vote import Receipt
from fwstore.log.fold import Fold

_NO_LIMIT = 2**63


@dataclass(frozen=True, slots=True)
class View:
    """What one or several logs know of a lineage.

    Attributes:
        opens: Opened terms.
        entries: Snapshots whose records are remembered, also expired ones.
        live: Those on offer somewhere.
    """

    opens: Mapping[int, OpenEntry]
    entries: Mapping[str, SnapshotEntry]
    live: frozenset[str]


@dataclass(frozen=True, slots=True)
class Branch:
    """Snapshots of a term that the chain left behind, newest first.

    Attributes:
        name: ``t`` and the term.
        term: The term that wrote them.
        base: Id of the snapshot that the term began from, or None.
        snapshots: Newest first.
    """

    name: str
    term: int
    base: str | None
    snapshots: tuple[SnapshotEntry, ...]

    @property
    def head(self) -> SnapshotEntry:
        """The newest snapshot of the branch."""
        return self.snapshots[0]


def view_of(folds: Mapping[str, Fold], receipts: Iterable[Receipt] = ()) -> View:
    """Return what logs, by site, and receipts say together.

    A receipt stands for an open only where the log of its home was not read: a home that was read and has
    none never opened.
    """
    opens: dict[int, OpenEntry] = {}
    entries: dict[str, SnapshotEntry] = {}
    live: set[str] = set()
    for fold in folds.values():
        opens |= dict(fold.opens)
        entries = {**dict(fold.entries), **entries}
        live.update(entry.id for entry in fold.live())
    for receipt in receipts:
        if receipt.home not in folds:
            told = OpenEntry(receipt.term, "", receipt.home, receipt.base, -1, 0.0)
            opens.setdefault(receipt.term, told)
    return View(opens, entries, frozenset(live))


def canonical_chain(view: View) -> list[SnapshotEntry]:
    """Return the snapshots on offer on the canonical chain, newest first."""
    entries = [view.entries[name] for name in _walk(view)]
    return [entry for entry in entries if entry.id in view.live]


def branches(view: View) -> list[Branch]:
    """Return what is on offer beside the canonical chain, newest term first."""
    chain = set(_walk(view))
    terms: dict[int, list[SnapshotEntry]] = {}
    for entry in view.entries.values():
        if entry.id in view.live and entry.id not in chain:
            terms.setdefault(entry.term, []).append(entry)
    return [_branch(view, term, terms[term]) for term in sorted(terms, reverse=True)]


def history(fold: Fold) -> list[SnapshotEntry]:
    """Return the canonical chain of one log, newest first."""
    return canonical_chain(view_of({"": fold}))


def _branch(view: View, term: int, entries: list[SnapshotEntry]) -> Branch:
    opened = view.opens.get(term)
    newest_first = sorted(entries, key=lambda entry: entry.save, reverse=True)
    return Branch(f"t{term}", term, opened.base if opened else None, tuple(newest_first))


def _walk(view: View) -> list[str]:
    """Return the remembered ids of the chain, newest first.

    A parent that was collected is no longer remembered; its id still tells its term and save, and the
    saves of a term are one line, so the chain goes on at the next older save of that term, or at its base.
    """
    lines: dict[int, list[tuple[int, str]]] = {}
    for entry in view.entries.values():
        lines.setdefault(entry.term, []).append((entry.save, entry.id))
    for line in lines.values():
        line.sort()
    chain: list[str] = []
    place: tuple[int, int] | None = (max(view.opens, default=0), _NO_LIMIT)
    while place is not None:
        term, limit = place
        line = lines.get(term, [])
        index = bisect_right(line, limit, key=lambda saved: saved[0])
        if index:
            chain.append(line[index - 1][1])
            place = _before(line[index - 1], view.entries[chain[-1]].parent, term)
        else:
            opened = view.opens.get(term)
            place = _before((0, ""), opened.base if opened else None, term)
    return chain


def _before(save: tuple[int, str], parent: str | None, term: int) -> tuple[int, int] | None:
    if parent is None:
        return None
    found = parse_snapshot_id(parent)
    # A parent is always older; anything else would be a circle.
    return (found.term, found.save) if (found.term, found.save) < (term, save[0]) else None
