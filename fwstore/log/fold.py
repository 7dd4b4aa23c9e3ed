"""The state of one log, as a pure function of its slots.

Invariant: two folds that applied the same records are equal, and whether a record counts is decided by
the records before it alone. `refusal` is the one place that decides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from fwstore.base.errors import Corrupt
from fwstore.format.groups import GROUPS_MAX, GroupRange, group_ranges, groups_meet
from fwstore.format.keys import parse_snapshot_id
from fwstore.format.record import (
    NO_DIGEST,
    Anchors,
    AnyBody,
    Close,
    Commit,
    Condemn,
    Expire,
    Fence,
    Hold,
    ObjectRef,
    Open,
    Pin,
    Publish,
    Record,
    Swept,
    Tag,
    Unpin,
    record_digest,
)
from fwstore.format.summary import (
    CondemnEntry,
    FoldState,
    HoldEntry,
    OpenEntry,
    PinEntry,
    SnapshotEntry,
)

GONE_MAX = 1024


class Refusal(StrEnum):
    """Why a record does not count."""

    FENCED = "fenced"
    CLOSED = "closed"
    DUPLICATE = "duplicate"
    CONDEMNED = "condemned"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Uses:
    """What a record refers to: the manifest of a snapshot and the packs in its tables.

    Attributes:
        snapshot: Its id.
        root: Its root, which names the lineages of its packs; None where all packs are of this one.
        tables: The parts of its pack table.
        groups: The groups that its packs and its manifest belong to.
        hold: Token of the hold whose list of packs the tables are; None for those of the snapshot.
    """

    snapshot: str
    root: ObjectRef | None
    tables: Sequence[ObjectRef]
    groups: Sequence[GroupRange]
    hold: str | None = None


Resolver = Callable[[Uses, CondemnEntry], bool]


class Fold:
    """The state of a log after some of its slots.

    Args:
        lineage: Uuid that every record must carry.
    """

    def __init__(self, lineage: str) -> None:
        self.lineage = lineage
        self.seq = -1
        self.digest = NO_DIGEST
        self.fence = 0
        self.closed: str | None = None
        self.anchors = Anchors()
        self.opens: dict[int, OpenEntry] = {}
        self.bases: dict[int, str] = {}
        self.entries: dict[str, SnapshotEntry] = {}
        self.expired: dict[str, None] = {}
        self.gone: dict[str, None] = {}
        self.saves: dict[int, int] = {}
        self.pins: dict[str, PinEntry] = {}
        self.holds: dict[str, HoldEntry] = {}
        self.tags: dict[str, str] = {}
        self.condemned: dict[str, CondemnEntry] = {}

    @property
    def newest_term(self) -> int:
        """The highest term that this log knows of."""
        return max(self.fence, *self.opens, *self.saves, 0, 0)

    def is_complete(self, snapshot: str) -> bool:
        """Return whether all of a snapshot is at the site of this log, on offer or not."""
        entry = self.entries.get(snapshot)
        return entry is not None and not entry.holds

    def live(self) -> list[SnapshotEntry]:
        """Return the snapshots on offer, in the order of their records."""
        if self.closed is not None:
            return []
        return [entry for name, entry in tuple(self.entries.items()) if name not in self.expired]

    def roots(self) -> dict[str, str]:
        """Return the snapshots whose bytes must stay, each with why.

        Holds are roots too, but name no snapshot of this log: see `holds`.
        """
        roots = {entry.id: "on offer" for entry in self.live()}
        if self.opens and self.closed is None:
            base = self.opens[max(self.opens)].base
            if base in self.entries:
                roots.setdefault(base, "base of the open term")
        for pin in tuple(self.pins.values()):
            if pin.snapshot in self.entries:
                roots.setdefault(pin.snapshot, f"pinned: {pin.reason}")
        return roots

    def refusal(
        self, record: Record, resolver: Resolver, *, trust_anchor: bool = True
    ) -> Refusal | None:
        """Return why a record does not count in the next slot, or None when it does.

        Args:
            record: The record of slot `seq + 1`.
            resolver: Says whether keys are shared, where groups are.
            trust_anchor: A record whose anchor is the newest condemn was checked against all of them by its
                writer; False is for that writer.
        """
        body = record.body
        if _is_writing(body) and self.fence > record.term:
            return Refusal.FENCED
        if self.closed is not None and self._needs_open_log(body):
            return Refusal.CLOSED
        if self._is_duplicate(record):
            return Refusal.DUPLICATE
        if self._is_unknown(body):
            return Refusal.UNKNOWN
        if trust_anchor and record.anchors.condemn == self.anchors.condemn:
            return None
        uses = self._uses(body)
        if uses is not None and self._meets_condemned(uses, resolver):
            return Refusal.CONDEMNED
        return None

    def apply(self, record: Record, resolver: Resolver) -> bool:
        """Take in the record of the next slot; return whether it counts.

        Raises:
            Corrupt: The record does not follow the ones before it.
        """
        self._check_follows(record)
        counts = self.refusal(record, resolver) is None
        self.seq = record.seq
        self.digest = record_digest(record)
        if counts:
            self._take(record)
            self.anchors = self._next_anchors(record)
        elif record.anchors.summary > self.anchors.summary:
            self.anchors = msgspec.structs.replace(self.anchors, summary=record.anchors.summary)
        return counts

    def export(self) -> FoldState:
        """Return the state in stored form."""
        return FoldState(
            fence=self.fence,
            closed=self.closed,
            anchors=self.anchors,
            opens=tuple(self.opens.values()),
            entries=tuple(self.entries.values()),
            expired=tuple(self.expired),
            gone=tuple(self.gone),
            saves=tuple(self.saves.items()),
            pins=tuple(self.pins.values()),
            holds=tuple(self.holds.values()),
            tags=tuple(self.tags.items()),
            condemned=tuple(self.condemned.values()),
            bases=tuple(self.bases.items()),
        )

    def imagine(self, *, without_pins: Iterable[str], expired: Iterable[str]) -> Fold:
        """Return a copy in which pins were lifted and snapshots expired, for plans without writing."""
        copy = Fold.restore(self.lineage, self.seq, self.digest, self.export())
        for pin in without_pins:
            copy.pins.pop(pin, None)
        copy.expired |= dict.fromkeys(expired)
        return copy

    @staticmethod
    def restore(lineage: str, seq: int, digest: str, state: FoldState) -> Fold:
        """Return the fold that `export` described."""
        fold = Fold(lineage)
        fold.seq, fold.digest = seq, digest
        fold.fence, fold.closed, fold.anchors = state.fence, state.closed, state.anchors
        fold.opens = {entry.term: entry for entry in state.opens}
        fold.entries = {entry.id: entry for entry in state.entries}
        fold.expired = dict.fromkeys(state.expired)
        fold.gone = dict.fromkeys(state.gone)
        fold.saves = dict(state.saves)
        fold.pins = {entry.pin: entry for entry in state.pins}
        fold.holds = {entry.hold: entry for entry in state.holds}
        fold.tags = dict(state.tags)
        fold.condemned = {entry.token: entry for entry in state.condemned}
        fold.bases = dict(state.bases)
        return fold

    def _check_follows(self, record: Record) -> None:
        if record.lineage != self.lineage:
            raise Corrupt(
                f"slot {record.seq} is of lineage {record.lineage}; this log is of {self.lineage}"
            )
        if record.seq != self.seq + 1 or record.previous != self.digest:
            raise Corrupt(f"record {record.seq} does not follow record {self.seq} of its log")

    def _needs_open_log(self, body: AnyBody) -> bool:
        if isinstance(body, Pin):
            # Bytes that are lent already may be lent on, though their own run was deleted.
            return all(pin.snapshot != body.snapshot for pin in self.pins.values())
        return isinstance(body, Open | Commit | Publish | Hold | Tag)

    def _is_duplicate(self, record: Record) -> bool:
        body = record.body
        if isinstance(body, Commit):
            # One writer numbers the saves of a term upwards and appends one after the other, so a number
            # that is not higher is a save that was recorded before.
            return body.save <= self.saves.get(record.term, 0)
        if isinstance(body, Publish):
            entry = self.entries.get(body.snapshot)
            return body.snapshot in self.gone or (entry is not None and entry.source is not None)
        return isinstance(body, Open) and record.term in self.opens

    def _is_unknown(self, body: AnyBody) -> bool:
        if isinstance(body, Pin):
            return body.snapshot not in self.entries
        if isinstance(body, Tag) and body.snapshot is not None:
            return body.snapshot not in self.entries or body.snapshot in self.expired
        return False

    def _uses(self, body: AnyBody) -> Uses | None:
        match body:
            case Commit() | Publish() | Hold():
                return uses_of(body)
            case Pin():
                return self._uses_of(body.snapshot)
            case Open() if body.base is not None:
                return self._uses_of(body.base)
            case _:
                return None

    def _uses_of(self, snapshot: str) -> Uses:
        entry = self.entries.get(snapshot)
        return uses_of(entry) if entry else _with_manifest(snapshot, None, (), ())

    def _meets_condemned(self, uses: Uses, resolver: Resolver) -> bool:
        return any(
            groups_meet(uses.groups, entry.groups) and resolver(uses, entry)
            for entry in self.condemned.values()
        )

    def _take(self, record: Record) -> None:
        body = record.body
        match body:
            case Commit() | Publish():
                self._take_snapshot(record, body)
            case Fence():
                self.fence = max(self.fence, record.term)
            case Open():
                self.opens[record.term] = OpenEntry(
                    record.term, body.holder, body.home, body.base, record.seq, record.time
                )
            case Expire():
                self._expire(body)
            case Condemn():
                self._condemn(record, body)
            case Swept():
                self._sweep(body)
            case Close():
                self.closed = self.closed or body.reason or "deleted"
            case Hold() | Pin() | Unpin() | Tag():
                self._take_reference(record, body)

    def _take_snapshot(self, record: Record, body: Commit | Publish) -> None:
        self.entries[body.snapshot] = entry_of(record, body)
        self.saves[record.term] = max(self.saves.get(record.term, 0), body.save)
        if isinstance(body, Publish) and isinstance(body.base, str):
            self.bases[record.term] = body.base
        for name, hold in tuple(self.holds.items()):
            if hold.intent and hold.snapshot == body.snapshot:
                del self.holds[name]

    def _take_reference(self, record: Record, body: Hold | Pin | Unpin | Tag) -> None:
        match body:
            case Pin():
                self.pins[body.pin] = PinEntry(
                    body.pin,
                    body.snapshot,
                    body.reason,
                    body.base_of,
                    body.borrower,
                    body.borrower_term,
                    record.seq,
                    record.time,
                )
            case Hold():
                # What is copied here was recorded elsewhere, and what a save counts on here is written: no writer is on
                # its way with packs of that save.
                self.saves[record.term] = max(self.saves.get(record.term, 0), body.save)
                self.holds[body.hold] = HoldEntry(
                    body.hold,
                    body.snapshot,
                    record.term,
                    body.save,
                    body.home,
                    body.tables,
                    body.groups,
                    body.intent,
                    record.seq,
                )
            case Unpin():
                self.pins.pop(body.pin, None)
                self.holds.pop(body.pin, None)
            case Tag():
                self.tags.pop(body.tag, None)
                if body.snapshot is not None:
                    self.tags[body.tag] = body.snapshot

    def _expire(self, body: Expire) -> None:
        for snapshot in body.snapshots:
            if snapshot in self.entries:
                self.expired[snapshot] = None
        self._forget_tags()

    def _condemn(self, record: Record, body: Condemn) -> None:
        self.condemned[body.token] = CondemnEntry(
            body.token,
            body.listing,
            body.count,
            body.bytes,
            body.groups,
            record.seq,
            record.time,
            swept=False,
        )
        for snapshot in body.snapshots:
            if self.entries.pop(snapshot, None) is not None:
                self.expired.pop(snapshot, None)
                self.gone[snapshot] = None
        while len(self.gone) > GONE_MAX:
            del self.gone[next(iter(self.gone))]
        self._forget_tags()

    def _forget_tags(self) -> None:
        """Drop the tags of snapshots that are no longer on offer."""
        offered = self.entries.keys() - self.expired.keys()
        self.tags = {tag: name for tag, name in self.tags.items() if name in offered}

    def _sweep(self, body: Swept) -> None:
        entry = self.condemned.get(body.token)
        if entry is not None:
            self.condemned[body.token] = msgspec.structs.replace(entry, swept=True)

    def _next_anchors(self, record: Record) -> Anchors:
        body = record.body
        own = {Open: "open", Commit: "commit", Publish: "publish", Condemn: "condemn"}
        changes: dict[str, int] = {"fence": self.fence}
        if type(body) in own:
            changes[own[type(body)]] = record.seq
        changes["summary"] = max(self.anchors.summary, record.anchors.summary)
        return msgspec.structs.replace(self.anchors, **changes)


def _is_writing(body: AnyBody) -> bool:
    """Return whether a record is of the writer of its term: an intent is of whoever copies what was written."""
    return isinstance(body, Open | Commit) or (isinstance(body, Hold) and not body.intent)


def entry_of(record: Record, body: Commit | Publish) -> SnapshotEntry:
    """Return the snapshot that a record tells of."""
    return SnapshotEntry(
        id=body.snapshot,
        step=body.step,
        term=record.term,
        save=body.save,
        parent=body.parent,
        root=body.root,
        tables=body.tables,
        groups=body.groups,
        foreign=body.foreign,
        bytes_logical=body.bytes_logical,
        bytes_written=body.bytes_written,
        metrics=body.metrics,
        position=body.position,
        holds=body.holds if isinstance(body, Commit) else (),
        source=body.source if isinstance(body, Publish) else None,
        seq=record.seq,
        wall_time=record.time,
    )


def uses_of(reference: SnapshotEntry | HoldEntry | Commit | Publish | Hold) -> Uses:
    """Return what a snapshot or a hold refers to."""
    if isinstance(reference, Hold | HoldEntry):
        hold = None if reference.intent else reference.hold
        return _with_manifest(reference.snapshot, None, reference.tables, reference.groups, hold)
    name = reference.id if isinstance(reference, SnapshotEntry) else reference.snapshot
    root = reference.root if reference.foreign else None
    return _with_manifest(name, root, reference.tables, reference.groups)


def uses_elsewhere(entry: SnapshotEntry) -> list[Uses]:
    """Return what a snapshot that is not complete here refers to at other sites."""
    return [
        _with_manifest(entry.id, None, held.tables, entry.groups, held.hold) for held in entry.holds
    ]


def _with_manifest(
    snapshot: str,
    root: ObjectRef | None,
    tables: Sequence[ObjectRef],
    groups: Sequence[GroupRange],
    hold: str | None = None,
) -> Uses:
    found = parse_snapshot_id(snapshot)
    own = (found.term, found.save)
    manifest = GroupRange(own, own)
    return Uses(snapshot, root, tables, group_ranges([*groups, manifest], GROUPS_MAX + 1), hold)
