"""Ranks of one job at several sites: which of them is home, and the logs of the others.

Invariant: a rank away from home writes nothing before the lineage stands at its own site, byte for byte as at home.
"""

from __future__ import annotations

from collections.abc import Callable

from fwstore.base.errors import InvalidInput, NotFound, Unavailable
from fwstore.format.keys import LineageKeys
from fwstore.format.lineage import Lineage
from fwstore.log.lineage import birth, claim_name, read_lineage
from fwstore.log.log import Log
from fwstore.log.site import Site
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.wan.sites import Sites


class Posts:
    """The sites of a topology as the ranks of one job stand at them.

    Args:
        sites: The topology as this process sees it.
        store: Of the local site.
        runtime: Time, ids, threads.
        hear: Reads the log of another site; raises Conflict for one that was set back.
    """

    def __init__(
        self, sites: Sites, store: Store, runtime: Runtime, hear: Callable[[Site, Lineage], Log]
    ) -> None:
        self._sites = sites
        self._store = store
        self._runtime = runtime
        self._hear = hear
        self._logs: dict[tuple[str, str], Log] = {}

    def away_from(self, home: str, keys: LineageKeys) -> tuple[Site, Site] | None:
        """Return this site and the home of a job, where they are two; the run is known here then.

        Raises:
            InvalidInput: This store is not the home, and no topology says where that is.
            Unavailable: The home does not answer from here.
            Conflict: This site has another lineage under the name.
        """
        alone = len(self._sites.topology.sites) == 1
        own = self._own(alone=alone)
        if own is None or own.uuid == home:
            return None
        if alone:
            raise InvalidInput(
                f"{self._store.url} is not shared by all ranks: it is site {own.uuid}, and rank 0 writes to site {home}; "
                "open the same store on every rank, or a topology that names both"
            )
        found = self._find(home)
        lineage = read_lineage(found.store, keys)
        if lineage is None:
            raise NotFound(f"{keys.label}, of which rank 0 took a term, is not at {found.name}")
        claim_name(self._store, keys.name, self._runtime)
        birth(self._store, lineage, self._runtime)
        return own, found

    def log_at(self, keys: LineageKeys, site: str) -> Log:
        """Return the log of a lineage at another site, by its uuid.

        Raises:
            Unavailable: The site does not answer.
            Conflict: Its log was set back.
        """
        log = self._logs.get((keys.label, site))
        if log is None:
            lineage = read_lineage(self._store, keys)
            if lineage is None:
                raise NotFound(f"{keys.label} is not in {self._store.url}")
            log = self._logs[keys.label, site] = self._hear(self._find(site), lineage)
        return log

    def _own(self, *, alone: bool) -> Site | None:
        if not alone:
            return self._sites.join()
        try:
            return self._sites.home()
        except NotFound:
            # What rank 0 wrote is not here either, which is told to all.
            return None

    def _find(self, uuid: str) -> Site:
        for site in self._sites.reachable(keeping=True):
            if site.uuid == uuid:
                return site
        raise Unavailable(
            f"site {uuid}, at which ranks of this job write, does not answer {self._sites.local}: every site at which "
            "ranks write must be in the topology of each, and reach home"
        )
