"""A repository among several sites: bringing here what is elsewhere, and telling what is where.

Invariant: everything here is done for the local site; other sites are only read.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fwstore.base.errors import Conflict, NotFound, Unavailable
from fwstore.base.units import parse_duration
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.format.keys import parse_snapshot_id
from fwstore.format.summary import SnapshotEntry
from fwstore.log.site import Site
from fwstore.log.term import Term
from fwstore.plan.replication import Policy
from fwstore.store.base import Store
from fwstore.wan.line import Destination, Source
from fwstore.wan.replicator import Replicator
from fwstore.wan.reports import ReplicationReport, RoundPlan
from fwstore.wan.retire import Retirement, retire
from fwstore.wan.sites import Silence
from fwstore.wan.status import Overview, RepositoryStatus, RunFolds
from fwstore.wan.vigil import Vigil

if TYPE_CHECKING:
    from fwstore.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """What became of one checkpoint at one site, and why.

    Attributes:
        site: Name of the site.
        step: Its step.
        snapshot: Its id.
        here: Whether it is complete and on offer there.
        verdict: Why it is there, will be, or will not.
    """

    site: str
    step: int
    snapshot: str
    here: bool
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeSource:
    """What a resume reads from one site.

    Attributes:
        site: Name of the site.
        packs: How many.
        size_bytes: Their bytes.
        bytes_per_second: The cap of the link, or None where it has none.
        seconds: How long that takes at the cap; None where there is none.
    """

    site: str
    packs: int
    size_bytes: int
    bytes_per_second: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ResumePlan:
    """From which step a run would be resumed at this site, and from where its bytes would come.

    Attributes:
        run: Name of the run.
        site: Name of this site.
        step: The step.
        snapshot: Its id.
        wall_time: When it was saved, for display.
        sources: This site first, then others; each pack is counted once.
        wan_bytes: Bytes that cross links.
        seconds: How long the slowest link takes at its cap, all at once; None where a link has no cap.
        unheard: Sites that do not answer: newer steps may be there.
    """

    run: str
    site: str
    step: int
    snapshot: str
    wall_time: float
    sources: tuple[ResumeSource, ...]
    wan_bytes: int
    seconds: float | None
    unheard: tuple[str, ...] = ()


class Replication:
    """What a repository does with other sites; got by `Repository.replication`."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._replicator: Replicator | None = None
        self._overview = Overview(repository.sites, repository.runtime, repository.content_hash)
        self._sources: tuple[str, ...] = ()

    def once(
        self, runs: Collection[str] | None = None, *, at_most: str | float | None = None
    ) -> ReplicationReport:
        """Bring here what this site wants and other sites have, until nothing is left that can be brought now.

        Args:
            runs: Names of runs; None for all.
            at_most: Begin no checkpoint after so long, such as "60s"; the report says whether there is more to bring.

        Raises:
            Conflict: A store is not the site that it stands for.
        """
        self.repository.sites.join(founding=False)
        at_most_s = math.inf if at_most is None else parse_duration(at_most)
        return self._worker().once(runs, at_most_s=at_most_s)

    def retire(self, name: str, reason: str, *, force: bool = False) -> Retirement:
        """Retire a site that was lost for good; see `SeveralSites.retire_site`."""
        repository = self.repository
        return retire(repository.sites, name, reason, repository.runtime, force=force)

    def watch_over(self, term: Term) -> Term:
        """Let a job commit only as long as the topology allows it to be cut off from its witnesses."""
        repository = self.repository
        after_s = repository.topology.cut_off_after_s
        if after_s is not None and len(repository.topology.sites) > 1:
            home = repository.sites.home()
            term.guard = Vigil(repository.sites, home, repository.runtime, after_s).check
        return term

    def plan(self, runs: Collection[str] | None = None) -> RoundPlan:
        """Return what `once` would bring, in order, and what it would not, with why; and what could not be looked at.

        Args:
            runs: Names of runs; None for all.

        Raises:
            NotFound: The local store is no site yet.
        """
        return self._worker().plan(runs)

    def status(self, runs: Collection[str] | None = None) -> RepositoryStatus:
        """Return what every site that answers has, and how far it is behind.

        Args:
            runs: Names of runs; None for all.
        """
        return self._overview.status(runs)

    def explain(self, run: str, step: int) -> list[Whereabouts]:
        """Return where a step is, and why it is not where it is not.

        Raises:
            NotFound: No site that answers knows the run or the step.
        """
        found = self._find(run)
        ids = [entry.id for entry in found.saved.values() if entry.step == step]
        ids += [i for fold in found.folds.values() for i in fold.gone if _step(i) == step]
        if not ids:
            raise NotFound(f"no site that answers knows a step {step} of run {run}")
        keeping = [s.name for s in self.repository.topology.sites.values() if s.keeps]
        return [
            _whereabouts(found, site, snapshot, self._policy_of(run, site))
            for snapshot in dict.fromkeys(ids)
            for site in keeping
        ]

    def resume_plan(self, run: str) -> ResumePlan:
        """Return from which step the run would go on here, and from where each byte would come.

        Nothing is brought by it.

        Raises:
            NotFound: No site that answers has a checkpoint of the run.
        """
        found = self._find(run)
        chain = found.chain
        if not chain:
            raise NotFound(f"no site that answers has a checkpoint of run {run}")
        entry = chain[0]
        sources = tuple(self._resume_sources(found, entry))
        links = [source for source in sources if source.site != self.repository.site]
        slowest = [source.seconds for source in links]
        return ResumePlan(
            run=run,
            site=self.repository.site,
            step=entry.step,
            snapshot=entry.id,
            wall_time=found.saved[entry.id].wall_time,
            sources=sources,
            wan_bytes=sum(source.size_bytes for source in links),
            seconds=max((s for s in slowest if s is not None), default=0.0)
            if None not in slowest
            else None,
            unheard=self._unheard(),
        )

    def _resume_sources(self, found: RunFolds, entry: SnapshotEntry) -> list[ResumeSource]:
        repository = self.repository
        holders = found.holders(entry.id)
        stores = [self._store(name) for name in holders]
        access = repository.access(found.keys.name, found.keys.generation, _lineage(found))
        origin = replace(access.origin, stores=tuple(stores))
        packs = Checkpoint(replace(access, origin=origin), entry).packs()
        here = repository.runtime.scheduler.map(lambda pack: self._is_here(pack.key), packs)
        nearest = next((name for name in holders if name != repository.site), repository.site)
        counted = dict.fromkeys((repository.site, nearest), (0, 0))
        for pack, is_here in zip(packs, here, strict=True):
            site = repository.site if is_here else nearest
            number, size_bytes = counted[site]
            counted[site] = number + 1, size_bytes + pack.size_bytes
        return [
            _source(site, *count, repository.topology.cap(site, repository.site))
            for site, count in counted.items()
            if count[0] or site == repository.site
        ]

    def _is_here(self, key: str) -> bool:
        try:
            self.repository.store.head(key)
        except NotFound:
            return False
        return True

    def _store(self, site: str) -> Store:
        return self.repository.sites.patient_store(site)

    def _find(self, run: str) -> RunFolds:
        found = self._overview.runs([run])
        if not found:
            raise NotFound(f"no site that answers has a run {run}")
        return found[0]

    def _unheard(self) -> tuple[str, ...]:
        sites = self.repository.sites
        answers = sites.answers(s.name for s in sites.topology.sites.values() if s.keeps)
        return tuple(a.name for a in answers if isinstance(a, Silence) and not a.retired)

    def _policy_of(self, run: str, site: str) -> Policy | None:
        policy = self.repository.topology.policy(run)
        return policy if site in policy.to else None

    def _worker(self) -> Replicator:
        """Return what copies here; made anew when other sites answer than before."""
        sites = self.repository.sites
        keeping = [name for name, s in sites.topology.sites.items() if s.keeps]
        others = [name for name in keeping if name != sites.local]
        answers = sites.answers(others)
        sources = [answer for answer in answers if isinstance(answer, Site)]
        # An empty store has nothing that could be missed, and of a retired one nothing is.
        silent = [a for a in answers if isinstance(a, Silence) and not (a.vacant or a.retired)]
        names = (*(site.uuid for site in sources), "", *(s.name for s in silent))
        if self._replicator is None or names != self._sources:
            self._replicator, self._sources = Replicator(self._here(sources, silent)), names
        return self._replicator

    def _here(self, sources: Collection[Site], silent: Collection[Silence]) -> Destination:
        repository = self.repository
        links = repository.links
        return Destination(
            own=replace(repository.sites.home(), store=repository.store),
            sources=tuple(
                Source(site, links.throttle(site), repository.sites.patient_store(site.name))
                for site in sources
            ),
            silent={
                one.name: Unavailable(f"site {one.name} is silent: {one.reason}") for one in silent
            },
            runtime=replace(repository.runtime, limits=links.paced(repository.runtime.limits)),
            content_hash=repository.content_hash,
            policy=lambda run: self._policy_of(run, repository.site),
            retired=lambda uuid: repository.sites.retirements.of(uuid) is not None,
        )


class SeveralSites:
    """What a repository offers to whoever has several sites.

    Attributes:
        replication: Brings here what other sites have, and tells what is where.
    """

    replication: Replication

    def replicate(
        self, *, runs: Collection[str] | None = None, at_most: str | float | None = None
    ) -> ReplicationReport:
        """Bring here what this site wants and other sites have, once; safe beside anything else.

        Args:
            runs: Names of runs; None for all.
            at_most: Begin no checkpoint after so long, such as "60s"; the report says whether there is more to bring.

        Raises:
            Conflict: A store is not the site that it stands for.
        """
        return self.replication.once(runs, at_most=at_most)

    def status(self, *, runs: Collection[str] | None = None) -> RepositoryStatus:
        """Return what every site that answers has, and how far it is behind.

        Args:
            runs: Names of runs; None for all.
        """
        return self.replication.status(runs)

    def retire_site(self, name: str, *, reason: str, force: bool = False) -> Retirement:
        """Retire a site that is lost for good, or was wiped; it cannot be taken back.

        A majority of those who vote must agree, the retired site counted. From then on it has no vote, its jobs are
        fenced, its logs are not read, and another site may be founded under its name.

        Args:
            name: Of the site.
            reason: For people.
            force: Also a site that answers; also where less than a majority can agree. Should the others be alive, and
                go on without this one, a run may have two jobs at once and two histories.

        Raises:
            InvalidInput: It is the local site, is not in the topology, or answers.
            NotFound: It was never met.
            Unavailable: Too few sites answer for a majority.
        """
        return self.replication.retire(name, reason, force=force)


def _whereabouts(found: RunFolds, site: str, snapshot: str, policy: Policy | None) -> Whereabouts:
    entry = found.offering(snapshot).get(site)
    here = entry is not None and not entry.holds
    return Whereabouts(
        site=site,
        step=_step(snapshot),
        snapshot=snapshot,
        here=here,
        verdict=_verdict(found, site, snapshot, policy)
        if not here
        else "saved there"
        if entry is not None and entry.source is None
        else "copied there",
    )


def _verdict(found: RunFolds, site: str, snapshot: str, policy: Policy | None) -> str:
    if site in found.unread:
        return "unknown: its log could not be read"
    if found.deleted_at(site):
        return "the run was deleted there"
    plan = found.plan(site, policy)
    for transfer in plan.transfers:
        if transfer.snapshot == snapshot:
            holders = ", ".join(found.names[uuid] for uuid, _ in transfer.offers)
            return f"will be copied ({transfer.reason}) from {holders}"
    for passed in plan.passed_over:
        if passed.snapshot == snapshot:
            return passed.reason
    own = found.folds.get(site)
    if own is not None and (snapshot in own.gone or snapshot in own.expired):
        return "given up there"
    return "no site that answers has it any more"


def _step(snapshot: str) -> int:
    return parse_snapshot_id(snapshot).step


def _lineage(found: RunFolds) -> str:
    uuids = {fold.lineage for fold in found.folds.values()}
    if len(uuids) > 1:
        raise Conflict(f"{found.keys.label} is another lineage at each site: {', '.join(uuids)}")
    return uuids.pop()


def _source(site: str, packs: int, size_bytes: int, cap: float | None) -> ResumeSource:
    seconds = size_bytes / cap if cap else None
    return ResumeSource(
        site=site, packs=packs, size_bytes=size_bytes, bytes_per_second=cap, seconds=seconds
    )
