"""What the snapshots of a run mean: the canonical chain, and the tails beside it.

Invariant: the canonical chain is found from opens and parents, never from step numbers or time; every
snapshot on offer is on the chain or on exactly one branch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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
        bases: What terms began from whose opens are in logs that were not read.
    """

    opens: Mapping[int, OpenEntry]
    entries: Mapping[str, SnapshotEntry]
    live: frozenset[str]
    bases: Mapping[int, str] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class TermLine:
    """An opened term and what it saved that is on offer, oldest first.

    Attributes:
        opened: Its open.
        after: The newest snapshot on offer at its base or before it, or None.
        kept: Its snapshots on the canonical chain.
        left: Those beside it.
    """

    opened: OpenEntry
    after: SnapshotEntry | None
    kept: tuple[SnapshotEntry, ...]
    left: tuple[SnapshotEntry, ...]


def view_of(folds: Mapping[str, Fold], receipts: Iterable[Receipt] = ()) -> View:
    """Return what logs, by site, and receipts say together.

    A receipt stands for an open only where the log of its home was not read: a home that was read and has
    none never opened.
    """
    opens: dict[int, OpenEntry] = {}
    entries: dict[str, SnapshotEntry] = {}
    live: set[str] = set()
    bases: dict[int, str] = {}
    for fold in folds.values():
        bases |= dict(fold.bases)
        opens |= dict(fold.opens)
        for entry in tuple(fold.entries.values()):
            known = entries.get(entry.id)
            # A site that has all of a snapshot tells of it, rather than one where it is not complete.
            if known is None or (known.holds and not entry.holds):
                entries[entry.id] = entry
        live.update(entry.id for entry in fold.live())
    for receipt in receipts:
        if receipt.home not in folds:
            told = OpenEntry(receipt.term, "", receipt.home, receipt.base, -1, 0.0)
            opens.setdefault(receipt.term, told)
    return View(opens, entries, frozenset(live), bases)


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


def term_lines(view: View) -> list[TermLine]:
    """Return every opened term, oldest first."""
    chain = set(_walk(view))
    saved: dict[int, list[SnapshotEntry]] = {}
    for entry in sorted(view.entries.values(), key=lambda entry: entry.save):
        if entry.id in view.live:
            saved.setdefault(entry.term, []).append(entry)
    return [
        TermLine(
            opened=view.opens[term],
            after=_newest_on_offer(view, view.opens[term]),
            kept=tuple(entry for entry in saved.get(term, ()) if entry.id in chain),
            left=tuple(entry for entry in saved.get(term, ()) if entry.id not in chain),
        )
        for term in sorted(view.opens)
    ]


def with_term_after(view: View, base: str) -> View:
    """Return what a view would be after another term began from a snapshot."""
    opened = OpenEntry(max(view.opens, default=0) + 1, "", "", base, -1, 0.0)
    return View({**view.opens, opened.term: opened}, view.entries, view.live, view.bases)


def history(fold: Fold) -> list[SnapshotEntry]:
    """Return the canonical chain of one log, newest first."""
    return canonical_chain(view_of({"": fold}))


def _branch(view: View, term: int, entries: list[SnapshotEntry]) -> Branch:
    opened = view.opens.get(term)
    newest_first = sorted(entries, key=lambda entry: entry.save, reverse=True)
    return Branch(f"t{term}", term, opened.base if opened else None, tuple(newest_first))


def _newest_on_offer(view: View, opened: OpenEntry) -> SnapshotEntry | None:
    base = _before((0, ""), opened.base, opened.term)
    found = (view.entries[name] for name in _walk_from(view, base))
    return next((entry for entry in found if entry.id in view.live), None)


def _walk(view: View) -> list[str]:
    """Return the remembered ids of the canonical chain, newest first."""
    # What was published here of a term shows that it was opened, though its open is in another site's log.
    terms = {entry.term for entry in view.entries.values() if entry.source is not None}
    return _walk_from(view, (max([*view.opens, *terms], default=0), _NO_LIMIT))


def _walk_from(view: View, place: tuple[int, int] | None) -> list[str]:
    """Return the remembered ids of the chain that ends at a term and save, newest first.

    A parent that was collected is no longer remembered; its id still tells its term and save, and the
    saves of a term are one line, so the chain goes on at the next older save of that term, or at its base.
    """
    lines: dict[int, list[tuple[int, str]]] = {}
    for entry in view.entries.values():
        lines.setdefault(entry.term, []).append((entry.save, entry.id))
    for line in lines.values():
        line.sort()
    chain: list[str] = []
    while place is not None:
        term, limit = place
        line = lines.get(term, [])
        index = bisect_right(line, limit, key=lambda saved: saved[0])
        if index:
            chain.append(line[index - 1][1])
            place = _before(line[index - 1], view.entries[chain[-1]].parent, term)
        else:
            opened = view.opens.get(term)
            place = _before((0, ""), opened.base if opened else view.bases.get(term), term)
    return chain


def _before(save: tuple[int, str], parent: str | None, term: int) -> tuple[int, int] | None:
    if parent is None:
        return None
    found = parse_snapshot_id(parent)
    # A parent is always older; anything else would be a circle.
    return (found.term, found.save) if (found.term, found.save) < (term, save[0]) else None
