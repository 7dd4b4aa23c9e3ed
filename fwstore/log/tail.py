"""Finding the end of a log, and reading its slots in few round trips.

Invariant: hint and LIST are lower bounds of the end and nothing else; a slot below a bound that is absent
is damage and is named, a slot above it that is absent is the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fwstore.base.config import RECORD_BYTES_MAX
from fwstore.base.errors import Corrupt, NotFound, Unsupported
from fwstore.format.keys import LineageKeys
from fwstore.format.record import Record, parse_record
from fwstore.format.summary import (
    HINT_BYTES_MAX,
    SUMMARY_BYTES_MAX,
    Hint,
    Summary,
    parse_hint,
    parse_summary,
)
from fwstore.sched import Runtime
from fwstore.store.base import Store

R = TypeVar("R")
P = TypeVar("P")

PAGE = 1000
BATCH_MAX = 512
_SLOT = re.compile(r"_log/([0-9]{6,})/([0-9]{3})\Z")


def gather(runtime: Runtime, *calls: Callable[[], R]) -> list[R]:
    """Make independent calls side by side; return their results in order."""
    return runtime.scheduler.map(lambda call: call(), calls)


def get_or_none(store: Store, key: str, limit_bytes: int) -> bytes | None:
    """Return an object, or None where there is none."""
    try:
        return store.get(key, limit_bytes=limit_bytes)
    except NotFound:
        return None


def get_parsed(
    store: Store, key: str, limit_bytes: int, parse: Callable[[bytes, str], P]
) -> P | None:
    """Return an object parsed, or None where there is none.

    What is damaged is read a second time: the damage may have been done on the way.

    Raises:
        Corrupt: It is damaged both times.
    """
    what = f"{key} in {store.url}"
    stored = get_or_none(store, key, limit_bytes)
    if stored is None:
        return None
    try:
        return parse(stored, what)
    except Corrupt:
        again = get_or_none(store, key, limit_bytes)
        return parse(stored if again is None else again, what)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known of a log before its slots are read.

    Attributes:
        last: A slot that exists, or -1.
        summaries: Slots that have a summary.
    """

    last: int
    summaries: Sequence[int]


class SlotReader:
    """Reads the slots and summaries of one log."""

    def __init__(self, store: Store, keys: LineageKeys, lineage: str, runtime: Runtime) -> None:
        self._store = store
        self._keys = keys
        self._lineage = lineage
        self._runtime = runtime

    def bounds(self) -> Bounds:
        """Return lower bounds of the end by the hint and two one-page LISTs: two round trips."""
        hint = self._hint()
        newest_summary = hint.summary if hint else -1
        newest_slot = hint.seq if hint else -1
        summaries, slots = gather(
            self._runtime,
            lambda: self._list_summaries(newest_summary),
            lambda: self._list_slots(newest_slot),
        )
        return Bounds(max([newest_slot, *slots, *summaries]), summaries)

    def read(self, first: int, last: int) -> list[bytes | None]:
        """Return slots from first to last in one round of requests; None from the end of the log on.

        Raises:
            Corrupt: A slot is absent although a later one is there.
        """
        return self._whole(first, self._fetch([self._slot(n) for n in range(first, last + 1)]))

    def read_from_summary(self, seq: int, last: int) -> tuple[Summary | None, list[bytes | None]]:
        """Return the summary that follows a slot, and the slots from that one on, in one round.

        The summary is None when it is absent or damaged: the slots say the same.
        """
        wanted = [(self._keys.summary(seq), SUMMARY_BYTES_MAX)]
        stored, *slots = self._fetch([*wanted, *[self._slot(n) for n in range(seq, last + 1)]])
        return self._parse_summary(seq, stored), self._whole(seq, slots)

    def require(self, seq: int) -> bytes:
        """Return a slot that must exist.

        Raises:
            Corrupt: It is absent.
        """
        slot = get_or_none(self._store, *self._slot(seq))
        if slot is None:
            raise Corrupt(
                f"{self._keys.slot(seq)} in {self._store.url} is missing although later slots of the "
                "log existed: restore it from a backup or another site"
            )
        return slot

    def parse(self, seq: int, stored: bytes) -> Record:
        """Return the record of a slot that was read; what seems damaged is read once more.

        Raises:
            Corrupt: It is damaged both times.
        """
        what = f"{self._keys.slot(seq)} in {self._store.url}"
        try:
            return parse_record(stored, what)
        except Corrupt:
            return parse_record(self.require(seq), what)

    def _slot(self, seq: int) -> tuple[str, int]:
        return self._keys.slot(seq), RECORD_BYTES_MAX

    def _fetch(self, wanted: Sequence[tuple[str, int]]) -> list[bytes | None]:
        return self._runtime.scheduler.map(lambda pair: get_or_none(self._store, *pair), wanted)

    def _whole(self, first: int, slots: list[bytes | None]) -> list[bytes | None]:
        end = max((i for i, slot in enumerate(slots) if slot is not None), default=-1)
        for index in range(end):
            if slots[index] is None:
                # The later slot may have been created while this round was under way; then the earlier
                # one is there by now.
                slots[index] = self.require(first + index)
        return slots

    def _parse_summary(self, seq: int, stored: bytes | None) -> Summary | None:
        if stored is None:
            return None
        try:
            summary = parse_summary(stored)
        except (Corrupt, Unsupported):
            # Derived: an older summary or the slots say the same.
            return None
        return summary if (summary.seq, summary.lineage) == (seq, self._lineage) else None

    def _hint(self) -> Hint | None:
        stored = get_or_none(self._store, self._keys.hint, HINT_BYTES_MAX)
        if stored is None:
            return None
        try:
            hint = parse_hint(stored)
        except (Corrupt, Unsupported):
            # Advisory: without it the LISTs begin at the first slot.
            return None
        return hint if hint.lineage == self._lineage else None

    def _list_summaries(self, after: int) -> list[int]:
        prefix = f"{self._keys.log}sum/"
        start = self._keys.summary(after - 1) if after > 0 else ""
        found: list[int] = []
        while True:
            page = [info.key for info in self._store.list(prefix, start_after=start, limit=PAGE)]
            names = [key[len(prefix) :] for key in page]
            found += [int(name) for name in names if name.isdigit()]
            if len(page) < PAGE:
                return found
            start = page[-1]

    def _list_slots(self, after: int) -> list[int]:
        start = self._keys.slot(after) if after >= 0 else ""
        page = self._store.list(self._keys.log, start_after=start, limit=PAGE)
        matches = [_SLOT.search(info.key) for info in page]
        return [int(match[1] + match[2]) for match in matches if match]
