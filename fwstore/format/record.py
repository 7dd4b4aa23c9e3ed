"""Records: what a slot of a log holds.

Invariant: a parsed record is canonical, below 16 KiB and consistent in itself: the numbers in its body
agree with its snapshot id and term, and its groups are sorted.
"""

from __future__ import annotations

from typing import TypeVar

import blake3
import msgspec

from fwstore.base.config import RECORD_BYTES_MAX
from fwstore.base.errors import Corrupt, FwstoreError, InvalidInput, LimitExceeded, Unsupported
from fwstore.format.canonical import (
    Count,
    Digest,
    Row,
    Slot,
    Stored,
    Text,
    Token,
    Uuid,
    checked_bytes,
    decode_checked,
    encode_checked,
    peek_checked,
)
from fwstore.format.groups import GroupRange, check_ranges
from fwstore.format.keys import parse_snapshot_id

NO_DIGEST = "0" * 64


class ObjectRef(Row, frozen=True):
    """An immutable object by what it holds: BLAKE3 in hexadecimal, and bytes."""

    digest: Digest
    size: Count


class Foreign(Stored, frozen=True):
    """Another lineage whose packs a snapshot uses, and the pin that keeps them there."""

    label: Text
    lineage: Uuid
    snapshot: Text
    pin: Token


class Body(Stored, frozen=True, tag_field="kind"):
    """What a record says."""


class Snapshotted(Body, frozen=True, kw_only=True):
    """A snapshot as a record names it: everything that is needed to find and verify its bytes.

    Attributes:
        snapshot: Its id.
        step: The step of the user.
        save: Number of the save within its term, rising.
        parent: Id of the snapshot before it, if any.
        root: Its root object.
        tables: The parts of its pack table, in order.
        groups: The groups of this lineage whose packs it uses, its own among them.
        foreign: Other lineages whose packs it uses.
        bytes_logical: Bytes of its tensors.
        bytes_written: Bytes of the packs written for it.
        metrics: Finite numbers by name.
        position: Digest of its data position.
    """

    snapshot: Text
    step: Count
    save: Count
    parent: Text | None = None
    root: ObjectRef
    tables: tuple[ObjectRef, ...]
    groups: tuple[GroupRange, ...]
    foreign: tuple[Foreign, ...] = ()
    bytes_logical: Count = 0
    bytes_written: Count = 0
    metrics: dict[Text, float] = {}  # noqa: RUF012 - msgspec copies the default
    position: Digest | None = None


class Held(Row, frozen=True):
    """Packs of a snapshot that were written at another site, which keeps them by a hold in its log.

    Attributes:
        site: Uuid of that site.
        hold: Token of the hold.
        tables: The parts of the list of those packs, which stands at both sites.
    """

    site: Uuid
    hold: Token
    tables: tuple[ObjectRef, ...]


class Commit(Snapshotted, frozen=True, kw_only=True, tag="commit"):
    """A snapshot was saved.

    Attributes:
        holds: Its packs that are not here but at other sites, by site; it is complete here once it was published.
    """

    holds: tuple[Held, ...] = ()


class Publish(Snapshotted, frozen=True, kw_only=True, tag="publish"):
    """A snapshot saved elsewhere is complete here.

    Attributes:
        source: The site it came from.
        base: The snapshot that its term began from, as far as that is known: its open is in another log.
    """

    source: Uuid
    base: Text | msgspec.UnsetType = msgspec.UNSET


class Open(Body, frozen=True, tag="open"):
    """A term begins after its base, by this holder, with its log at this home site."""

    holder: Text
    home: Uuid
    base: Text | None = None


class Fence(Body, frozen=True, tag="fence"):
    """No lower term than that of the record counts any more."""


class Hold(Body, frozen=True, kw_only=True, tag="hold"):
    """Bytes here that a save under way counts on (or, as an intent, that are being copied here).

    Attributes:
        hold: Its token.
        snapshot: Of this lineage.
        save: Number of the save in its term.
        home: The site whose log tells what becomes of the snapshot; for an intent, the site it comes from.
        tables: The parts of the list of the packs that are kept.
        groups: The groups of all packs.
        intent: Whether it only says what is being copied; such a one has no tables.
    """

    hold: Token
    snapshot: Text
    save: Count
    home: Uuid
    tables: tuple[ObjectRef, ...]
    groups: tuple[GroupRange, ...]
    intent: bool = False


class Pin(Body, frozen=True, kw_only=True, tag="pin"):
    """A snapshot's bytes stay until the pin is lifted.

    Attributes:
        pin: Token of the pin.
        snapshot: Of this lineage.
        reason: For people.
        base_of: The term that chose it as its base, or 0 for a pin of a user.
        borrower: Label of the lineage that reuses its packs, if that is the reason.
        borrower_term: The term of the borrower that asked for it.
    """

    pin: Token
    snapshot: Text
    reason: Text
    base_of: Count = 0
    borrower: Text | None = None
    borrower_term: Count = 0


class Unpin(Body, frozen=True, tag="unpin"):
    """A pin or a hold has ended."""

    pin: Token


class Tag(Body, frozen=True, tag="tag"):
    """A name for a snapshot; without a snapshot the name is forgotten."""

    tag: Text
    snapshot: Text | None = None


class Expire(Body, frozen=True, tag="expire"):
    """Snapshots are no longer offered here."""

    snapshots: tuple[Text, ...]
    reason: Text


class Condemn(Body, frozen=True, kw_only=True, tag="condemn"):
    """The keys of a list may be deleted and are never written or referred to again.

    Attributes:
        token: Names the list object.
        listing: The list object by digest.
        count: Keys in it.
        bytes: Their bytes.
        groups: The groups that its keys belong to.
        snapshots: Snapshots that are given up with it, manifests included.
    """

    token: Token
    listing: ObjectRef
    count: Count
    bytes: Count
    groups: tuple[GroupRange, ...]
    snapshots: tuple[Text, ...] = ()


class Swept(Body, frozen=True, tag="swept"):
    """The keys of a condemned list were deleted."""

    token: Token


class Close(Body, frozen=True, tag="close"):
    """The lineage is deleted."""

    reason: Text


AnyBody = (
    Open | Commit | Publish | Hold | Pin | Unpin | Fence | Expire | Condemn | Swept | Tag | Close
)
Snapshot = TypeVar("Snapshot", Commit, Publish)


class Anchors(Stored, frozen=True):
    """Slots of the newest records that counted before this one, -1 for none; the highest fence."""

    open: Slot = -1
    commit: Slot = -1
    publish: Slot = -1
    condemn: Slot = -1
    summary: Slot = -1
    fence: Count = 0


class Record(Stored, frozen=True, kw_only=True):
    """One slot of a log; `time` is for people, nothing compares it."""

    seq: Count
    term: Count
    lineage: Uuid
    write_id: Token
    previous: Digest
    anchors: Anchors
    time: float
    body: AnyBody

    @property
    def kind(self) -> str:
        """The kind of the body."""
        return kind_of(type(self.body))


def kind_of(body: type[Body]) -> str:
    """Return the stored name of a kind of body."""
    tag = body.__struct_config__.tag
    return str(tag)


KINDS = frozenset(kind_of(body) for body in AnyBody.__args__)


def encode_record(record: Record) -> bytes:
    """Return the stored form of a record.

    Raises:
        InvalidInput: Some value has no stored form.
        LimitExceeded: It is longer than a slot may be.
    """
    encoded = encode_checked(record)
    if len(encoded) >= RECORD_BYTES_MAX:
        raise LimitExceeded(
            f"a {record.kind} record of {len(encoded)} bytes does not fit a slot of {RECORD_BYTES_MAX}; "
            "use fewer or shorter metrics, names and reasons, or larger packs"
        )
    try:
        _check(record, f"the {record.kind} record")
    except Corrupt as error:
        raise InvalidInput(str(error)) from error
    return encoded


def parse_record(encoded: bytes, what: str) -> Record:
    """Return the record that a slot holds.

    Args:
        encoded: The bytes of the slot.
        what: Its key, for errors.

    Raises:
        Corrupt: The bytes are not a record.
        Unsupported: The record is of a kind that this version does not know.
    """
    if len(encoded) >= RECORD_BYTES_MAX:
        raise Corrupt(f"{what} has {len(encoded)} bytes; a record has less than {RECORD_BYTES_MAX}")
    try:
        record = decode_checked(encoded, Record, what)
    except Corrupt as error:
        raise _later_kind(encoded, what) or error from error
    _check(record, what)
    return record


def record_digest(record: Record) -> str:
    """Return the digest by which the next record names this one, which was parsed."""
    return blake3.blake3(checked_bytes(record)).hexdigest()


def _later_kind(encoded: bytes, what: str) -> FwstoreError | None:
    body = peek_checked(encoded).get("body")
    kind = body.get("kind") if isinstance(body, dict) else None
    if isinstance(kind, str) and kind not in KINDS:
        return Unsupported(f"{what} is a record of kind {kind[:40]!r}: use a newer fwstore")
    return None


def _check(record: Record, what: str) -> None:
    body = record.body
    try:
        if isinstance(body, Snapshotted | Hold):
            _check_snapshot(body, record.term)
        if isinstance(body, Snapshotted | Hold | Condemn):
            check_ranges(body.groups)
        if isinstance(body, Commit):
            _check_held(body.holds)
        for snapshot in _named_snapshots(body):
            parse_snapshot_id(snapshot)
    except Corrupt as error:
        raise Corrupt(f"{what}: {error}") from error


def _check_snapshot(body: Snapshotted | Hold, term: int) -> None:
    found = parse_snapshot_id(body.snapshot)
    step = body.step if isinstance(body, Snapshotted) else found.step
    if (found.step, found.term, found.save) != (step, term, body.save):
        raise Corrupt(f"term, step or save disagree with the snapshot id {body.snapshot}")


def _check_held(holds: tuple[Held, ...]) -> None:
    sites = [held.site for held in holds]
    if sites != sorted(set(sites)) or not all(held.tables for held in holds):
        raise Corrupt("its holds are not one for each site, in order, each with a list of packs")


def _named_snapshots(body: AnyBody) -> tuple[str, ...]:
    match body:
        case Expire() | Condemn():
            return body.snapshots
        case Publish(parent=parent, base=base):
            return tuple(name for name in (parent, base) if isinstance(name, str))
        case Snapshotted():
            return (body.parent,) if body.parent else ()
        case Open():
            return (body.base,) if body.base else ()
        case Pin():
            return (body.snapshot,)
        case Tag():
            return (body.snapshot,) if body.snapshot else ()
        case _:
            return ()
