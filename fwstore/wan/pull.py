"""Copying one snapshot to this site, from intent to publish.

Invariant: a `publish` is appended when every object of the snapshot is durable here and was verified here, and nothing
is written before an intent that covers it counts. Whoever stops anywhere leaves what the next worker goes on with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fwstore.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Expired,
    FwstoreError,
    InternalError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from fwstore.base.ids import write_id
from fwstore.codec.hashing import ContentHash
from fwstore.content.verified import Origin, read_object
from fwstore.format.groups import GroupRange, groups_cover, groups_meet
from fwstore.format.packtable import PackInfo, parse_pack_table
from fwstore.format.record import AnyBody, Hold, Publish, Unpin
from fwstore.format.root import parse_root
from fwstore.format.summary import CondemnEntry, HoldEntry, SnapshotEntry
from fwstore.log.condemned import read_condemned
from fwstore.log.fold import Fold, uses_of
from fwstore.log.log import Log
from fwstore.sched import Runtime
from fwstore.store.create import create_once
from fwstore.wan.copy import Copier, CopyTally, PackCopy, Supply
from fwstore.wan.localise import LocalManifest, RemoteManifest, check_identity, localise

# Neighbours in time list nearly all packs that were here before; what they miss is looked at itself.
_PROOFS_READ = 8
_ATTEMPTS = 3
_ELSEWHERE = (NotFound, Corrupt, Unavailable, PermissionDenied)


@dataclass(frozen=True, slots=True)
class Offer:
    """A site that has a snapshot.

    Attributes:
        site: Its uuid.
        supply: Its store.
        log: Its log, as far as it was read.
        entry: The snapshot as that log tells of it.
    """

    site: str
    supply: Supply
    log: Log
    entry: SnapshotEntry


@dataclass(frozen=True, slots=True)
class Pulled:
    """What it took to bring a snapshot here.

    Attributes:
        source: Uuid of the site that its record names; empty where another worker was first.
        tally: Packs and bytes.
    """

    source: str
    tally: CopyTally


class Puller:
    """Brings snapshots of one lineage to one site.

    Args:
        log: The own log of the lineage.
        runtime: Threads and limits.
        content_hash: The hash that proves objects.
    """

    def __init__(self, log: Log, runtime: Runtime, content_hash: ContentHash) -> None:
        self._log = log
        self._runtime = runtime
        self._hash = content_hash
        self._copier = Copier(log.store, runtime, content_hash)

    def pull(self, offers: Sequence[Offer]) -> Pulled:
        """Copy a snapshot from the first site that can give it, with the help of the others.

        Raises:
            Expired: It was given up here, or is gone at every site that had it.
            Corrupt: No site has what its log tells of; the first one's damage is named.
            Unavailable: No site that has it answers, or the own store does not.
            Conflict: The lineage was deleted here, or a collection was in the way again and again.
        """
        failure: FwstoreError | None = None
        for number, offer in enumerate(offers):
            others = [*offers[number + 1 :], *offers[:number]]
            try:
                return self._pull_from(offer, others)
            except Expired:
                raise
            except _ELSEWHERE as error:
                failure = failure or self._judged(offer, error)
        raise failure or InternalError("a snapshot was to be pulled from nowhere")

    def withdraw(self, intent: HoldEntry) -> None:
        """End an intent that nobody will bring to its end; what was copied is garbage then."""

        def make(fold: Fold) -> AnyBody | None:
            return Unpin(intent.hold) if intent.hold in fold.holds else None

        self._log.append(make)

    def _judged(self, offer: Offer, error: FwstoreError) -> FwstoreError:
        """Return what an error at a source means now: what is missing there may have been collected."""
        if isinstance(error, NotFound):
            with suppress(FwstoreError):
                return offer.log.why_missing(offer.entry.id)
        return error

    def _pull_from(self, offer: Offer, others: Sequence[Offer]) -> Pulled:
        remote = self._read_manifest(offer)
        groups = remote.groups(offer.entry)
        tally = CopyTally()
        for _ in range(_ATTEMPTS):
            if not self._intend(offer, groups):
                return Pulled("", tally)
            local = localise(remote, self._log.keys, self._condemned(groups), self._hash)
            tally.add(self._copy_packs(offer, others, remote, local))
            self._write_manifest(offer, remote, local)
            publish = local.publish(offer.entry, groups, offer.site, self._hash)
            if self._publish(publish, offer.entry, local):
                return Pulled(offer.site, tally)
        raise Conflict(
            f"{offer.entry.id} of {self._log.keys.label} was collected here {_ATTEMPTS} times while it was copied: "
            "another worker withdraws what this one brings"
        )

    def _read_manifest(self, offer: Offer) -> RemoteManifest:
        keys, entry = self._log.keys, offer.entry
        stored = self._read(offer, keys.root(entry.id), entry.root.digest, entry.root.size)
        root = parse_root(stored)
        check_identity(root, keys, self._log.lineage, entry)

        def read_part(number: int) -> tuple[bytes, tuple[PackInfo, ...]]:
            part = root.pack_tables[number]
            key = keys.pack_table(entry.id, number)
            table = self._read(offer, key, part.digest.hex(), part.size)
            first, rows = parse_pack_table(table)
            if (first, len(rows)) != (part.first_pack, part.packs):
                raise Corrupt(f"{key} does not hold the packs that its root says")
            return table, rows

        parts = self._runtime.scheduler.map(read_part, range(len(root.pack_tables)))
        return RemoteManifest(root, stored, tuple(parts))

    def _read(self, offer: Offer, key: str, digest: str, limit_bytes: int) -> bytes:
        offer.supply.throttle(limit_bytes)
        origin = Origin(
            stores=(offer.supply.store,), runtime=self._runtime, content_hash=self._hash
        )
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
            standing = (hold for hold in fold.holds.values() if hold.snapshot == entry.id)
            covered = any(hold.intent and groups_cover(hold.groups, groups) for hold in standing)
            return None if covered or entry.id in fold.entries else intent

        # What is believed to stand may have been withdrawn, and its keys condemned.
        self._log.refresh()
        self._log.append(make, term=entry.term)
        return entry.id not in self._log.fold.entries

    def _refuse_gone(self, fold: Fold, entry: SnapshotEntry) -> None:
        if entry.id in fold.gone or entry.id in fold.expired:
            raise Expired(f"{entry.id} of {self._log.keys.label} was given up here")
        if entry.id not in fold.entries and entry.id in collected(self._log, [entry]):
            raise Expired(f"{entry.id} of {self._log.keys.label} was collected here")

    def _condemned(self, groups: Sequence[GroupRange]) -> frozenset[str]:
        """Return the keys condemned here that belong to some groups.

        While the intent stands, none is added.
        """
        log = self._log
        lists = (
            read_condemned(log.store, log.keys, log.lineage, entry)
            for entry in tuple(log.fold.condemned.values())
            if groups_meet(entry.groups, groups)
        )
        return frozenset(row.key for rows in lists for row in rows)

    def _copy_packs(
        self,
        offer: Offer,
        others: Sequence[Offer],
        remote: RemoteManifest,
        local: LocalManifest,
    ) -> CopyTally:
        proven = self._proven(offer.entry, local.keys)
        alike = [other for other in others if other.entry.root == offer.entry.root]
        supplies = [offer.supply, *(other.supply for other in alike)]
        here = Supply("here", self._log.store, remote=False)
        packs = []
        for key, row, there in zip(local.keys, local.rows, remote.source_keys(), strict=True):
            if key in proven:
                continue
            sources = [(supply, there) for supply in supplies]
            if not there.startswith(self._log.keys.packs):
                # What another lineage lent may have come here with that lineage.
                sources.insert(0, (here, there))
            packs.append(PackCopy(key, row, tuple(sources)))
        # Workers beside each other begin at different packs, and find what the others have brought.
        first = int(self._runtime.ids.uniform() * len(packs))
        return self._copier.copy([*packs[first:], *packs[:first]])

    def _proven(self, entry: SnapshotEntry, keys: Sequence[str]) -> set[str]:
        """Return the keys that a record here proves to be here; an intent proves nothing."""
        log, fold = self._log, self._log.fold
        wanted, proven = set(keys), set[str]()
        holds = [hold for hold in fold.holds.values() if not hold.intent]
        roots: list[SnapshotEntry | HoldEntry] = [
            *(fold.entries[name] for name in fold.roots()),
            *holds,
        ]
        roots.sort(key=lambda root: (abs(root.term - entry.term), abs(root.save - entry.save)))
        for root in roots[:_PROOFS_READ]:
            if wanted <= proven:
                break
            # A root whose tables cannot be read proves nothing.
            with suppress(NotFound, Corrupt):
                listed = log.read_packs(log.store, log.keys, uses_of(root))
                proven |= wanted.intersection(key for key, _ in listed)
        return proven

    def _write_manifest(self, offer: Offer, remote: RemoteManifest, local: LocalManifest) -> None:
        """Write leaves and tables, then the root: created, for another worker writes the same."""
        keys, snapshot = self._log.keys, offer.entry.id

        def copy_leaf(number: int) -> None:
            leaf, key = remote.root.leaves[number], keys.leaf(snapshot, number)
            self._create(key, self._read(offer, key, leaf.digest.hex(), leaf.size))

        scheduler = self._runtime.scheduler
        scheduler.map(copy_leaf, range(len(remote.root.leaves)))
        parts = [(keys.pack_table(snapshot, n), part) for n, part in enumerate(local.tables)]
        scheduler.map(lambda part: self._create(*part), parts)
        self._create(keys.root(snapshot), local.root)

    def _create(self, key: str, content: bytes) -> None:
        if not create_once(self._log.store, key, [content], self._runtime):
            raise Conflict(
                f"{key} in {self._log.store.url} holds what another attempt wrote under other names of packs: once its "
                "intent is withdrawn, collect the run here"
            )

    def _publish(self, publish: Publish, entry: SnapshotEntry, local: LocalManifest) -> bool:
        """Append the record; False where its bytes were condemned because somebody withdrew the intent."""
        log = self._log

        def make(fold: Fold) -> AnyBody | None:
            return None if publish.snapshot in fold.entries else publish

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


def collected(log: Log, entries: Iterable[SnapshotEntry]) -> Collection[str]:
    """Return those of some snapshots whose manifests were condemned in a log that no longer remembers them."""
    wanted = {log.keys.snapshot(entry.id): entry for entry in entries}
    groups = {
        entry.id: (GroupRange(g := (entry.term, entry.save), g),) for entry in wanted.values()
    }
    lists: dict[str, CondemnEntry] = {}
    for entry in wanted.values():
        for condemned in tuple(log.fold.condemned.values()):
            if groups_meet(condemned.groups, groups[entry.id]):
                lists[condemned.token] = condemned
    found: set[str] = set()
    for condemned in lists.values():
        for row in read_condemned(log.store, log.keys, log.lineage, condemned):
            prefix = row.key.rpartition("/")[0] + "/"
            if prefix in wanted:
                found.add(wanted[prefix].id)
    return found
