"""Healing packs and manifests of one site with what other sites have.

Invariant: what is written has the digest that leads to it from a record here, whoever gave it; what stood in its place
was kept before, one atomic write replaces it, and nothing is deleted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from fwstore.base.config import LEAF_BYTES_MAX, ROOT_BYTES_MAX
from fwstore.base.errors import Conflict, Corrupt, Expired, FwstoreError, InvalidInput, NotFound
from fwstore.care.problems import Repair
from fwstore.care.quarantine import Quarantine
from fwstore.codec.hashing import ContentHash
from fwstore.content.footers import Pack
from fwstore.content.lineages import keys_of
from fwstore.content.verified import Origin, read_object
from fwstore.format.columnar import TABLE_BYTES_MAX
from fwstore.format.groups import GroupRange
from fwstore.format.keys import LineageKeys, parse_pack_key
from fwstore.format.packtable import PackInfo, encode_pack_table, parse_pack_table
from fwstore.format.record import ObjectRef
from fwstore.format.root import LineageRef, Root, encode_root, parse_root
from fwstore.format.summary import SnapshotEntry
from fwstore.log.condemned import condemned_among
from fwstore.log.log import Log
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.wan.copy import Copier, PackCopy, Supply
from fwstore.wan.localise import own_row

OpenLog = Callable[[str], Log | None]
Brought = tuple[Iterable[str], str | None]

# Of so many lineages every order is tried in which a root may name them.
_ORDERED_MAX = 4


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The other sites of a topology that keep checkpoints.

    Attributes:
        supplies: Those that answer, the nearest first.
        silent: Names of the others, each with why it cannot be asked.
    """

    supplies: tuple[Supply, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)

    def told(self, told: Sequence[str]) -> str:
        """Return why nothing could be had, from what those said who answer."""
        silent = [f"site {name} is silent: {why}" for name, why in self.silent.items()]
        return "; ".join([*told, *silent]) or "there is no other site that could have it"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An object of a manifest.

    Attributes:
        key: Its key, at every site.
        digest: What proves it here.
        size: Its bytes.
        limit_bytes: Most bytes that an object of its kind may have at another site.
        remake: Makes of what stands elsewhere what may have stood here.
    """

    key: str
    digest: bytes
    size: int
    limit_bytes: int
    remake: Callable[[bytes], Iterable[bytes]]


class Healer:
    """Heals objects that the log of one lineage leads to.

    Args:
        log: The log, whose store is healed.
        runtime: Threads and limits.
        content_hash: The hash that proves objects.
        elsewhere: Where good bytes may be.
        open_log: Opens the log of another lineage at this site by its label: one that lent packs.
    """

    def __init__(
        self,
        log: Log,
        runtime: Runtime,
        content_hash: ContentHash,
        elsewhere: Elsewhere,
        open_log: OpenLog,
    ) -> None:
        self._log = log
        self._runtime = runtime
        self._hash = content_hash
        self._elsewhere = elsewhere
        self._open_log = open_log
        self._quarantine = Quarantine(log.store, content_hash)
        self._copier = Copier(log.store, runtime, content_hash)

    @property
    def packs_at_once(self) -> int:
        """So many packs may be healed side by side."""
        return self._copier.packs_at_once

    def pack(self, pack: Pack) -> Repair:
        """Heal a pack."""
        return self._attempt(pack.key, lambda: self._bring_pack(pack))

    def root(self, entry: SnapshotEntry) -> Repair:
        """Heal the root of a snapshot."""
        key, digest = self._log.keys.root(entry.id), bytes.fromhex(entry.root.digest)
        wanted = _Wanted(
            key, digest, entry.root.size, ROOT_BYTES_MAX, lambda stored: _own_roots(stored, entry)
        )
        return self._attempt(key, lambda: self._bring_part(entry, wanted))

    def leaf(self, entry: SnapshotEntry, root: Root, number: int) -> Repair:
        """Heal a leaf; it is the same at every site."""
        key, leaf = self._log.keys.leaf(entry.id, number), root.leaves[number]
        wanted = _Wanted(key, leaf.digest, leaf.size, LEAF_BYTES_MAX, lambda _: ())
        return self._attempt(key, lambda: self._bring_part(entry, wanted))

    def table(self, entry: SnapshotEntry, root: Root, number: int) -> Repair:
        """Heal a part of the pack table of a snapshot."""
        key, part = self._log.keys.pack_table(entry.id, number), root.pack_tables[number]
        wanted = _Wanted(
            key,
            part.digest,
            part.size,
            TABLE_BYTES_MAX,
            lambda stored: self._own_tables(stored, entry, root),
        )
        return self._attempt(key, lambda: self._bring_part(entry, wanted))

    def held(self, entry: SnapshotEntry, key: str, part: ObjectRef) -> Repair:
        """Heal a list of packs that another site holds; it is the same at both."""
        digest = bytes.fromhex(part.digest)
        wanted = _Wanted(key, digest, part.size, TABLE_BYTES_MAX, lambda _: ())
        return self._attempt(key, lambda: self._bring_part(entry, wanted))

    def _attempt(self, key: str, bring: Callable[[], Brought]) -> Repair:
        run = self._log.keys.name
        try:
            try:
                sites, kept = bring()
            except Conflict:
                # Another process replaced it just now; then it is found whole.
                sites, kept = bring()
        except FwstoreError as error:
            return Repair(run=run, key=key, reason=error.message)
        return Repair(run=run, key=key, healed=True, sites=tuple(sorted(sites)), quarantined=kept)

    def _bring_pack(self, pack: Pack) -> Brought:
        name, kept = parse_pack_key(pack.key), list[str | None]()
        lender = LineageKeys(name.name, name.generation).label

        def before() -> None:
            self._refuse_given_up(lender, pack.key, (name.term, name.save))
            kept.append(self._quarantine.keep(pack.key))

        supplies = self._names_elsewhere(pack)
        tally = self._copier.copy([PackCopy(pack.key, pack.info, supplies, before)])
        return tally.sources, kept[0] if kept else None

    def _names_elsewhere(self, pack: Pack) -> tuple[tuple[Supply, str], ...]:
        """Return who has a pack under which key; elsewhere it may have another incarnation or be of the borrower."""
        first = replace(parse_pack_key(pack.key), incarnation=0)
        own = replace(first, name=self._log.keys.name, generation=self._log.keys.generation)
        bare = dict.fromkeys(
            LineageKeys(one.name, one.generation).pack(one) for one in (first, own)
        )
        found: list[tuple[Supply, str]] = []
        told: list[str] = []
        for supply in self._elsewhere.supplies:
            try:
                keys = [info.key for prefix in bare for info in supply.store.list(prefix)]
            except FwstoreError as error:
                told.append(f"{supply.name}: {error.message}")
                continue
            keys = [key for key in keys if key in bare or key.rpartition(".")[0] in bare]
            found += [(supply, key) for key in sorted(keys, key=lambda key: key != pack.key)]
            told += [] if keys else [f"{supply.name} does not have it"]
        if not found:
            raise NotFound(self._elsewhere.told(told))
        return tuple(found)

    def _bring_part(self, entry: SnapshotEntry, wanted: _Wanted) -> Brought:
        """Bring an object of a manifest, unless another process has done so meanwhile."""
        if self._is_whole(wanted):
            return (), None
        site, content = self._first_right(wanted)
        self._refuse_given_up(self._log.keys.label, wanted.key, (entry.term, entry.save))
        kept = self._quarantine.keep(wanted.key)
        self._log.store.put(wanted.key, [content], mode="overwrite")
        return (site,), kept

    def _first_right(self, wanted: _Wanted) -> tuple[str, bytes]:
        told: dict[str, str] = {}
        for supply, again in itertools.product(self._elsewhere.supplies, (False, True)):
            if supply.name in told:
                continue
            # Outside of the try: what fails here is not the source but the own store, which keeps the leases.
            supply.throttle(wanted.size)
            try:
                return supply.name, self._from_one(supply.store, wanted)
            except Corrupt:
                if again:
                    told[supply.name] = f"{supply.name} does not have the bytes that were written"
            except FwstoreError as error:
                told[supply.name] = f"{supply.name}: {error.message}"
        raise NotFound(self._elsewhere.told([*told.values()]))

    def _from_one(self, store: Store, wanted: _Wanted) -> bytes:
        """Return the object as a site has it, or as it can be made of that: names of packs differ between sites."""
        stored = store.get(wanted.key, limit_bytes=wanted.limit_bytes)
        if self._hash.digest(stored) == wanted.digest:
            return stored
        for made in wanted.remake(stored):
            if self._hash.digest(made) == wanted.digest:
                return made
        raise Corrupt(f"{wanted.key} is not what was written")

    def _is_whole(self, wanted: _Wanted) -> bool:
        origin = Origin(stores=(self._log.store,), runtime=self._runtime, content_hash=self._hash)
        try:
            read_object(origin, wanted.key, wanted.digest, wanted.size)
        except (NotFound, Corrupt):
            return False
        return True

    def _refuse_given_up(self, label: str, key: str, group: tuple[int, int]) -> None:
        """Refuse to write a key that was condemned here: it may be deleted at any time, and nothing needs it."""
        own = label == self._log.keys.label
        log = self._log if own else self._open_log(label)
        if log is None:
            raise NotFound(f"{label}, which lent {key}, is not known here")
        entries = tuple(log.refresh().condemned.values())
        groups = (GroupRange(group, group),)
        if key in condemned_among(log.store, log.keys, log.lineage, entries, groups):
            raise Expired(f"{key} was given up here while it was to be healed")

    def _own_tables(self, stored: bytes, entry: SnapshotEntry, root: Root) -> Iterator[bytes]:
        log = self._log
        first, rows = parse_pack_table(stored)
        entries = tuple(log.fold.condemned.values())
        condemned = condemned_among(log.store, log.keys, log.lineage, entries, entry.groups)
        yield encode_pack_table(first, [own_row(row, log.keys, condemned) for row in rows])
        if len(root.lineages) > 1:
            lineages = [keys_of(lineage) for lineage in root.lineages]
            lent = self._runtime.scheduler.map(lambda row: self._lent(row, lineages), rows)
            yield encode_pack_table(first, lent)

    def _lent(self, row: PackInfo, lineages: Sequence[LineageKeys]) -> PackInfo:
        """Return the row under the lineage whose pack is here: elsewhere all packs are of the borrower."""
        named = [replace(row, lineage=n, incarnation=0) for n in range(len(lineages))]
        return next((one for one in named if self._is_here(one.key(lineages))), named[0])

    def _is_here(self, key: str) -> bool:
        try:
            self._log.store.head(key)
        except NotFound:
            return False
        return True


def _own_roots(stored: bytes, entry: SnapshotEntry) -> Iterator[bytes]:
    """Yield roots that name the tables that the record here names, and lineages that may have lent packs here."""
    root = parse_root(stored)
    if len(root.pack_tables) != len(entry.tables):
        return
    tables = tuple(
        msgspec.structs.replace(part, size=own.size, digest=bytes.fromhex(own.digest))
        for part, own in zip(root.pack_tables, entry.tables, strict=True)
    )
    foreign = dict.fromkeys(LineageRef(one.label, one.lineage) for one in entry.foreign)
    orders = itertools.permutations(foreign) if len(foreign) <= _ORDERED_MAX else [tuple(foreign)]
    for lineages in [root.lineages, *((root.lineage, *order) for order in orders)]:
        try:
            yield encode_root(msgspec.structs.replace(root, pack_tables=tables, lineages=lineages))
        except InvalidInput as error:
            raise Corrupt(f"it cannot be the root of {entry.id}: {error}") from error
