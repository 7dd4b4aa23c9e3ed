"""What all sites have of all runs, and how far each of them is behind: for people and for monitoring.

Invariant: it reads logs and writes nothing; a site that does not answer is named with since when and why, and nothing
is told of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from fwstore.base.errors import FwstoreError
from fwstore.base.topology import Topology
from fwstore.codec.hashing import ContentHash
from fwstore.format.keys import LineageKeys
from fwstore.format.summary import SnapshotEntry
from fwstore.log.fold import Fold
from fwstore.log.history import canonical_chain, view_of
from fwstore.log.lineage import list_lineages, open_log, read_lineage
from fwstore.log.packs import PackTables
from fwstore.log.site import Site
from fwstore.plan.lag import Lag, SiteView, lag_of
from fwstore.plan.replication import Known, Policy, ReplicationPlan, plan_replication
from fwstore.sched import Runtime
from fwstore.wan.line import marked_in
from fwstore.wan.sites import Silence, Sites


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatus:
    """One site.

    Attributes:
        name: Of the site.
        role: "train", "archive" or "witness".
        store: Address of its store, without credentials.
        witness: Whether it votes.
        local: Whether it is the site of this process.
        uuid: What its store says it is, where that is known.
        silent_since: Seconds since the Unix epoch, or None where it answers.
        reason: Why it does not answer, or what else is wrong with it.
        retired: It was retired, and none came after it under its name.
    """

    name: str
    role: str
    store: str
    witness: bool
    local: bool
    uuid: str | None = None
    silent_since: float | None = None
    reason: str = ""
    retired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """A way from one site to another.

    Attributes:
        source: Name of the site that bytes come from.
        target: Name of the site that they go to.
        cap: Bytes per second that all workers together may take; None where there is no cap.
    """

    source: str
    target: str
    cap: float | None


@dataclass(frozen=True, kw_only=True)
class RepositoryStatus:
    """All sites, and how far each is behind with each run.

    Attributes:
        sites: In the order of the topology.
        links: Between all sites that keep checkpoints.
        lags: By run, then by site; sites that do not answer are left out.
        troubles: Logs that could not be read, by site and run.
    """

    sites: tuple[SiteStatus, ...]
    links: tuple[LinkStatus, ...]
    lags: tuple[Lag, ...]
    troubles: tuple[str, ...] = ()


@dataclass
class RunFolds:
    """One run as the logs of the sites that answered tell of it.

    Attributes:
        keys: Where the run is.
        folds: By name of the site.
        names: Of the sites, by uuid.
    """

    keys: LineageKeys
    folds: dict[str, Fold] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def chain(self) -> list[SnapshotEntry]:
        """The canonical history over all of them, newest first."""
        by_uuid = {uuid: self.folds[name] for uuid, name in self.names.items()}
        return canonical_chain(view_of(by_uuid))

    @property
    def saved(self) -> dict[str, SnapshotEntry]:
        """Every snapshot as the site tells of it that saved it, by id."""
        told = [entry for fold in self.folds.values() for entry in fold.entries.values()]
        # What was copied comes first, so that what was saved stays.
        return {entry.id: entry for entry in sorted(told, key=lambda entry: entry.source is None)}

    def offering(self, snapshot: str) -> dict[str, SnapshotEntry]:
        """Return the sites that offer a snapshot, and how their logs tell of it."""
        return {
            name: entry
            for name, fold in self.folds.items()
            for entry in fold.live()
            if entry.id == snapshot
        }

    def holders(self, snapshot: str) -> list[str]:
        """Return the sites from which a snapshot is read: those that have all of it; else all that have some."""
        offering = self.offering(snapshot)
        whole = [name for name, entry in offering.items() if not entry.holds]
        held = [self.names.get(one.site) for entry in offering.values() for one in entry.holds]
        return whole or [*offering, *(name for name in held if name is not None)]

    def plan(self, site: str, policy: Policy | None) -> ReplicationPlan:
        """Return what a site would copy."""
        own = self.folds.get(site)
        others = {name: fold for name, fold in self.folds.items() if name != site}
        gone = {} if own is None else dict.fromkeys(own.gone, "collected there")
        gone |= {} if own is None else dict.fromkeys(own.expired, "expired there")
        offers = {n: {e.id: e for e in fold.live()} for n, fold in others.items()}
        begun = {} if own is None else {e.id: e for e in own.live() if e.holds}
        if begun:
            offers[site] = begun
        known = Known(
            chain=self.chain,
            offers=offers,
            here=() if own is None else set(own.entries) - begun.keys(),
            begun=begun,
            gone=gone,
            marked=marked_in(others.values()),
        )
        return plan_replication(known, policy)


class Overview:
    """Reads what all sites tell.

    Args:
        sites: Of the repository.
        runtime: Time, threads and limits.
        content_hash: The hash that proves objects.
    """

    def __init__(self, sites: Sites, runtime: Runtime, content_hash: ContentHash) -> None:
        self._sites = sites
        self._runtime = runtime
        self._read_packs = PackTables(content_hash)
        self.troubles: list[str] = []

    def status(self, runs: Collection[str] | None = None) -> RepositoryStatus:
        """Return how far every site that answers is behind.

        Args:
            runs: Names of runs; None for all.
        """
        topology, now = self._sites.topology, self._runtime.clock.wall()
        found = self.runs(runs)
        answering = {site.name for site in self._keeping()}
        lags = tuple(
            lag_of(_view(run, name, topology), now)
            for run in found
            for name in topology.sites
            if name in answering
        )
        return RepositoryStatus(
            sites=tuple(self._site(name) for name in topology.sites),
            links=tuple(_links(topology)),
            lags=lags,
            troubles=tuple(self.troubles),
        )

    def runs(self, wanted: Collection[str] | None = None) -> list[RunFolds]:
        """Return every run that a site knows and nobody has deleted, the newest generation of each name.

        Args:
            wanted: Names of runs; None for all.
        """
        found: dict[str, RunFolds] = {}
        for site in self._keeping():
            try:
                for keys in list_lineages(site.store):
                    if wanted is None or keys.name in wanted:
                        self._read(found, site, keys)
            except FwstoreError as error:
                self.troubles.append(f"{site.name}: {error.message}")
        living = [run for run in found.values() if not _is_deleted(run)]
        return sorted(living, key=lambda run: run.keys.name)

    def _keeping(self) -> list[Site]:
        """Return the sites that keep checkpoints and answer, in the order of the topology."""
        found = []
        for config in self._sites.topology.sites.values():
            with suppress(FwstoreError):
                # What is refused is told with the sites.
                answer = self._sites.ask(config.name) if config.keeps else None
                found += [answer] if isinstance(answer, Site) else []
        return found

    def _read(self, found: dict[str, RunFolds], site: Site, keys: LineageKeys) -> None:
        known = found.get(keys.name)
        if known is not None and known.keys.generation > keys.generation:
            return
        if known is None or known.keys.generation < keys.generation:
            known = found[keys.name] = RunFolds(keys)
        try:
            lineage = read_lineage(site.store, keys)
            if lineage is not None:
                log = open_log(site.store, lineage, self._runtime, self._read_packs)
                known.folds[site.name] = log.refresh()
                known.names[site.uuid] = site.name
        except FwstoreError as error:
            self.troubles.append(f"{site.name}, {keys.label}: {error.message}")

    def _site(self, name: str) -> SiteStatus:
        topology = self._sites.topology
        config = topology.sites[name]
        common = SiteStatus(
            name=name,
            role=config.role,
            store=config.store,
            witness=name in topology.witnesses,
            local=name == self._sites.local,
        )
        try:
            answer = self._sites.ask(name)
        except FwstoreError as error:
            # Not silent but refused: another site, or one under two names.
            return replace(common, silent_since=self._runtime.clock.wall(), reason=error.message)
        if isinstance(answer, Silence):
            silent = replace(common, silent_since=answer.since, reason=answer.reason)
            gone = self._sites.retirements.of(answer.uuid)
            reason = answer.reason if gone is None else gone.reason
            return replace(silent, uuid=answer.uuid, retired=answer.retired, reason=reason)
        return replace(common, uuid=answer.uuid)


def _view(run: RunFolds, site: str, topology: Topology) -> SiteView:
    policy = topology.policy(run.keys.name)
    own: Mapping[str, SnapshotEntry] = (
        {entry.id: entry for entry in run.folds[site].live() if not entry.holds}
        if site in run.folds
        else {}
    )
    return SiteView(
        run=run.keys.name,
        site=site,
        chain=run.chain,
        there=own,
        saved=run.saved,
        plan=run.plan(site, policy if site in policy.to else None),
    )


def _links(topology: Topology) -> Iterator[LinkStatus]:
    keeping = [site.name for site in topology.sites.values() if site.keeps]
    for source in keeping:
        for target in keeping:
            if source != target:
                cap = topology.cap(source, target)
                yield LinkStatus(source=source, target=target, cap=cap)


def _is_deleted(run: RunFolds) -> bool:
    return any(fold.closed is not None for fold in run.folds.values())
