"""Garbage collection of one lineage at one site: expire, condemn, delete, swept.

Invariant: any worker may stop after any operation and any other may go on; the order of the steps is
section 2 of docs/spec/garbage.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fwstore.care.orphans import (
    COORDINATION,
    LATE_COPY,
    find_coordination,
    find_hold_tables,
    find_orphans,
    find_staged,
    late_copies,
)
from fwstore.care.retain import (
    abandoned_pins,
    append_expire,
    finished_pins,
    lift_pins,
    plan_retention,
    returned_pins,
)
from fwstore.care.survey import ROOTS_READ_MAX, Survey
from fwstore.format.record import AnyBody, Swept
from fwstore.format.summary import CondemnEntry, PinEntry, SnapshotEntry
from fwstore.log.fold import Fold
from fwstore.log.lineage import mark_closed
from fwstore.log.log import Log
from fwstore.plan.mark import Garbage
from fwstore.plan.retention import Keep, RetentionPlan, Verdict, describe_keep

TAILS_S = 14 * 86_400.0
_DELETE_BATCH = 1000

Explain = Callable[[Garbage], None]
OpenLog = Callable[[str], Log | None]


@dataclass(frozen=True, kw_only=True)
class GcOptions:
    """How one collection goes about it.

    Attributes:
        keep: Retention of the canonical chain; None expires nothing of it.
        dry_run: Plan and explain, write and delete nothing.
        orphans: Also look for what died: LIST the lineage for what no record knows, and read the logs of
            borrowers for pins that they have given up.
        grace_s: Delete only what was condemned so long ago; for the comfort of readers.
        tails_s: Age at which snapshots beside the canonical chain expire.
        explain: Called for every key that is garbage.
        open_log: Opens the log of another lineage by its label: one that lent or borrowed packs.
        returned: Pins that a dry run takes as lifted, because collections of borrowers would have done so.
    """

    keep: Keep | None = None
    dry_run: bool = False
    orphans: bool = True
    grace_s: float = 0.0
    tails_s: float = TAILS_S
    explain: Explain = lambda _: None
    open_log: OpenLog = lambda _: None
    returned: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GarbageLine:
    """Garbage of one kind and group.

    Attributes:
        reason: Why it is garbage.
        term: Term that wrote it.
        save: Save that wrote it.
        snapshots: Snapshots that were given up with it.
        objects: How many keys.
        bytes: Their bytes.
    """

    reason: str
    term: int
    save: int
    snapshots: tuple[str, ...]
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection did, or would do.

    Attributes:
        dry_run: Nothing was written.
        kept: Snapshots on offer that stay, with why.
        expired: Snapshots that are no longer offered, with why.
        garbage: What was found to be garbage, by group.
        pins_lifted: Pins of bases and of borrowers that had served.
        pins_returned: Pins in other lineages that a dry run found to be needed no more.
        objects_deleted: Keys deleted by this call, also of earlier lists.
        bytes_deleted: Their bytes as they were when condemned.
    """

    dry_run: bool
    kept: tuple[Verdict, ...]
    expired: tuple[Verdict, ...]
    garbage: tuple[GarbageLine, ...]
    pins_lifted: int
    pins_returned: frozenset[str]
    objects_deleted: int
    bytes_deleted: int

    @property
    def bytes_garbage(self) -> int:
        """Bytes found to be garbage."""
        return sum(line.bytes for line in self.garbage)


def collect(log: Log, options: GcOptions) -> GcReport:
    """Apply retention to a lineage and free what nothing needs.

    Raises:
        Conflict: Others changed the log faster than it could be marked; call again.
        Corrupt: A pack table or a list is damaged; nothing was deleted on its account.
        Unavailable: The store did not answer; what was begun is completed by the next call.
    """
    return _Collection(log, options).run()


class _Collection:
    def __init__(self, log: Log, options: GcOptions) -> None:
        self._log = log
        self._options = options
        self._lines: dict[tuple[str, int, int], tuple[set[str], int, int]] = {}
        self._objects = 0
        self._bytes = 0
        self._returned: frozenset[str] = frozenset()

    def run(self) -> GcReport:
        fold = self._log.refresh()
        pins = finished_pins(fold)
        if self._options.orphans:
            pins += abandoned_pins(fold, self._options.open_log)
        plan = self._preview(fold, pins) if self._options.dry_run else self._act(pins)
        return GcReport(
            dry_run=self._options.dry_run,
            kept=plan.kept,
            expired=plan.expired,
            garbage=self._garbage_lines(),
            pins_lifted=len(pins),
            pins_returned=self._returned,
            objects_deleted=self._objects,
            bytes_deleted=self._bytes,
        )

    def _plan(self, fold: Fold) -> RetentionPlan:
        if fold.closed is not None:
            return RetentionPlan((), ())
        before = self._log.runtime.clock.wall() - self._options.tails_s
        return plan_retention(fold, self._options.keep, before)

    def _act(self, pins: Sequence[PinEntry]) -> RetentionPlan:
        log, keep = self._log, self._options.keep
        lift_pins(log, pins)
        reason = describe_keep(keep) if keep else "old tails"
        plan = append_expire(log, self._plan, reason)
        if log.fold.closed is not None:
            mark_closed(log)
        survey = self._survey()
        for given in survey.batches(survey.given_up(log.fold)):
            self._count(survey.condemn(given, self._return_borrowed))
        self._sweep(survey)
        if self._options.orphans:
            for given in find_orphans(log, log.fold):
                self._delete_late(late_copies(survey, log.fold, given))
                self._count(survey.condemn(given))
            self._sweep(survey)
            self._delete_unnamed()
        return plan

    def _preview(self, fold: Fold, pins: Sequence[PinEntry]) -> RetentionPlan:
        gone = [*(pin.pin for pin in pins), *self._options.returned]
        lifted = fold.imagine(without_pins=gone, expired=())
        plan = self._plan(lifted)
        imagined = lifted.imagine(without_pins=(), expired=[v.id for v in plan.expired])
        survey = self._survey()
        ending = survey.given_up(imagined)
        for given in survey.batches(ending):
            garbage = survey.mark(imagined, given)
            self._count(garbage)
            survey.skip(garbage)
        borrowed = self._borrowed(imagined, ending)
        self._returned = frozenset(pin.pin for _, pins in borrowed for pin in pins)
        if self._options.orphans:
            for given in find_orphans(self._log, imagined):
                self._count(_renamed(late_copies(survey, imagined, given), LATE_COPY))
                self._count(survey.mark(imagined, given))
            self._count(_unnamed(self._log, imagined))
        return plan

    def _survey(self) -> Survey:
        # Who looks for orphans as well reads every table anyway.
        return Survey(self._log, None if self._options.orphans else ROOTS_READ_MAX)

    def _return_borrowed(self, ending: Sequence[SnapshotEntry]) -> None:
        """Lift pins in other lineages that only the ending snapshots needed."""
        for donor, pins in self._borrowed(self._log.fold, ending):
            lift_pins(donor, pins)

    def _borrowed(
        self, fold: Fold, ending: Sequence[SnapshotEntry]
    ) -> Iterator[tuple[Log, list[PinEntry]]]:
        """Yield logs of other lineages and the pins there that only the ending snapshots need."""
        for label in {foreign.label for entry in ending for foreign in entry.foreign}:
            donor = self._options.open_log(label)
            if donor is not None:
                yield donor, returned_pins(donor.refresh(), fold, ending)

    def _sweep(self, survey: Survey) -> None:
        """Delete what is condemned and not yet swept, whoever condemned it."""
        grace_s, now = self._options.grace_s, self._log.runtime.clock.wall()
        for entry in tuple(self._log.fold.condemned.values()):
            # Without a grace the clocks of workers must not matter: one may be ahead.
            if not entry.swept and (not grace_s or entry.wall_time + grace_s <= now):
                self._delete([row.key for row in survey.read_list(entry)])
                self._bytes += entry.bytes
                self._log.append(_swept(entry))

    def _delete_late(self, garbage: Sequence[Garbage]) -> None:
        self._count(_renamed(garbage, LATE_COPY))
        self._delete([found.key for found in garbage])
        self._bytes += sum(found.size for found in garbage)

    def _delete_unnamed(self) -> None:
        garbage = _unnamed(self._log, self._log.fold)
        self._count(garbage)
        self._delete([found.key for found in garbage])
        self._bytes += sum(found.size for found in garbage)

    def _delete(self, keys: Sequence[str]) -> None:
        log = self._log
        starts = range(0, len(keys), _DELETE_BATCH)
        batches = [keys[start : start + _DELETE_BATCH] for start in starts]
        log.runtime.scheduler.map(log.store.delete, batches)
        self._objects += len(keys)

    def _count(self, garbage: Iterable[Garbage]) -> None:
        for found in garbage:
            self._options.explain(found)
            place = (found.reason, found.term, found.save)
            snapshots, objects, size = self._lines.get(place, (set(), 0, 0))
            if found.snapshot:
                snapshots.add(found.snapshot)
            self._lines[place] = (snapshots, objects + 1, size + found.size)

    def _garbage_lines(self) -> tuple[GarbageLine, ...]:
        return tuple(
            GarbageLine(reason, term, save, tuple(sorted(snapshots)), objects, size)
            for (reason, term, save), (snapshots, objects, size) in sorted(self._lines.items())
        )


def _renamed(garbage: Iterable[Garbage], reason: str) -> list[Garbage]:
    return [
        Garbage(found.key, found.size, reason, found.snapshot, found.term, found.save)
        for found in garbage
    ]


def _unnamed(log: Log, fold: Fold) -> list[Garbage]:
    """Return what no record can ever name: messages of dead jobs, parts of copies and lists of holds that ended."""
    messages = find_coordination(log, fold)
    return [
        *(Garbage(info.key, info.size, COORDINATION, "", 0, 0) for info in messages),
        *find_staged(log),
        *find_hold_tables(log),
    ]


def _swept(entry: CondemnEntry) -> Callable[[Fold], AnyBody | None]:
    def make(fold: Fold) -> AnyBody | None:
        return None if fold.condemned[entry.token].swept else Swept(entry.token)

    return make
