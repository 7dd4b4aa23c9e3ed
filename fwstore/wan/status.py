"""What all sites have of all runs, and how far each of them is behind: for people and for monitoring.

Invariant: it reads logs and writes nothing; a site that does not answer is named with since when and why, and nothing
is told of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from fwstore.log.log import Log
from fwstore.log.packs import PackTables
from fwstore.log.site import Site
from fwstore.plan.lag import Lag, SiteView, lag_of
from fwstore.plan.replication import Policy, ReplicationPlan, plan_replication
from fwstore.sched import Runtime
from fwstore.wan.line import known_of
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
        lags: By run, then by site; sites whose log was not read or that have deleted the run are left out.
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
        logs: By name of the site; those of the run's one lineage.
        names: Of the sites, by uuid.
        unread: Names of the sites that may have it and whose log was not read.
        condemned: By name of the site, what was read of its condemned lists.
    """

    keys: LineageKeys
    logs: dict[str, Log] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    condemned: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)

    @property
    def folds(self) -> dict[str, Fold]:
        """What the logs say, by name of the site."""
        return {name: log.fold for name, log in self.logs.items()}

    @property
    def chain(self) -> list[SnapshotEntry]:
        """The canonical history over all of them, newest first."""
        return canonical_chain(view_of({uuid: self.logs[n].fold for uuid, n in self.names.items()}))

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

    def deleted_at(self, site: str) -> bool:
        """Return whether a site has deleted the run: nothing of it is wanted there any more."""
        return site in self.logs and self.logs[site].fold.closed is not None

    def plan(self, site: str, policy: Policy | None) -> ReplicationPlan:
        """Return what a site would copy, by the rules by which it does.

        Raises:
            Corrupt: A condemned list of the site is damaged.
            Unavailable: It did not answer.
        """
        if self.deleted_at(site):
            return ReplicationPlan((), ())
        uuids = {name: uuid for uuid, name in self.names.items()}
        others = {uuid: self.logs[name].fold for uuid, name in self.names.items() if name != site}
        lists = self.condemned.setdefault(site, {})
        known = known_of(uuids.get(site, ""), self.logs.get(site), others, lists)
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
        self._condemned: dict[str, dict[str, dict[str, frozenset[str]]]] = {}
        self.troubles: list[str] = []

    def status(self, runs: Collection[str] | None = None) -> RepositoryStatus:
        """Return how far every site that answers is behind.

        Args:
            runs: Names of runs; None for all.
        """
        topology, now = self._sites.topology, self._runtime.clock.wall()
        lags = [
            self._lag(run, site.name, now)
            for run in self.runs(runs)
            for site in topology.sites.values()
            if site.keeps and site.name not in run.unread and not run.deleted_at(site.name)
        ]
        return RepositoryStatus(
            sites=tuple(self._site(name) for name in topology.sites),
            links=tuple(_links(topology)),
            lags=tuple(lag for lag in lags if lag is not None),
            troubles=tuple(self.troubles),
        )

    def runs(self, wanted: Collection[str] | None = None) -> list[RunFolds]:
        """Return every run that a site knows and not all have deleted, the newest generation of each name.

        Args:
            wanted: Names of runs; None for all.
        """
        self.troubles, sites, newest = [], self._keeping(), dict[str, LineageKeys]()
        for site in sites:
            try:
                for keys in list_lineages(site.store):
                    known = newest.setdefault(keys.name, keys)
                    newest[keys.name] = max(known, keys, key=lambda one: one.generation)
            except FwstoreError as error:
                self.troubles.append(f"{site.name}: {error.message}")
        names = sorted(name for name in newest if wanted is None or name in wanted)
        found = [self._read(newest[name], sites) for name in names]
        return [run for run in found if not _is_deleted(run)]

    def _keeping(self) -> list[Site]:
        """Return the sites that keep checkpoints and answer, in the order of the topology."""
        found = []
        for config in self._sites.topology.sites.values():
            with suppress(FwstoreError):
                # What is refused is told with the sites.
                answer = self._sites.ask(config.name) if config.keeps else None
                found += [answer] if isinstance(answer, Site) else []
        return found

    def _read(self, keys: LineageKeys, sites: Sequence[Site]) -> RunFolds:
        """Read a run at all sites, also where it was deleted and no catalog lists it any more."""
        kept = self._condemned.setdefault(keys.label, {})
        run = RunFolds(keys, condemned=kept)
        run.unread = {site.name for site in self._sites.topology.sites.values() if site.keeps}
        for site, log in zip(sites, self._logs(keys, sites), strict=True):
            if isinstance(log, FwstoreError):
                self.troubles.append(f"{site.name}, {keys.label}: {log.message}")
                continue
            run.unread.discard(site.name)
            if log is not None:
                run.logs[site.name], run.names[site.uuid] = log, site.name
        return run

    def _logs(self, keys: LineageKeys, sites: Sequence[Site]) -> list[Log | FwstoreError | None]:
        """Return the log of a run at every site, None where it is not known, or why it could not be read."""

        def read(site: Site) -> Log | FwstoreError | None:
            try:
                lineage = read_lineage(site.store, keys)
                if lineage is None:
                    return None
                log = open_log(site.store, lineage, self._runtime, self._read_packs)
                log.refresh()
                return log
            except FwstoreError as error:
                return error

        return self._runtime.scheduler.map(read, sites)

    def _lag(self, run: RunFolds, site: str, now: float) -> Lag | None:
        try:
            return lag_of(_view(run, site, self._sites.topology), now)
        except FwstoreError as error:
            self.troubles.append(f"{site}, {run.keys.label}: {error.message}")
            return None

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
    return bool(run.logs) and all(run.deleted_at(site) for site in run.logs)
