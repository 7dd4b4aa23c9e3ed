"""A repository: the runs of one store, opened by its address, or of the local one among several sites.

Invariant: opening reads the local store alone and never writes; a store becomes a repository with its first writer.
Whatever needs the process - connections, threads, caches - is made again after a fork or a pickle.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from fwstore.base.config import REMOTE_THREADS, Limits
from fwstore.base.errors import Corrupt, FwstoreError, InvalidInput, NotFound
from fwstore.base.notices import tell
from fwstore.base.topology import Topology
from fwstore.care.gc import GcOptions, collect
from fwstore.care.packcheck import Level
from fwstore.care.problems import VerifyReport
from fwstore.care.verify import VerifyOptions
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.adapter import default_adapters
from fwstore.checkpoint.references import Reference
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.codec.hashing import ContentHash
from fwstore.content.footers import FooterCache
from fwstore.content.read import ContentReader
from fwstore.content.verified import Origin
from fwstore.format.keys import LineageKeys
from fwstore.format.lineage import Lineage
from fwstore.format.summary import SnapshotEntry
from fwstore.log.lineage import find, list_lineages, read_lineage
from fwstore.log.log import Log
from fwstore.log.packs import PackTables
from fwstore.log.site import Site
from fwstore.log.term import Term
from fwstore.log.terms import Candidate, take_term
from fwstore.maintenance import CollectionReport, Progress, collect_all, verify_all
from fwstore.plan.mark import Garbage
from fwstore.plan.retention import Keep, check_keep
from fwstore.replication import Replication, SeveralSites
from fwstore.run import Run
from fwstore.sched import BufferPool, Runtime, map_shared
from fwstore.sched.runtime import system_runtime
from fwstore.store.address import REMOTE_SCHEMES, open_store
from fwstore.store.base import Store
from fwstore.store.probe import ProbeReport, probe_store
from fwstore.wan.chronicle import Account, Chronicle
from fwstore.wan.heard import Listener
from fwstore.wan.links import Links
from fwstore.wan.offers import Offers
from fwstore.wan.once import OncePerSite
from fwstore.wan.posts import Posts
from fwstore.wan.pull import Puller
from fwstore.wan.sites import Sites, for_site
from fwstore.wan.through import Bringer, ThroughStore


def open(  # noqa: A001 - fwstore.open() reads like the builtin that it resembles
    url: str | os.PathLike[str],
    *,
    site: str | None = None,
    limits: Limits | None = None,
    options: Mapping[str, object] | None = None,
    hash_key: bytes | None = None,
) -> Repository:
    """Open a repository; nothing is written, and it need not exist yet.

    Args:
        url: A directory, or ``file://``, ``s3://bucket/prefix``, ``gs://``, ``az://``, ``memory://name``; or a file
            ``*.toml`` that names several sites, see `Topology`.
        site: With a topology the site of this process; None takes FWSTORE_SITE, or the only one that trains. Else
            the name that the site gets when the first writer creates the repository.
        limits: Bounds on threads, memory and waiting.
        options: Of the store: endpoint, region, credentials, ... With a topology they stand in it.
        hash_key: 32 bytes that key the content hashes; must be given at every open.

    Raises:
        InvalidInput: The address is malformed, or something in the topology may not stand there.
        Conflict: The store is not the site that the topology says it is.
        Unsupported: The store was written by a newer version, or with another hash key.
        PermissionDenied: The credentials do not allow reading.
        Unavailable: The store does not answer.
    """
    if not isinstance(url, str | os.PathLike):
        raise InvalidInput(f"the address of a repository is a text or a path, not {url!r}")
    return Repository(str(url), site=site, limits=limits, options=options, hash_key=hash_key)


class Repository(SeveralSites):
    """The runs of one store. Made by `open`; usable in forked children; pickles by address."""

    def __init__(
        self,
        url: str,
        *,
        site: str | None = None,
        limits: Limits | None = None,
        options: Mapping[str, object] | None = None,
        hash_key: bytes | None = None,
    ) -> None:
        self._again = functools.partial(
            Repository, url, site=site, limits=limits, options=options, hash_key=hash_key
        )
        self._hash = ContentHash(hash_key)
        topology = _topology_of(url, options)
        stores = [url] if topology is None else [s.store for s in topology.sites.values()]
        self.runtime: Runtime = system_runtime(_limits_for(stores, limits or Limits()))
        if topology is None:
            topology = Topology.of_one(url, site or "", options or {})
        elif site is None:
            site = self.runtime.environment.text("FWSTORE_SITE")
        local = topology.local(site)
        self.store: Store = open_store(local.store, for_site(local, self.runtime), local.options)
        self.pool = BufferPool(map_shared)
        self.sites = Sites(topology, local, self.store, self.runtime, self._hash.key_id)
        self.links = Links(topology, local.name, self.store, self.runtime)
        self.posts = Posts(self.sites, self.store, self.runtime, self._hear)
        self.replication = Replication(self)
        self._accesses: dict[str, Access] = {}
        self._chronicles: dict[str, Chronicle] = {}
        self._through: dict[str, ThroughStore] = {}
        try:
            self.sites.home()
        except NotFound:
            # The first writer creates the site.
            return

    def __repr__(self) -> str:
        return f"Repository({self.url!r})"

    def __reduce__(self) -> tuple[Callable[..., Repository], tuple[()]]:
        return self._again, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address of the local store, without credentials."""
        return self.store.url

    @property
    def site(self) -> str:
        """Name of the local site; empty where the store was never given one."""
        return self.sites.local

    @property
    def topology(self) -> Topology:
        """The sites of this repository; only the local one where it was opened by the address of a store."""
        return self.sites.topology

    @property
    def content_hash(self) -> ContentHash:
        """The hash that names chunks and proves objects."""
        return self._hash

    def run(self, name: str) -> Run:
        """Return a run by name; it need not exist, and nothing is read.

        Raises:
            InvalidInput: The name cannot name a run.
        """
        return Run(self, name)

    def runs(self) -> list[str]:
        """Return the names of all runs that exist.

        Raises:
            NotFound: There is no repository at this address.
        """
        self._site()
        return sorted({keys.name for keys in list_lineages(self.store)})

    def gc(
        self,
        *,
        run: str | None = None,
        keep: Keep | None = None,
        dry_run: bool = False,
        quarantine: bool = False,
        progress: Progress | None = None,
    ) -> CollectionReport:
        """Free what retention gave up and what failed saves left behind; safe beside writers and readers.

        Args:
            run: Only this run; None takes all, deleted ones included.
            keep: Expire what these rules do not keep first; None expires nothing.
            dry_run: Explain every byte and change nothing.
            quarantine: Remove also the bad bytes that repairs have kept.
            progress: Called with (runs done, runs in all).

        Raises:
            NotFound: The run or the repository does not exist.
        """
        check_keep(keep)
        self._site()

        def options(explain: Callable[[Garbage], None]) -> GcOptions:
            return GcOptions(keep=keep, dry_run=dry_run, explain=explain, open_log=self.open_log)

        names = None if run is None else [run]
        return collect_all(self, names, options, progress, dry_run=dry_run, quarantine=quarantine)

    def verify(
        self,
        *,
        run: str | None = None,
        step: int | None = None,
        level: Level = "quick",
        sample: float = 0.01,
        repair: bool = False,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Check that what was written can be read, and report everything that is wrong.

        Args:
            run: Only this run; None takes all.
            step: Only the checkpoints of this step.
            level: "quick" follows the digests from the log to the footer of every pack; "sample" also reads
                a share of the chunks; "data" reads every byte.
            sample: The share that "sample" reads, 0 to 1.
            repair: Bring packs and manifests that are damaged or missing here from other sites of the topology,
                proven by what refers to them here. Bad bytes are kept in quarantine; `gc` can remove them.
            progress: Called with bytes of packs checked and, as far as known, to be checked.

        Raises:
            NotFound: The run, the step or the repository does not exist.
            InvalidInput: There is no such level, or the share is not 0 to 1.
            Conflict: A store from which it is to be healed is not the site that it stands for.
        """
        self._site()
        options = VerifyOptions(
            level=level, sample=sample, step=step, repair=repair, progress=progress
        )
        return verify_all(self, None if run is None else [run], options)

    def doctor(self, *, racers: int = 32) -> ProbeReport:
        """Probe whether the store keeps the promises that fwstore rests on; writes a few small objects."""
        return probe_store(self.store, self.runtime, racers=racers)

    def close(self) -> None:
        """Stop threads, the process beside and connections; a second call does nothing."""
        for store in self._through.values():
            store.close()
        try:
            self.runtime.scheduler.close()
        finally:
            if self.runtime.hasher is not None:
                self.runtime.hasher.close()
            self.links.close()
            self.sites.close()
            self.store.close()

    # What runs need of their repository; not for users.

    def find(self, name: str) -> Access | None:
        """Return the newest generation of a run, or None."""
        lineage = find(self.store, name)
        if lineage is None:
            return None
        return self.access(lineage.name, lineage.generation, lineage.lineage)

    def access(self, name: str, generation: int, lineage: str) -> Access:
        """Return what reads and writes one generation of a run; made once per process."""
        keys = LineageKeys(name, generation)
        found = self._accesses.get(keys.label)
        if found is None or found.lineage != lineage:
            found = self._open_access(keys, lineage)
            self._accesses[keys.label] = found
        return found

    def take_term(self, name: str, base: str | None) -> Term:
        """Win the next term of a run for this process."""
        sites = self.sites
        home = replace(sites.join(), store=self.store)
        witnesses, absent = sites.electors()
        candidate = Candidate(
            name=name,
            home=home,
            witnesses=witnesses,
            absent=absent,
            sites=tuple(sites.reachable()),
            holder=self.runtime.environment.text("HOSTNAME") or "unnamed host",
            read_packs=PackTables(self._hash),
            loadable=lambda entry: self._is_whole(name, entry),
            hear=self._hear,
        )
        return take_term(candidate, self.runtime, base=base)

    def account(self, access: Access) -> Account:
        """Return what all sites that answer tell of a run."""
        chronicle = self._chronicles.get(access.lineage)
        if chronicle is None:
            read_packs = PackTables(self._hash)
            chronicle = Chronicle(self.sites, access.log, self.runtime, read_packs)
            self._chronicles[access.lineage] = chronicle
        return chronicle.read()

    def through(self, access: Access) -> Access:
        """Return what reads a lineage here first, and from other sites what is not here."""
        sites = self.sites
        others = [
            self.links.throttled(site, sites.patient_store(site.name))
            for site in sites.reachable(keeping=True)
        ]
        store = self._store_through(access) if others else None
        if store is None:
            return access
        origin = replace(access.origin, stores=(store, *others), runtime=self._paced())
        footers = FooterCache(origin)
        reader = ContentReader(origin, footers, self.pool)
        return replace(access, origin=origin, footers=footers, reader=reader)

    def _store_through(self, access: Access) -> ThroughStore | None:
        """Return the local store with what other sites have of a lineage; made once per process."""
        found = self._through.get(access.lineage)
        lineage = read_lineage(self.store, access.keys)
        if found is None and lineage is not None:
            runtime = self._paced()
            offers = Offers(access.log, lineage, self.sites, self.links, runtime, self._hash)
            puller = Puller(access.log, runtime, self._hash, look_here=True)
            bringer = Bringer(puller, offers.of, OncePerSite(self.store, runtime), runtime)
            found = self._through[access.lineage] = ThroughStore(self.store, bringer)
        return found

    def _paced(self) -> Runtime:
        """Return a runtime whose requests are small enough for the caps of the links to this site."""
        return replace(self.runtime, limits=self.links.paced(self.runtime.limits))

    def borrowed(self, references: Sequence[Reference]) -> dict[str, Access]:
        """Return the lineages from which references borrow packs in turn, by label."""
        labels = {foreign.label for ref in references for foreign in ref.entry.foreign}
        return {label: self._by_label(label) for label in labels}

    def check_own(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint whose bytes stand in another store.

        Raises:
            InvalidInput: Its run is not in this repository.
        """
        keys = checkpoint.access.keys
        lineage = read_lineage(self.store, keys)
        if lineage is None or lineage.lineage != checkpoint.lineage:
            raise InvalidInput(
                f"{checkpoint} is of the repository {checkpoint.access.store.url} and cannot be referred to "
                f"from {self.url}, where its bytes are not; import it there first"
            )

    def retention(self, access: Access, keep: Keep | None) -> Callable[[SnapshotEntry], int]:
        """Return what rank 0 does after every commit."""
        if keep is None:
            return lambda _: 0
        options = GcOptions(keep=keep, orphans=False, open_log=self.open_log)

        def apply(_: SnapshotEntry) -> int:
            try:
                return collect(access.log, options).bytes_deleted
            except FwstoreError as error:
                # The save is durable; what could not be freed now is freed after the next one.
                tell(f"retention of {access.keys.name} is behind: {error}")
                return 0

        return apply

    def _hear(self, site: Site, lineage: Lineage) -> Log:
        """Return the log of another site; one that was set back since it was heard is refused."""
        runtime = site.bounded(self.runtime)
        return Listener(self.store, lineage, runtime, PackTables(self._hash)).hear(site)

    def _is_whole(self, name: str, entry: SnapshotEntry) -> bool:
        """Return whether the manifest of a snapshot can be read; a job begins with one that can."""
        access = self.find(name)
        if access is None or not self._can_be_whole(entry):
            return False
        try:
            manifest = Checkpoint(self.through(access), entry).manifest
            manifest.tensors()
            manifest.all_packs()
        except (Corrupt, NotFound) as error:
            tell(f"{name} does not continue step {entry.step}: {error}")
            return False
        return True

    def _can_be_whole(self, entry: SnapshotEntry) -> bool:
        """Return whether every site answers that has packs of a snapshot which is complete nowhere."""
        answering = (
            {site.uuid for site in self.sites.reachable(keeping=True)} if entry.holds else set()
        )
        silent = {held.site for held in entry.holds} - answering - {self.sites.home().uuid}
        if silent:
            tell(
                f"step {entry.step} is not continued: site {', '.join(sorted(silent))} has packs of it and is silent"
            )
        return not silent

    def _open_access(self, keys: LineageKeys, lineage: str) -> Access:
        origin = Origin(stores=(self.store,), runtime=self.runtime, content_hash=self._hash)
        footers = FooterCache(origin)
        return Access(
            keys=keys,
            lineage=lineage,
            log=Log(self.store, keys, lineage, self.runtime, PackTables(self._hash)),
            origin=origin,
            footers=footers,
            reader=ContentReader(origin, footers, self.pool),
            adapters=default_adapters(),
        )

    def _by_label(self, label: str) -> Access:
        # Not by name: the name may have gone to a newer generation, and the bytes are still borrowed.
        name, _, generation = label.rpartition("@")
        lineage = read_lineage(self.store, LineageKeys(name, int(generation)))
        if lineage is None:
            raise NotFound(f"run {label}, whose bytes are borrowed, is not in {self.url}")
        return self.access(lineage.name, lineage.generation, lineage.lineage)

    def open_log(self, label: str) -> Log | None:
        """Return the log of a lineage by its label, or None where it is not known here."""
        try:
            return self._by_label(label).log
        except NotFound:
            return None

    def _site(self) -> Site:
        try:
            return self.sites.home()
        except NotFound as error:
            raise NotFound(f"there is no fwstore repository at {self.url}") from error


def _topology_of(url: str, options: Mapping[str, object] | None) -> Topology | None:
    """Return the topology that an address names, or None for the address of a store."""
    if not url.endswith(".toml"):
        return None
    if options:
        raise InvalidInput(
            f"options= are those of one store, and {url} names several: write them into the topology; credentials "
            "come from the environment or from profiles"
        )
    return Topology.load(url)


def _limits_for(stores: Sequence[str], limits: Limits) -> Limits:
    """Return the limits with enough threads to hide the round trips of a remote store."""
    remote = any(url.partition("://")[0].lower() in REMOTE_SCHEMES for url in stores)
    return replace(limits, threads=REMOTE_THREADS) if remote and not limits.threads else limits
