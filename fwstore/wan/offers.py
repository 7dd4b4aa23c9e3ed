"""Who has a snapshot, as the logs of the sites that answer tell.

Invariant: what is offered stands in the log of the site that offers it, and that log was not set back since it was
last heard.
"""

from __future__ import annotations

from collections.abc import Mapping

from fwstore.base.errors import FwstoreError
from fwstore.base.notices import tell
from fwstore.codec.hashing import ContentHash
from fwstore.format.lineage import Lineage
from fwstore.log.log import Log
from fwstore.log.packs import PackTables
from fwstore.log.site import Site
from fwstore.sched import Runtime
from fwstore.wan.copy import Supply
from fwstore.wan.heard import Listener
from fwstore.wan.links import Links
from fwstore.wan.pull import Offer, held_at
from fwstore.wan.sites import Sites


class Offers:
    """Finds snapshots of one lineage at other sites.

    Args:
        own: The log of this site; what was heard is kept in its store.
        lineage: Which.
        sites: The others.
        links: That lead here.
        runtime: Time, ids, threads.
        content_hash: The hash that proves objects.
    """

    def __init__(
        self,
        own: Log,
        lineage: Lineage,
        sites: Sites,
        links: Links,
        runtime: Runtime,
        content_hash: ContentHash,
    ) -> None:
        self._sites = sites
        self._links = links
        self._lock = runtime.scheduler.lock()
        self._own_log = own
        self._listener = Listener(own.store, lineage, runtime, PackTables(content_hash))

    def of(self, snapshot: str) -> list[Offer]:
        """Return who has a snapshot now: those that have all of it first, in the order of the topology."""
        sites = self._sites.reachable(keeping=True)
        supplies = {site.uuid: self._supply(site) for site in sites}
        with self._lock:
            found = [self._ask(site, snapshot, supplies) for site in sites]
            found.append(self._begun(snapshot, supplies))
        offers = [offer for offer in found if offer is not None]
        return sorted(offers, key=lambda offer: bool(offer.entry.holds))

    def _supply(self, site: Site) -> Supply:
        store = self._sites.patient_store(site.name)
        return Supply(site.name, store, self._links.throttle(site, urgent=True))

    def _begun(self, snapshot: str, supplies: Mapping[str, Supply]) -> Offer | None:
        """Return what this site itself offers of a snapshot that was committed here and is not complete."""
        home, log = self._sites.home(), self._own_log
        entry = {entry.id: entry for entry in log.refresh().live()}.get(snapshot)
        if entry is None or not entry.holds:
            return None
        here = Supply(home.name, log.store, remote=False)
        return Offer(home.uuid, here, log, entry, held_at(entry, supplies))

    def _ask(self, site: Site, snapshot: str, supplies: Mapping[str, Supply]) -> Offer | None:
        try:
            log = self._listener.hear(site)
        except FwstoreError as error:
            # Others may have it.
            tell(
                f"nothing of {self._listener.lineage.keys.label} is taken from {site.name}: {error.message}"
            )
            return None
        entry = {entry.id: entry for entry in log.fold.live()}.get(snapshot)
        if entry is None:
            return None
        return Offer(site.uuid, supplies[site.uuid], log, entry, held_at(entry, supplies))
