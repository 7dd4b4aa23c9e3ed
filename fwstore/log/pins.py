"""Pins and tags: what a user says must stay.

Invariant: a pin that was acknowledged keeps the bytes of its snapshot until it is lifted, whatever
retention says; a tag keeps retention from expiring it.
"""

from __future__ import annotations

import re

from fwstore.base.errors import Expired, InvalidInput, NotFound
from fwstore.base.ids import write_id
from fwstore.format.canonical import check_text
from fwstore.format.record import AnyBody, Pin, Tag, Unpin
from fwstore.format.summary import PinEntry
from fwstore.log.fold import Fold
from fwstore.log.log import Log

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def pin(
    log: Log, snapshot: str, reason: str, *, borrower: str | None = None, borrower_term: int = 0
) -> str:
    """Pin a snapshot that is on offer; return the token that lifts the pin.

    Args:
        log: Where.
        snapshot: Its id.
        reason: For people.
        borrower: Label of another lineage that will refer to its packs.
        borrower_term: The term in which it will.

    Raises:
        InvalidInput: The reason is no text, empty or too long.
        NotFound: There is no such snapshot; `Expired` when there was.
    """
    token = write_id(log.runtime.ids)
    check_text(reason, "the reason of a pin")
    if not reason.strip():
        raise InvalidInput("say why it must stay: the reason of a pin is what others will see")

    def make(fold: Fold) -> AnyBody:
        # What is lent already may be lent on, though it is no longer on offer itself.
        if borrower is None or all(p.snapshot != snapshot for p in fold.pins.values()):
            _require(log, fold, snapshot)
        return Pin(
            pin=token,
            snapshot=snapshot,
            reason=reason,
            borrower=borrower,
            borrower_term=borrower_term,
        )

    log.append(make)
    return token


def unpin(log: Log, token: str) -> None:
    """Lift a pin.

    Raises:
        NotFound: There is no such pin.
    """
    log.refresh()

    def make(fold: Fold) -> AnyBody:
        if token not in fold.pins:
            raise NotFound(
                f"{log.keys.label} has no pin {token[:100]}; it may have been lifted before"
            )
        return Unpin(token)

    log.append(make)


def lift(log: Log, token: str) -> None:
    """Lift a pin unless that was done."""
    log.append(lambda fold: Unpin(token) if token in fold.pins else None)


def pins_of_users(fold: Fold) -> list[PinEntry]:
    """Return the pins that people have set: those of bases and of borrowers are lifted by themselves."""
    return [pin for pin in tuple(fold.pins.values()) if not pin.base_of and pin.borrower is None]


def tag(log: Log, name: str, snapshot: str | None) -> None:
    """Give a snapshot a name, in place of what had it; None forgets the name.

    Raises:
        InvalidInput: The name is not fit for a tag.
        NotFound: There is no such snapshot; `Expired` when there was.
    """
    if not _TAG.fullmatch(name):
        raise InvalidInput(
            f"{name[:120]!r} cannot be a tag: at most 100 letters, digits, '.', '_' and '-'"
        )

    def make(fold: Fold) -> AnyBody | None:
        if snapshot is not None:
            _require(log, fold, snapshot)
        return None if fold.tags.get(name) == snapshot else Tag(name, snapshot)

    log.append(make)


def _require(log: Log, fold: Fold, snapshot: str) -> None:
    if snapshot in fold.entries and snapshot not in fold.expired:
        return
    known = snapshot in fold.expired or snapshot in fold.gone
    raise (Expired if known else NotFound)(f"{snapshot} of {log.keys.label} is not on offer")
