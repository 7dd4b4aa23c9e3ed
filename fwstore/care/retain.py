"""Retention of one run: what is protected, what expires, which base pins have served.

Invariant: only what `plan_expire` gave up, or an old tail, is expired; a pin, a tag, the newest snapshot and
the base of the newest open are protected again at every lost slot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from fwstore.format.record import AnyBody, Expire, Unpin
from fwstore.format.summary import PinEntry, SnapshotEntry
from fwstore.log.fold import Fold
from fwstore.log.history import branches, history, view_of
from fwstore.log.log import Log
from fwstore.plan.retention import Keep, RetentionPlan, Verdict, plan_expire

_IDS_PER_RECORD = 128
_PLANS_MAX = 4


def protected(fold: Fold) -> dict[str, str]:
    """Return the snapshots that never expire, with why."""
    reasons = {pin.snapshot: f"pinned: {pin.reason}" for pin in tuple(fold.pins.values())}
    reasons |= {snapshot: f"tagged {tag!r}" for tag, snapshot in tuple(fold.tags.items())}
    if fold.opens:
        base = fold.opens[max(fold.opens)].base
        if base is not None:
            reasons.setdefault(base, "base of the open term")
    return _partial(fold) | reasons


def _partial(fold: Fold) -> dict[str, str]:
    """Return what stays while packs of the newest snapshots are still at other sites, with why."""
    chain = history(fold)
    partial = [entry for entry in chain if entry.holds]
    whole = [entry for entry in chain if not entry.holds]
    if not partial:
        return {}
    reasons = {entry.id: "newest that is complete here" for entry in whole[:1]}
    return reasons | {partial[0].id: "not complete here yet"}


def plan_retention(fold: Fold, keep: Keep | None, tails_before: float) -> RetentionPlan:
    """Return what stays and what goes, on the chain and beside it.

    Args:
        fold: The state of the log.
        keep: The rules for the chain; None keeps all of it.
        tails_before: Tails saved before this wall time expire.
    """
    safe = protected(fold)
    chain = history(fold)
    if keep is None:
        plan = RetentionPlan(tuple(Verdict(e.id, e.step, "no retention rule") for e in chain), ())
    else:
        plan = plan_expire(chain, keep, safe)
    kept, expired = list(plan.kept), list(plan.expired)
    for tail in _tails(fold):
        if tail.id in safe:
            kept.append(Verdict(tail.id, tail.step, safe[tail.id]))
        elif tail.wall_time >= tails_before or not _superseded(fold, tail):
            kept.append(Verdict(tail.id, tail.step, "tail, still young"))
        else:
            expired.append(Verdict(tail.id, tail.step, f"tail of term {tail.term}"))
    return RetentionPlan(tuple(kept), tuple(expired))


def append_expire(log: Log, plan: Callable[[Fold], RetentionPlan], reason: str) -> RetentionPlan:
    """Record that snapshots are no longer offered, but for those that were protected meanwhile; return what came of it.

    A job that went back to an older base meanwhile has made other snapshots the newest: then the plan is made again.
    """
    expired: list[Verdict] = []
    left = _PLANS_MAX
    while True:
        left -= 1
        found, opened = plan(log.fold), _newest_open(log.fold)
        for start in range(0, len(found.expired), _IDS_PER_RECORD):
            ids = [verdict.id for verdict in found.expired[start : start + _IDS_PER_RECORD]]
            _append_some(log, ids, partial(_let_go, plan, opened), reason)
        offered = {entry.id for entry in log.fold.live()}
        expired += [verdict for verdict in found.expired if verdict.id not in offered]
        if _newest_open(log.fold) == opened or not left:
            break
    safe = protected(log.fold)
    spared = [
        replace(verdict, reason=safe.get(verdict.id, "wanted again meanwhile"))
        for verdict in found.expired
        if verdict.id in offered
    ]
    return RetentionPlan((*found.kept, *spared), tuple(expired))


def _append_some(
    log: Log, ids: Sequence[str], let_go: Callable[[Fold], Collection[str] | None], reason: str
) -> None:
    """Record that some snapshots are no longer offered, but for those that are protected or are not to go after all."""

    def make(fold: Fold) -> AnyBody | None:
        safe, still = protected(fold), let_go(fold)
        gone = tuple(
            name
            for name in ids
            if name in fold.entries
            and name not in fold.expired
            and name not in safe
            and (still is None or name in still)
        )
        return Expire(gone, reason) if gone else None

    log.append(make)


def _let_go(
    plan: Callable[[Fold], RetentionPlan], opened: int, fold: Fold
) -> Collection[str] | None:
    """Return what a plan that is made anew lets go, where a job began meanwhile; None where none did."""
    if _newest_open(fold) == opened:
        return None
    return {verdict.id for verdict in plan(fold).expired}


def _newest_open(fold: Fold) -> int:
    return max(fold.opens, default=0)


def finished_pins(fold: Fold) -> list[PinEntry]:
    """Return the base pins of terms that have committed, that a later open left behind, or that cannot open."""
    newest = max(fold.opens, default=0)
    closed = fold.closed is not None
    return [
        pin
        for pin in tuple(fold.pins.values())
        if pin.base_of and (closed or newest > pin.base_of or fold.saves.get(pin.base_of, 0) > 0)
    ]


def abandoned_pins(fold: Fold, open_log: Callable[[str], Log | None]) -> list[PinEntry]:
    """Return the pins of borrowers that can neither name them in a new record nor do so in a standing one.

    They are what a job leaves that dies between pinning what it will refer to and its first save.
    """
    lent: dict[str, list[PinEntry]] = {}
    for pin in tuple(fold.pins.values()):
        if pin.borrower is not None:
            lent.setdefault(pin.borrower, []).append(pin)
    found = []
    for label, pins in lent.items():
        log = open_log(label)
        if log is not None:
            found += _not_named(pins, log.refresh(), ())
    return found


def returned_pins(donor: Fold, borrower: Fold, ending: Sequence[SnapshotEntry]) -> list[PinEntry]:
    """Return the pins in a donor's log that a borrower needs no more once some snapshots have ended."""
    tokens = {foreign.pin for entry in ending for foreign in entry.foreign}
    pins = [pin for token, pin in tuple(donor.pins.items()) if token in tokens]
    return _not_named(pins, borrower, ending)


def _not_named(
    pins: Sequence[PinEntry], borrower: Fold, ending: Sequence[SnapshotEntry]
) -> list[PinEntry]:
    """Return the pins that no record of the borrower names, nor will: later terms know them by their base."""
    gone = {entry.id for entry in ending}
    entries = [entry for name, entry in tuple(borrower.entries.items()) if name not in gone]
    named = {foreign.pin for entry in entries for foreign in entry.foreign}
    return [
        pin
        for pin in pins
        if pin.pin not in named
        and (borrower.closed is not None or pin.borrower_term < borrower.fence)
    ]


def lift_pins(log: Log, pins: Sequence[PinEntry]) -> None:
    """Lift pins that still stand."""
    for pin in pins:

        def make(fold: Fold, token: str = pin.pin) -> AnyBody | None:
            return Unpin(token) if token in fold.pins else None

        log.append(make)


def _tails(fold: Fold) -> list[SnapshotEntry]:
    found = branches(view_of({"": fold}))
    return [entry for branch in found for entry in branch.snapshots]


def _superseded(fold: Fold, tail: SnapshotEntry) -> bool:
    """Whether this log knows what a later term continued from, so that the tail is surely one."""
    known = {None, *fold.entries, *fold.gone}
    bases = {**fold.bases, **{term: opened.base for term, opened in tuple(fold.opens.items())}}
    return any(term > tail.term and base in known for term, base in bases.items())
