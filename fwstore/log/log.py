"""One log: reading what others appended, and appending.

Invariant: slot n+1 is created only by a `Log` that folded every slot up to n, and nothing is appended
after an attempt of unknown outcome before its slot was read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from fwstore.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Expired,
    Fenced,
    FwstoreError,
    InternalError,
    NotFound,
    Unavailable,
)
from fwstore.base.ids import write_id
from fwstore.format.keys import LineageKeys
from fwstore.format.record import AnyBody, Record, encode_record, parse_record, record_digest
from fwstore.log.condemned import CondemnedKeys
from fwstore.log.derive import Deriver
from fwstore.log.fold import Fold, Refusal, Uses
from fwstore.log.packs import PackReader
from fwstore.log.tail import BATCH_MAX, Bounds, SlotReader
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.store.create import create_once

Make = Callable[[Fold], AnyBody | None]

_SPECULATE = 8
# Whoever finds news asks for so many times as much in the next round.
_FOLLOWED = 8
_SUMMARIES_TRIED = 3
_LOST_SLOTS_MAX = 200


class Log:
    """The log of one lineage at one site, as far as it was read.

    Args:
        store: The store of the site.
        keys: Where the lineage is.
        lineage: Its uuid.
        runtime: Time, ids, threads.
        read_packs: Lists the packs of a snapshot; called where a reference meets condemned groups.
    """

    def __init__(
        self,
        store: Store,
        keys: LineageKeys,
        lineage: str,
        runtime: Runtime,
        read_packs: PackReader,
    ) -> None:
        self.store = store
        self.keys = keys
        self.lineage = lineage
        self.runtime = runtime
        self.read_packs = read_packs
        self.fold = Fold(lineage)
        self._resolver = CondemnedKeys(store, keys, lineage, read_packs)
        self._slots = SlotReader(store, keys, lineage, runtime)
        self._deriver = Deriver(store, keys)
        self._lock = runtime.scheduler.lock()
        self._unsettled = False

    def refresh(self) -> Fold:
        """Read what was appended since; return the fold.

        Raises:
            Corrupt: A slot is damaged or missing; the message names its key.
        """
        with self._lock:
            self._refresh()
            return self.fold

    def confirm(self) -> bool:
        """Read on from the newest slot that is known, and that one again, in one round.

        Returns:
            Whether the log still holds the same record there; otherwise nothing has changed here.

        Raises:
            Corrupt: A slot is damaged or missing; the message names its key.
        """
        with self._lock:
            seq = self.fold.seq
            known, *following = self._slots.read(seq, seq + 1)
            if known is None or record_digest(self._slots.parse(seq, known)) != self.fold.digest:
                return False
            if self._apply(following):
                self._follow(_FOLLOWED)
            self._unsettled = False
            return True

    def begin_at(self, fold: Fold) -> None:
        """Go on from a state that somebody found in this log before, and that was compared with its slot."""
        with self._lock:
            self.fold = fold
            self._deriver.newest_summary = fold.anchors.summary

    def append(self, make: Make, *, term: int = 0) -> Record | None:
        """Append a record.

        Args:
            make: From the newest fold, the body - or None when there is nothing to append, or raises. Called
                again after every slot lost to another.
            term: Of the writer; of a fence, the term it sets.

        Returns:
            The record, which counts; None when `make` returned None.

        Raises:
            Fenced: A higher term owns the run.
            Conflict: The record would not count: what it refers to is condemned, or the lineage is deleted.
            AlreadyExists: The same save was recorded before.
            Unavailable: Whether it was appended is unknown; it may still appear.
        """
        with self._lock:
            if self._unsettled or self.fold.seq < 0:
                self._refresh()
            for attempt in range(_LOST_SLOTS_MAX):
                body = make(self.fold)
                if body is None:
                    return None
                record = self._create(self._record(body, term))
                if record is not None:
                    return record
                self._read_lost_slot(attempt)
        raise Unavailable(
            f"{_LOST_SLOTS_MAX} slots of the log of {self.keys.label} were lost to other writers"
        )

    def know_packs(self, uses: Uses, packs: Iterable[str]) -> None:
        """Say which packs a snapshot refers to, so that appending its record need not read its tables."""
        self._resolver.know(uses, packs)

    def records(self, first: int = 0, last: int | None = None) -> Iterator[Record]:
        """Yield the records of slots from `first` to `last`, or to the end of the log."""
        while last is None or first <= last:
            stop = first + BATCH_MAX - 1
            for slot in self._slots.read(first, stop if last is None else min(stop, last)):
                if slot is None:
                    return
                yield self._slots.parse(first, slot)
                first += 1

    def judged(self) -> Iterator[tuple[Record, bool]]:
        """Yield every record from the beginning, with whether it counts."""
        fold = Fold(self.lineage)
        for record in self.records():
            yield record, fold.apply(record, self._resolver)

    def why_missing(self, snapshot: str) -> FwstoreError:
        """Return the error for a reader that did not find a snapshot's bytes.

        The log is folded again: what was collected is `Expired`, and only what should be there is damage.
        """
        fold = self.refresh()
        if snapshot in fold.gone or snapshot in fold.expired or fold.closed is not None:
            return Expired(f"{snapshot} of {self.keys.label} was removed by retention or deleted")
        if snapshot in fold.entries:
            return Corrupt(
                f"bytes of {snapshot} of {self.keys.label} are missing in {self.store.url} although the "
                "log lists it: restore them from a backup or another site"
            )
        return NotFound(f"{snapshot} is not in the log of {self.keys.label}")

    def _record(self, body: AnyBody, term: int) -> Record:
        anchors = self.fold.anchors
        summary = max(anchors.summary, self._deriver.newest_summary)
        return Record(
            seq=self.fold.seq + 1,
            term=term,
            lineage=self.lineage,
            write_id=write_id(self.runtime.ids),
            previous=self.fold.digest,
            anchors=msgspec.structs.replace(anchors, summary=summary),
            time=self.runtime.clock.wall(),
            body=body,
        )

    def _create(self, record: Record) -> Record | None:
        """Create the slot of a record that would count; None when the slot is another's."""
        refusal = self.fold.refusal(record, self._resolver, trust_anchor=False)
        if refusal is not None:
            raise self._refused(refusal, record)
        key = self.keys.slot(record.seq)
        encoded = encode_record(record)
        self._unsettled = True
        ours = create_once(self.store, key, [encoded], self.runtime, write_id=record.write_id)
        self._unsettled = False
        if not ours:
            return None
        stored = parse_record(encoded, key)
        if not self.fold.apply(stored, self._resolver):
            raise InternalError(f"{key} was appended and does not count")
        self._deriver.follow(self.fold)
        return stored

    def _read_lost_slot(self, attempt: int) -> None:
        before = self.fold.seq
        self._refresh()
        if self.fold.seq == before:
            self._slots.require(before + 1)
        if attempt >= 2:
            # Many appenders at once: step aside for a moment, longer each time.
            self.runtime.clock.sleep(self.runtime.ids.uniform() * min(0.01 * attempt, 0.5))

    def _refused(self, refusal: Refusal, record: Record) -> FwstoreError:
        run = self.keys.label
        match refusal:
            case Refusal.FENCED:
                return Fenced(
                    f"term {self.fold.fence} of {run} belongs to a newer job; this writer has term "
                    f"{record.term} and must stop"
                )
            case Refusal.CLOSED:
                return Conflict(f"{run} was deleted: {self.fold.closed}")
            case Refusal.DUPLICATE:
                return AlreadyExists(
                    f"this {record.kind} of term {record.term} is in the log of {run} already"
                )
            case Refusal.CONDEMNED:
                return Conflict(
                    f"the {record.kind} refers to bytes of {run} that garbage collection has condemned: "
                    "choose again, or write them anew"
                )
            case Refusal.UNKNOWN:
                return NotFound(
                    f"the {record.kind} names a snapshot that {run} does not offer here"
                )

    def _refresh(self) -> None:
        if self.fold.seq < 0:
            self._open()
        else:
            self._follow(1)
        self._unsettled = False

    def _open(self) -> None:
        bounds = self._slots.bounds()
        begun = any(
            self._begin(seq, bounds)
            for seq in sorted(bounds.summaries, reverse=True)[:_SUMMARIES_TRIED]
        )
        if not begun:
            self._follow(min(bounds.last + _SPECULATE, BATCH_MAX))
        while self.fold.seq < bounds.last:
            # Raises when the slot below the bound is really absent.
            self._slots.require(self.fold.seq + 1)
            self._follow(min(bounds.last + _SPECULATE - self.fold.seq, BATCH_MAX))

    def _begin(self, seq: int, bounds: Bounds) -> bool:
        """Begin at a summary; False, and nothing has changed, when it does not belong to the log."""
        last = min(bounds.last + _SPECULATE, seq + BATCH_MAX)
        summary, slots = self._slots.read_from_summary(seq, last)
        first = self._slots.parse(seq, slots[0] or self._slots.require(seq))
        if summary is None or summary.record != record_digest(first):
            return False
        self.fold = Fold.restore(self.lineage, seq, summary.record, summary.state)
        self._deriver.newest_summary = seq
        if self._apply(slots[1:]) == last - seq:
            self._follow(_SPECULATE)
        return True

    def _follow(self, batch: int) -> None:
        while True:
            first = self.fold.seq + 1
            if self._apply(self._slots.read(first, first + batch - 1)) < batch:
                return
            batch = min(batch * _FOLLOWED, BATCH_MAX)

    def _apply(self, slots: Sequence[bytes | None]) -> int:
        for index, slot in enumerate(slots):
            if slot is None:
                return index
            seq = self.fold.seq + 1
            record = self._slots.parse(seq, slot)
            try:
                self.fold.apply(record, self._resolver)
            except Corrupt as error:
                what = f"{self.keys.slot(seq)} in {self.store.url}"
                raise Corrupt(f"{what} is damaged: {error}") from error
        return len(slots)
