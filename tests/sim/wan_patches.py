"""What stands in place of a protection of replication that is switched off.

Invariant: a patch takes one protection away and leaves all others as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fwstore.log.fold import Fold
from fwstore.wan.copy import CopyTally

Maker = Callable[[Any], Any]


def published_before_the_last_pack() -> list[tuple[str, Maker]]:
    """Return patches by which the last pack of a snapshot is copied after its record."""
    late: list[Callable[[], object]] = []

    def all_but_one(original: Any) -> Any:
        def copy(self: Any, packs: Any) -> Any:
            late[:] = [lambda: original(self, packs[-1:])]
            return original(self, packs[:-1]) if packs else CopyTally()

        return copy

    def then_the_last(original: Any) -> Any:
        def publish(self: Any, prepared: Any) -> Any:
            done = original(self, prepared)
            while late:
                late.pop()()
            return done

        return publish

    return [
        ("fwstore.wan.copy.Copier.copy", all_but_one),
        ("fwstore.wan.pull.Puller._publish", then_the_last),
    ]


def without_intent() -> list[tuple[str, Maker]]:
    """Return patches by which nothing keeps collections from what is being copied."""

    def intend(original: Any) -> Any:
        def unsaid(self: Any, offer: Any, groups: Any) -> bool:
            self.log.refresh()
            self._refuse_gone(self.log.fold, offer.entry)
            return offer.entry.id not in self.log.fold.entries

        return unsaid

    def stands(original: Any) -> Any:
        return lambda self, fold, entry, groups: True

    return [
        ("fwstore.wan.pull.Puller._intend", intend),
        ("fwstore.wan.pull.Puller._stands", stands),
    ]


def intent_as_proof() -> list[tuple[str, Maker]]:
    """Return patches by which packs are believed to be here because somebody meant to bring them."""

    def intend(original: Any) -> Any:
        def look_first(self: Any, offer: Any, groups: Any) -> bool:
            holds = self.log.refresh().holds.values()
            found = [h for h in holds if h.intent and h.snapshot == offer.entry.id]
            self.believes = bool(found)
            return bool(original(self, offer, groups))

        return look_first

    def proven(original: Any) -> Any:
        def believe(self: Any, entry: Any, keys: Any) -> Any:
            return set(keys) if self.believes else original(self, entry, keys)

        return believe

    return [
        ("fwstore.wan.pull.Puller._intend", intend),
        ("fwstore.wan.pull.Puller._proven", proven),
    ]


def same_name_again(original: Any) -> Any:
    return lambda row, keys, condemned: replace(row, lineage=0)


def unverified_object(original: Any) -> Any:
    def read(origin: Any, key: str, digest: bytes, limit_bytes: int) -> Any:
        return origin.stores[0].get(key, limit_bytes=limit_bytes)

    return read


def gap_in_what_was_heard(original: Any) -> Any:
    """Let the position go past a snapshot that is not in the state kept with it."""

    def keep(self: Any, site: Any, fold: Fold) -> None:
        gappy = Fold.restore(fold.lineage, fold.seq, fold.digest, fold.export())
        if gappy.entries:
            del gappy.entries[next(reversed(gappy.entries))]
        original(self, site, gappy)

    return keep


def withdrawn_at_once(original: Any) -> Any:
    def withdraw(self: Any, log: Any, folds: Any) -> None:
        for intent in tuple(log.fold.holds.values()):
            if intent.intent:
                self._puller().withdraw(intent)

    return withdraw
