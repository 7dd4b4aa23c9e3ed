"""One lineage in one round: hearing who has what, and copying it one snapshot after the other.

Invariant: after every snapshot all logs are read again, so what is newest when its turn comes is copied first; a
snapshot that cannot be copied is told and stops no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fwstore.base.errors import FwstoreError, NotFound
from fwstore.codec.hashing import ContentHash
from fwstore.format.record import AnyBody, Fence
from fwstore.format.summary import HoldEntry, SnapshotEntry
from fwstore.log.fold import Fold
from fwstore.log.history import canonical_chain, view_of
from fwstore.log.lineage import birth, claim_name, read_lineage
from fwstore.log.log import Log
from fwstore.log.site import Site
from fwstore.plan.replication import (
    Everything,
    Known,
    Policy,
    ReplicationPlan,
    Transfer,
    plan_replication,
)
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.wan.copy import Supply, Throttle, unthrottled
from fwstore.wan.heard import Listener
from fwstore.wan.holds import ended_holds
from fwstore.wan.pull import Offer, Puller, collected, held_at
from fwstore.wan.reports import Copied, Trouble

LOOK_AGAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Source:
    """A site to copy from.

    Attributes:
        site: Which, and its store.
        throttle: See `Supply`.
        patient: Its store for large requests; None takes that of the site.
    """

    site: Site
    throttle: Throttle = unthrottled
    patient: Store | None = None

    @property
    def supply(self) -> Supply:
        """What packs are copied from."""
        return Supply(self.site.name, self.patient or self.site.store, self.throttle)


def fence_late(log: Log, folds: Mapping[str, Fold]) -> bool:
    """Fence the own log where another site opened a higher term; return whether that was needed.

    Args:
        log: The own log.
        folds: Logs of other sites by uuid.
    """
    opened = [
        term
        for site, fold in folds.items()
        for term, found in fold.opens.items()
        if found.home == site
    ]
    newest = max(opened, default=0)

    def make(fold: Fold) -> AnyBody | None:
        return None if fold.fence >= newest else Fence()

    return log.append(make, term=newest) is not None


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A site, where it copies from and what it wants.

    Attributes:
        own: The site.
        sources: The others, the nearest first.
        silent: Names of sites that cannot be asked now, with why.
        runtime: Threads and limits.
        content_hash: The hash that proves objects.
        policy: What is wanted of a run, by its name; None where nothing is.
        retired: Whether a site was retired, by its uuid.
    """

    own: Site
    sources: tuple[Source, ...]
    silent: Mapping[str, FwstoreError] = field(default_factory=dict)
    runtime: Runtime
    content_hash: ContentHash = field(default_factory=ContentHash)
    policy: Callable[[str], Policy | None] = lambda _: Everything()
    retired: Callable[[str], bool] = lambda _: False


@dataclass
class Notes:
    """What a round has to tell."""

    copied: list[Copied] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    withdrawn: int = 0
    fenced: list[str] = field(default_factory=list)

    def add(self, trouble: Trouble) -> None:
        """Take note of a trouble, once: what is looked at again and again has it again and again."""
        if trouble.alike not in {noted.alike for noted in self.troubles}:
            self.troubles.append(trouble)


class Line:
    """One lineage in one round.

    Args:
        destination: Where to.
        listener: Follows its logs.
        sources: Who has it.
        notes: Takes what is to be told.
        tried: Ids of snapshots that could not be copied in the last round.
        whole: Every site was asked whether it has it.

    Attributes:
        lineage: Which.
        plan: What is to be copied and what is not.
    """

    def __init__(
        self,
        destination: Destination,
        listener: Listener,
        sources: Sequence[Source],
        notes: Notes,
        tried: Collection[str],
        *,
        whole: bool,
    ) -> None:
        self.lineage = listener.lineage
        self.plan = ReplicationPlan((), ())
        self._destination = destination
        self._listener = listener
        self._sources = list(sources)
        self._notes = notes
        self._tried = tried
        self._whole = whole
        self._failed: set[str] = set()
        self._queue: deque[Transfer] = deque()
        self._planned_at: dict[str, int] = {}
        self._looked_at_s = 0.0
        self._own: Log | None = None
        self._heard: dict[str, tuple[Source, Log]] = {}

    def look(self) -> bool:
        """Make the plan without writing anything; False where nothing of the lineage is wanted."""
        own = self._destination.own
        if read_lineage(own.store, self.lineage.keys) is not None:
            return self._listen() and self._replan()
        self._hear_sources()
        self.plan = plan_replication(self._known(None), self._policy())
        return True

    def begin(self) -> bool:
        """Bring the lineage itself, read its logs, do what comes before copying, and make the plan."""
        destination, keys = self._destination, self.lineage.keys
        try:
            if read_lineage(destination.own.store, keys) is None:
                if self._policy() is None:
                    return False
                claim_name(destination.own.store, keys.name, destination.runtime)
                birth(destination.own.store, self.lineage, destination.runtime)
            return self._round()
        except FwstoreError as error:
            self._note(error)
            return False

    def next(self) -> Transfer | None:
        """Return what is to be tried next in this round; what could not be copied in the last one comes last."""
        own = self._own_log().fold
        while self._queue and (
            own.is_complete(self._queue[0].snapshot) or self._queue[0].snapshot in self._failed
        ):
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    def left(self) -> list[Transfer]:
        """Return what did not come."""
        return [t for t in self.plan.transfers if t.snapshot in self._failed]

    def pull(self, transfer: Transfer) -> None:
        """Copy a snapshot, then look again: something newer may have come meanwhile."""
        clock = self._destination.runtime.clock
        started = clock.monotonic()
        try:
            pulled = self._puller().pull(self._offers(transfer))
            if pulled.source:
                self._notes.copied.append(
                    Copied(
                        run=self.lineage.name,
                        snapshot=transfer.snapshot,
                        step=transfer.step,
                        source=self._name_of(pulled.source),
                        packs=pulled.tally.packs,
                        bytes_received=pulled.tally.bytes_received,
                        seconds=clock.monotonic() - started,
                    )
                )
        except FwstoreError as error:
            self._failed.add(transfer.snapshot)
            self._note(error, transfer.snapshot)
        self._look_again()

    def keep_up(self) -> None:
        """Look again where the last look was long ago: the turns of others take their time."""
        now_s = self._destination.runtime.clock.monotonic()
        if now_s - self._looked_at_s >= LOOK_AGAIN_S:
            self._look_again()

    def end(self) -> None:
        """End the holds that nobody counts on any more, and write down how far the own log was read."""
        try:
            self._end_holds()
            self._listener.hear(self._destination.own)
        except FwstoreError as error:
            self._note(error)

    def _look_again(self) -> None:
        try:
            if not self._round():
                self._queue.clear()
        except FwstoreError as error:
            self._note(error)
            self._failed |= {waiting.snapshot for waiting in self._queue}

    def _round(self) -> bool:
        """Read every log, fence late, withdraw what is gone, and plan; False where nothing is wanted any more."""
        self._looked_at_s = self._destination.runtime.clock.monotonic()
        if not self._listen():
            return False
        log = self._own_log()
        folds = {uuid: heard.fold for uuid, (_, heard) in self._heard.items()}
        if fence_late(log, folds):
            self._notes.fenced.append(self.lineage.name)
        self._withdraw(log, folds)
        # What came here meanwhile is passed over when its turn comes; only news of others change the plan.
        heard = {uuid: fold.seq for uuid, fold in folds.items()}
        return self._planned_at == heard or self._replan()

    def _listen(self) -> bool:
        # Every snapshot brings records here: how far they were read is written down once, at the end.
        self._own = self._listener.hear(self._destination.own, keep=False)
        if self._own.fold.closed is not None:
            # Deleted here, whatever others still have.
            self._end_holds()
            return False
        self._hear_sources()
        return True

    def _hear_sources(self) -> None:
        for source in list(self._sources):
            try:
                log = self._listener.hear(source.site)
                self._heard[source.site.uuid] = source, log
            except FwstoreError as error:
                self._note(error, site=source.site.name)
                self._sources.remove(source)
                self._heard.pop(source.site.uuid, None)
                self._whole = False

    def _offers(self, transfer: Transfer) -> list[Offer]:
        """Return who gives a snapshot that is to be copied: this site too, where it was committed here."""
        own, log = self._destination.own, self._own_log()
        heard = {uuid: (source.supply, log) for uuid, (source, log) in self._heard.items()}
        supplies = {uuid: supply for uuid, (supply, _) in heard.items()}
        heard[own.uuid] = Supply(own.name, own.store, remote=False), log
        return [
            Offer(uuid, *heard[uuid], entry, held_at(entry, supplies))
            for uuid, entry in transfer.offers
            if uuid in heard
        ]

    def _name_of(self, uuid: str) -> str:
        own = self._destination.own
        return own.name if uuid == own.uuid else self._heard[uuid][0].site.name

    def _end_holds(self) -> None:
        """End holds of which the log of their home tells that nobody counts on them, and whose snapshot is not to come here."""
        log = self._own_log()
        coming = {t.snapshot for t in self.plan.transfers if not log.fold.is_complete(t.snapshot)}
        homes = self._homes(log.fold)
        for hold in ended_holds(log.fold, homes, self._destination.retired):
            if hold.snapshot not in coming:
                self._puller().withdraw(hold)
                self._notes.withdrawn += 1

    def _homes(self, own: Fold) -> dict[str, Fold]:
        """Return the logs that were heard, and those of homes of holds where the lineage was deleted."""
        folds = {uuid: log.fold for uuid, (_, log) in self._heard.items()}
        unheard = {
            hold.home for hold in tuple(own.holds.values()) if not hold.intent
        } - folds.keys()
        for source in self._destination.sources:
            if source.site.uuid in unheard:
                there = read_lineage(source.site.store, self.lineage.keys)
                if there is not None and there.lineage == self.lineage.lineage:
                    folds[source.site.uuid] = self._listener.hear(source.site).fold
        return folds

    def _withdraw(self, log: Log, folds: Mapping[str, Fold]) -> None:
        """End intents whose snapshot nobody offers any more - if everybody was asked, and who had it has given it up."""
        folds = {**folds, self._destination.own.uuid: log.fold}
        offered = {entry.id for fold in folds.values() for entry in fold.live()}
        for intent in tuple(log.fold.holds.values()):
            here = log.fold.is_complete(intent.snapshot)
            gone = intent.snapshot not in offered and _gave_up(folds.get(intent.home), intent)
            if intent.intent and (here or (self._whole and gone)):
                self._puller().withdraw(intent)
                self._notes.withdrawn += 1

    def _replan(self) -> bool:
        self.plan = plan_replication(self._known(self._own_log()), self._policy())
        self._queue = deque(sorted(self.plan.transfers, key=lambda t: t.snapshot in self._tried))
        self._planned_at = {uuid: log.fold.seq for uuid, (_, log) in self._heard.items()}
        return True

    def _known(self, own: Log | None) -> Known:
        folds = {uuid: log.fold for uuid, (_, log) in self._heard.items()}
        return known_of(self._destination.own.uuid, own, folds, self._listener.condemned)

    def _policy(self) -> Policy | None:
        return self._destination.policy(self.lineage.name)

    def _puller(self) -> Puller:
        destination = self._destination
        return Puller(self._own_log(), destination.runtime, destination.content_hash)

    def _own_log(self) -> Log:
        if self._own is None:
            raise NotFound(f"{self.lineage.keys.label} is not known here")
        return self._own

    def _note(self, error: FwstoreError, snapshot: str = "", site: str = "") -> None:
        self._notes.add(Trouble(run=self.lineage.name, site=site, snapshot=snapshot, error=error))


def _gave_up(source: Fold | None, intent: HoldEntry) -> bool:
    """Return whether the site from which a snapshot was to come knew it and offers it no more.

    A log that does not know it yet was read too early.
    """
    if source is None or source.closed is not None:
        return True
    forgotten = source.saves.get(intent.term, 0) >= intent.save
    return intent.snapshot in source.expired or intent.snapshot in source.gone or forgotten


def known_of(
    site: str, own: Log | None, others: Mapping[str, Fold], condemned: dict[str, frozenset[str]]
) -> Known:
    """Return what one site knows of a lineage.

    Args:
        site: Its uuid.
        own: Its log, or None where it has none.
        others: What other logs say, by uuid of their site; the nearest first.
        condemned: See `Listener`; of the own log.

    Raises:
        Corrupt: A condemned list of the own log is damaged.
    """
    everybody = dict(others) if own is None else {site: own.fold, **others}
    offers = {uuid: {e.id: e for e in fold.live()} for uuid, fold in others.items()}
    begun = {} if own is None else {e.id: e for e in own.fold.live() if e.holds}
    if begun:
        offers[site] = begun
    return Known(
        chain=canonical_chain(view_of(everybody)),
        offers=offers,
        here=() if own is None else own.fold.entries.keys() - begun.keys(),
        begun=begun,
        gone={} if own is None else _gone(own, offers, condemned),
        marked=_marked_in(others.values()),
    )


def _gone(
    own: Log,
    offers: Mapping[str, Mapping[str, SnapshotEntry]],
    lists: dict[str, frozenset[str]],
) -> dict[str, str]:
    """Return what was given up here, with how; also what the log no longer remembers."""
    fold = own.fold
    unknown = {
        name: entry
        for offered in offers.values()
        for name, entry in offered.items()
        if name not in fold.entries and name not in fold.gone
    }
    gone = dict.fromkeys(
        [*fold.gone, *collected(own, unknown.values(), lists)],
        "was collected and is not fetched again",
    )
    return gone | dict.fromkeys(fold.expired, "was expired and is not fetched again")


def _marked_in(folds: Collection[Fold]) -> dict[str, str]:
    """Return the snapshots that a pin or a tag keeps somewhere, each with why."""
    marked: dict[str, str] = {}
    for fold in folds:
        marked |= {pin.snapshot: f"pinned: {pin.reason}" for pin in tuple(fold.pins.values())}
        marked |= {snapshot: f"tagged {tag!r}" for tag, snapshot in tuple(fold.tags.items())}
    return marked
