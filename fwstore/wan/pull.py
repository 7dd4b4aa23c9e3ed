"""Copying one snapshot to this site, from intent to publish.

Invariant: a `publish` is appended when every object of the snapshot is durable here and was verified here, and nothing
is written before an intent that covers it counts. Whoever stops anywhere leaves what the next worker goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from fwstore.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Expired,
    FwstoreError,
    InternalError,
    NotFound,
    Unavailable,
)
from fwstore.base.ids import write_id
from fwstore.codec.hashing import ContentHash
from fwstore.content.verified import Origin, read_object
from fwstore.format.groups import GroupRange, groups_cover, groups_meet
from fwstore.format.packtable import PackInfo, parse_pack_table
from fwstore.format.record import AnyBody, Hold, ObjectRef, Unpin
from fwstore.format.root import LeafRef, PackTableRef, parse_root
from fwstore.format.summary import CondemnEntry, HoldEntry, SnapshotEntry
from fwstore.log.condemned import condemned_among, read_condemned
from fwstore.log.fold import Fold, uses_elsewhere, uses_of
from fwstore.log.log import Log
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.store.create import create_once
from fwstore.wan.copy import ELSEWHERE, Copier, CopyTally, PackCopy, Supply, unwatched
from fwstore.wan.localise import LocalManifest, RemoteManifest, check_identity, localise

T = TypeVar("T")

# Neighbours in time list nearly all packs that were here before; what they miss is looked at itself.
_PROOFS_READ = 8
_ATTEMPTS = 3


class _NobodyHas(Exception):
    """A pack of a snapshot that no site with the same root can give; never seen outside of this module.

    Args:
        why: What the nearest one said.
    """

    def __init__(self, why: FwstoreError) -> None:
        super().__init__(why.message)
        self.why = why


@dataclass(frozen=True, slots=True)
class Offer:
    """A site that has a snapshot.

    Attributes:
        site: Its uuid.
        supply: Its store.
        log: Its log, as far as it was read.
        entry: The snapshot as that log tells of it.
        held: The stores of the sites that hold packs of it which were never there.
    """

    site: str
    supply: Supply
    log: Log
    entry: SnapshotEntry
    held: tuple[Supply, ...] = ()


def held_at(entry: SnapshotEntry, supplies: Mapping[str, Supply]) -> tuple[Supply, ...]:
    """Return the stores that hold packs of a snapshot for the site whose log tells of it.

    Args:
        entry: The snapshot.
        supplies: The stores that answer, by uuid of their site.
    """
    return tuple(supplies[held.site] for held in entry.holds if held.site in supplies)


@dataclass(frozen=True, slots=True)
class Pulled:
    """What it took to bring a snapshot here.

    Attributes:
        source: Uuid of the site that its record names; empty where another worker was first.
        tally: Packs and bytes.
    """

    source: str
    tally: CopyTally


@dataclass(frozen=True, slots=True)
class Prepared:
    """A snapshot that is to come here; an intent covers it.

    Attributes:
        offer: The site whose record is followed.
        groups: The groups of all that it refers to.
        remote: Its manifest there.
        local: Its manifest here.
        packs: How each of its packs is copied, by its key at the source.
    """

    offer: Offer
    groups: tuple[GroupRange, ...]
    remote: RemoteManifest
    local: LocalManifest
    packs: Mapping[str, PackCopy]


class Puller:
    """Brings snapshots of one lineage to one site.

    Args:
        log: The own log of the lineage.
        runtime: Threads and limits.
        content_hash: The hash that proves objects.
        look_here: Others may have brought parts of a manifest: ask for them here before they are asked of a source.

    Attributes:
        log: The own log.
    """

    def __init__(
        self,
        log: Log,
        runtime: Runtime,
        content_hash: ContentHash,
        *,
        look_here: bool = False,
    ) -> None:
        self.log = log
        self._runtime = runtime
        self._hash = content_hash
        self._look_here = look_here
        self._copier = Copier(log.store, runtime, content_hash)
        # What stands here under an intent stays until its name is condemned, and then nobody refers to it again.
        self._verified: set[str] = set()

    def pull(self, offers: Sequence[Offer], alive: Callable[[], None] = unwatched) -> Pulled:
        """Copy a snapshot from the first site that can give it, with the help of the others.

        Args:
            offers: Who has it, the nearest first.
            alive: Called whenever it gets on; what it raises ends it.

        Raises:
            Expired: It was given up here, or is gone at every site that had it.
            Corrupt: No site has what its log tells of; the first one's damage is named.
            Unavailable: No site that has it answers, or the own store does not.
            Conflict: The lineage was deleted here, or a collection was in the way again and again.
        """
        return self._from_any(offers, lambda offer, others: self._pull_from(offer, others, alive))

    def prepare(self, offers: Sequence[Offer]) -> Prepared | None:
        """Read the manifest of a snapshot and cover it by an intent here; None where the snapshot is here already.

        Raises:
            FwstoreError: As `pull`.
        """

        def from_one(offer: Offer, others: Sequence[Offer]) -> Prepared | None:
            return self._cover(offer, others, self._read_manifest(offer))

        return self._from_any(offers, from_one)

    def copy(self, packs: Sequence[PackCopy]) -> CopyTally:
        """Copy some packs of a snapshot that is prepared, as `Copier.copy` does; none is verified twice."""
        left = [copy for copy in packs if copy.key not in self._verified]
        return self._copier.copy(left, self._verified.add)

    def withdraw(self, intent: HoldEntry) -> None:
        """End an intent that nobody will bring to its end; what was copied is garbage then."""

        def make(fold: Fold) -> AnyBody | None:
            return Unpin(intent.hold) if intent.hold in fold.holds else None

        self.log.append(make)

    def _from_any(
        self, offers: Sequence[Offer], attempt: Callable[[Offer, Sequence[Offer]], T]
    ) -> T:
        failure: FwstoreError | None = None
        asked_in_vain: list[ObjectRef] = []
        for number, offer in enumerate(offers):
            if offer.entry.root in asked_in_vain:
                continue
            others = [*offers[number + 1 :], *offers[:number]]
            try:
                return attempt(offer, others)
            except Expired:
                raise
            except _NobodyHas as error:
                asked_in_vain.append(offer.entry.root)
                failure = failure or self._judged(offer, error.why)
            except ELSEWHERE as error:
                failure = failure or self._judged(offer, error)
        raise failure or InternalError("a snapshot was to be pulled from nowhere")

    def _judged(self, offer: Offer, error: FwstoreError) -> FwstoreError:
        """Return what an error at a source means now: what is missing there may have been collected."""
        if isinstance(error, NotFound):
            if len(offer.held) < len(offer.entry.holds):
                return Unavailable(
                    f"packs of {offer.entry.id} of {self.log.keys.label} are at a site that does not answer: {error.message}"
                )
            with suppress(FwstoreError):
                return offer.log.why_missing(offer.entry.id)
        return error

    def _pull_from(
        self, offer: Offer, others: Sequence[Offer], alive: Callable[[], None]
    ) -> Pulled:
        remote = self._read_manifest(offer)
        tally = CopyTally()
        for _ in range(_ATTEMPTS):
            prepared = self._cover(offer, others, remote)
            if prepared is None:
                return Pulled("", tally)
            tally.add(self._copy_packs(prepared, alive))
            # Whose intent was withdrawn begins again before names that may be condemned get into a manifest.
            if not self._stands(self.log.refresh(), offer.entry, prepared.groups):
                continue
            self.write_manifest(prepared)
            if self._publish(prepared):
                return Pulled(offer.site, tally)
        raise Conflict(
            f"{offer.entry.id} of {self.log.keys.label} was collected here {_ATTEMPTS} times while it was copied: "
            "another worker withdraws what this one brings"
        )

    def _cover(
        self, offer: Offer, others: Sequence[Offer], remote: RemoteManifest
    ) -> Prepared | None:
        """See to it that an intent covers a snapshot; None where the snapshot is here already."""
        groups = remote.groups(offer.entry)
        if not self._intend(offer, groups):
            return None
        local = localise(remote, self.log.keys, self._condemned(groups), self._hash)
        packs = self._copies(offer, others, remote, local)
        return Prepared(offer, groups, remote, local, packs)

    def _read_manifest(self, offer: Offer) -> RemoteManifest:
        """Return the manifest as its source has it: two rounds, since the record names root and tables."""
        keys, entry = self.log.keys, offer.entry
        named = [(keys.root(entry.id), entry.root)]
        if not entry.holds:
            named += [(keys.pack_table(entry.id, n), ref) for n, ref in enumerate(entry.tables)]

        def read_named(one: tuple[str, ObjectRef]) -> bytes:
            return self._fetch(offer, one[0], one[1].digest, one[1].size)

        stored, *tables = self._runtime.scheduler.map(read_named, named)
        root = parse_root(stored)
        check_identity(root, keys, self.log.lineage, entry)
        known = {ref.digest: table for (_, ref), table in zip(named[1:], tables, strict=True)}
        rest: list[tuple[str, PackTableRef | LeafRef]] = [
            *((keys.pack_table(entry.id, n), one) for n, one in enumerate(root.pack_tables)),
            *((keys.leaf(entry.id, n), one) for n, one in enumerate(root.leaves)),
        ]

        def read_rest(one: tuple[str, PackTableRef | LeafRef]) -> bytes:
            key, ref = one
            digest = ref.digest.hex()
            return known.get(digest) or self._fetch(offer, key, digest, ref.size)

        read = self._runtime.scheduler.map(read_rest, rest)
        count = len(root.pack_tables)
        parts = [
            (table, _rows_of(table, key, part))
            for table, (key, _), part in zip(
                read[:count], rest[:count], root.pack_tables, strict=True
            )
        ]
        return RemoteManifest(root, stored, tuple(parts), tuple(read[count:]))

    def _fetch(self, offer: Offer, key: str, digest: str, limit_bytes: int) -> bytes:
        if self._look_here:
            with suppress(NotFound, Corrupt):
                return self._read(self.log.store, key, digest, limit_bytes)
        offer.supply.throttle(limit_bytes)
        return self._read(offer.supply.store, key, digest, limit_bytes)

    def _read(self, store: Store, key: str, digest: str, limit_bytes: int) -> bytes:
        origin = Origin(stores=(store,), runtime=self._runtime, content_hash=self._hash)
        return read_object(origin, key, bytes.fromhex(digest), limit_bytes)

    def _intend(self, offer: Offer, groups: tuple[GroupRange, ...]) -> bool:
        """See to it that an intent covers a snapshot here; False where the snapshot is here already."""
        entry = offer.entry
        intent = Hold(
            hold=write_id(self._runtime.ids),
            snapshot=entry.id,
            save=entry.save,
            home=offer.site,
            tables=(),
            groups=groups,
            intent=True,
        )

        def make(fold: Fold) -> AnyBody | None:
            self._refuse_gone(fold, entry)
            return None if self._stands(fold, entry, groups) else intent

        # What is believed to stand may have been withdrawn, and its keys condemned.
        self.log.refresh()
        self.log.append(make, term=entry.term)
        return not self.log.fold.is_complete(entry.id)

    def _stands(self, fold: Fold, entry: SnapshotEntry, groups: Sequence[GroupRange]) -> bool:
        """Return whether an intent covers a snapshot, or needs not, because it is here."""
        intents = (
            hold for hold in tuple(fold.holds.values()) if hold.intent and hold.snapshot == entry.id
        )
        complete = fold.is_complete(entry.id)
        return complete or any(groups_cover(one.groups, groups) for one in intents)

    def _refuse_gone(self, fold: Fold, entry: SnapshotEntry) -> None:
        if entry.id in fold.gone or entry.id in fold.expired:
            raise Expired(f"{entry.id} of {self.log.keys.label} was given up here")
        if entry.id not in fold.entries and entry.id in collected(self.log, [entry]):
            raise Expired(f"{entry.id} of {self.log.keys.label} was collected here")

    def _condemned(self, groups: Sequence[GroupRange]) -> frozenset[str]:
        """Return the keys condemned here that belong to some groups.

        While the intent stands, none is added.
        """
        log = self.log
        entries = tuple(log.fold.condemned.values())
        return condemned_among(log.store, log.keys, log.lineage, entries, groups)

    def _copies(
        self,
        offer: Offer,
        others: Sequence[Offer],
        remote: RemoteManifest,
        local: LocalManifest,
    ) -> dict[str, PackCopy]:
        """Return how every pack is copied, by its key at the source."""
        alike = [other for other in others if other.entry.root == offer.entry.root]
        held = {one.name: one for giver in (offer, *alike) for one in giver.held}
        supplies = [offer.supply, *(other.supply for other in alike), *held.values()]
        here = Supply("here", self.log.store, remote=False)
        packs: dict[str, PackCopy] = {}
        for key, row, there in zip(local.keys, local.rows, remote.source_keys(), strict=True):
            sources = [(supply, there) for supply in supplies]
            if not there.startswith(self.log.keys.packs):
                # What another lineage lent may have come here with that lineage.
                sources.insert(0, (here, there))
            packs[there] = PackCopy(key, row, tuple(sources))
        return packs

    def _copy_packs(self, prepared: Prepared, alive: Callable[[], None]) -> CopyTally:
        """Copy all packs that no record here proves to be here."""
        proven = self._proven(prepared.offer.entry, prepared.local.keys)
        packs = [
            replace(copy, alive=alive) for copy in prepared.packs.values() if copy.key not in proven
        ]
        # Workers beside each other begin at different packs, and find what the others have brought.
        first = int(self._runtime.ids.uniform() * len(packs))
        try:
            return self.copy([*packs[first:], *packs[:first]])
        except ELSEWHERE as error:
            raise _NobodyHas(error) from error

    def _proven(self, entry: SnapshotEntry, keys: Sequence[str]) -> set[str]:
        """Return the keys that a record here proves to be here; an intent proves nothing."""
        log, fold = self.log, self.log.fold
        wanted, proven = set(keys), set[str]()
        # Other threads append to the same log meanwhile.
        entries, holds = dict(fold.entries), tuple(fold.holds.values())
        roots: list[SnapshotEntry | HoldEntry] = [
            *(entries[name] for name in fold.roots() if name in entries),
            *(hold for hold in holds if not hold.intent),
        ]
        roots.sort(key=lambda root: (abs(root.term - entry.term), abs(root.save - entry.save)))
        for root in roots[:_PROOFS_READ]:
            if wanted <= proven:
                break
            # A root whose tables cannot be read proves nothing.
            with suppress(NotFound, Corrupt):
                listed = {key for key, _ in log.read_packs(log.store, log.keys, uses_of(root))}
                elsewhere = uses_elsewhere(root) if isinstance(root, SnapshotEntry) else ()
                for uses in elsewhere:
                    listed -= {key for key, _ in log.read_packs(log.store, log.keys, uses)}
                proven |= wanted & listed
        return proven

    def write_manifest(self, prepared: Prepared) -> None:
        """Write leaves and tables, then the root: created, for another worker writes the same.

        Raises:
            Conflict: Another attempt wrote other names of packs.
            FwstoreError: As `pull`.
        """
        remote, local = prepared.remote, prepared.local
        keys, snapshot = self.log.keys, prepared.offer.entry.id
        scheduler = self._runtime.scheduler
        leaves = [(keys.leaf(snapshot, n), leaf) for n, leaf in enumerate(remote.leaves)]
        scheduler.map(lambda leaf: self._create(*leaf), leaves)
        parts = [(keys.pack_table(snapshot, n), part) for n, part in enumerate(local.tables)]
        scheduler.map(lambda part: self._create(*part), parts)
        self._create(keys.root(snapshot), local.root)

    def _create(self, key: str, content: bytes) -> None:
        log = self.log
        if create_once(log.store, key, [content], self._runtime):
            return
        # Nobody may write it again and nobody can use it: without an intent it is garbage.
        for hold in tuple(log.fold.holds.values()):
            if hold.intent and key.startswith(log.keys.snapshot(hold.snapshot)):
                self.withdraw(hold)
        raise Conflict(
            f"{key} in {log.store.url} holds what an attempt wrote that was given up; when it has been collected "
            "here, this snapshot counts as collected here"
        )

    def _publish(self, prepared: Prepared) -> bool:
        """Append the record; False where its bytes were condemned because somebody withdrew the intent."""
        log, offer, local = self.log, prepared.offer, prepared.local
        entry = offer.entry
        publish = local.publish(
            entry, prepared.groups, self._hash, source=offer.site, base=_base_of(offer)
        )

        def make(fold: Fold) -> AnyBody | None:
            return None if fold.is_complete(publish.snapshot) else publish

        log.know_packs(uses_of(publish), local.keys)
        try:
            log.append(make, term=entry.term)
        except AlreadyExists as error:
            raise Expired(f"{entry.id} of {log.keys.label} was given up here") from error
        except Conflict:
            if log.fold.closed is not None:
                raise
            return False
        return True


def _rows_of(table: bytes, key: str, part: PackTableRef) -> tuple[PackInfo, ...]:
    first, rows = parse_pack_table(table)
    if (first, len(rows)) != (part.first_pack, part.packs):
        raise Corrupt(f"{key} does not hold the packs that its root says")
    return rows


def _base_of(offer: Offer) -> str | None:
    """Return what the term of a snapshot began from, as far as the log at its source tells."""
    fold, term = offer.log.fold, offer.entry.term
    opened = fold.opens.get(term)
    return fold.bases.get(term) if opened is None else opened.base


def collected(
    log: Log,
    entries: Iterable[SnapshotEntry],
    lists: dict[str, frozenset[str]] | None = None,
) -> Collection[str]:
    """Return those of some snapshots whose manifests were condemned in a log that no longer remembers them.

    Args:
        log: The log.
        entries: The snapshots.
        lists: Keeps what was read of condemned lists, by token.
    """
    lists = {} if lists is None else lists
    found: set[str] = set()
    condemned = tuple(log.fold.condemned.values())
    for entry in entries:
        own = (GroupRange((entry.term, entry.save), (entry.term, entry.save)),)
        for one in condemned:
            if groups_meet(one.groups, own):
                if one.token not in lists:
                    lists[one.token] = _manifests(log, one)
                if log.keys.snapshot(entry.id) in lists[one.token]:
                    found.add(entry.id)
    return found


def _manifests(log: Log, condemned: CondemnEntry) -> frozenset[str]:
    """Return the prefixes of the manifests in a condemned list."""
    rows = read_condemned(log.store, log.keys, log.lineage, condemned)
    keys = (row.key for row in rows if row.key.startswith(log.keys.snapshots))
    return frozenset(key.rpartition("/")[0] + "/" for key in keys)
