"""Summaries and the hint: derived objects that spare a reader the whole log.

Invariant: a summary names the digest of the record it follows, so one that does not belong to the log is
seen; it holds everything that the records after it are judged by.
"""

from __future__ import annotations

from fwstore.format.canonical import Count, Digest, Row, Slot, Stored, Text, Token, Uuid
from fwstore.format.groups import GroupRange
from fwstore.format.record import Anchors, Foreign, Held, ObjectRef
from fwstore.format.sealed import seal, unseal

_RAW_BYTES_MAX = 256 << 20
SUMMARY_BYTES_MAX = _RAW_BYTES_MAX
HINT_BYTES_MAX = 4096


class SnapshotEntry(Row, frozen=True):
    """A snapshot as the log knows it; one with `holds` is not complete at the site of this log."""

    id: Text
    step: Count
    term: Count
    save: Count
    parent: Text | None
    root: ObjectRef
    tables: tuple[ObjectRef, ...]
    groups: tuple[GroupRange, ...]
    foreign: tuple[Foreign, ...]
    bytes_logical: Count
    bytes_written: Count
    metrics: dict[Text, float]
    position: Digest | None
    holds: tuple[Held, ...]
    source: Uuid | None
    seq: Count
    wall_time: float


class OpenEntry(Row, frozen=True):
    """An opened term."""

    term: Count
    holder: Text
    home: Uuid
    base: Text | None
    seq: Slot
    wall_time: float


class PinEntry(Row, frozen=True):
    """A pin that stands."""

    pin: Token
    snapshot: Text
    reason: Text
    base_of: Count
    borrower: Text | None
    borrower_term: Count
    seq: Count
    wall_time: float


class HoldEntry(Row, frozen=True):
    """A hold or an intent that stands."""

    hold: Token
    snapshot: Text
    term: Count
    save: Count
    home: Uuid
    tables: tuple[ObjectRef, ...]
    groups: tuple[GroupRange, ...]
    intent: bool
    seq: Count


class CondemnEntry(Row, frozen=True):
    """Condemned keys: kept for ever, because condemned is for ever."""

    token: Token
    listing: ObjectRef
    count: Count
    bytes: Count
    groups: tuple[GroupRange, ...]
    seq: Count
    wall_time: float
    swept: bool


class FoldState(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """The state of a log after a slot.

    `bases` are those of terms that were opened in other logs, by term.
    """

    fence: Count
    closed: Text | None
    anchors: Anchors
    opens: tuple[OpenEntry, ...]
    entries: tuple[SnapshotEntry, ...]
    expired: tuple[Text, ...]
    gone: tuple[Text, ...]
    saves: tuple[tuple[Count, Count], ...]
    pins: tuple[PinEntry, ...]
    holds: tuple[HoldEntry, ...]
    tags: tuple[tuple[Text, Text], ...]
    condemned: tuple[CondemnEntry, ...]
    bases: tuple[tuple[Count, Text], ...] = ()


class Summary(Stored, frozen=True):
    """The state of a log after slot `seq`, whose record has this digest."""

    lineage: Uuid
    seq: Count
    record: Digest
    state: FoldState


class Hint(Stored, frozen=True):
    """A slot that exists, and the newest summary known when it was written."""

    lineage: Uuid
    seq: Count
    summary: Slot


def encode_summary(summary: Summary) -> bytes:
    """Return the stored form of a summary.

    Raises:
        LimitExceeded: The state is larger than a summary may be.
    """
    return seal(summary, "summ", _RAW_BYTES_MAX)


def parse_summary(stored: bytes) -> Summary:
    """Return a summary.

    Raises:
        Corrupt: The bytes are not a summary.
    """
    return unseal(stored, Summary, "summ", _RAW_BYTES_MAX)


def encode_hint(hint: Hint) -> bytes:
    """Return the stored form of a hint."""
    return seal(hint, "hint", HINT_BYTES_MAX)


def parse_hint(stored: bytes) -> Hint:
    """Return a hint.

    Raises:
        Corrupt: The bytes are not a hint.
    """
    return unseal(stored, Hint, "hint", HINT_BYTES_MAX)
