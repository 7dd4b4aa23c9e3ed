"""Who has a snapshot, as the logs of the sites that answer tell.

Invariant: what is offered stands in the log of the site that offers it, and that log was not set back since it was
last heard.
"""

from __future__ import annotations

from fwstore.base.errors import FwstoreError
from fwstore.base.notices import tell
from fwstore.codec.hashing import ContentHash
from fwstore.format.lineage import Lineage
from fwstore.log.packs import PackTables
from fwstore.log.site import Site
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.wan.copy import Supply
from fwstore.wan.heard import Listener
from fwstore.wan.links import Links
from fwstore.wan.pull import Offer
from fwstore.wan.sites import Sites


class Offers:
    """Finds snapshots of one lineage at other sites.

    Args:
        own: The store of this site, where what was heard is kept.
        lineage: Which.
        sites: The others.
        links: That lead here.
        runtime: Time, ids, threads.
        content_hash: The hash that proves objects.
    """

    def __init__(
        self,
        own: Store,
        lineage: Lineage,
        sites: Sites,
        links: Links,
        runtime: Runtime,
        content_hash: ContentHash,
    ) -> None:
        self._sites = sites
        self._links = links
        self._lock = runtime.scheduler.lock()
        self._listener = Listener(own, lineage, runtime, PackTables(content_hash))

    def of(self, snapshot: str) -> list[Offer]:
        """Return who has a snapshot now, in the order of the topology."""
        with self._lock:
            found = [self._ask(site, snapshot) for site in self._sites.reachable(keeping=True)]
        return [offer for offer in found if offer is not None]

    def _ask(self, site: Site, snapshot: str) -> Offer | None:
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
        store = self._sites.patient_store(site.name)
        supply = Supply(site.name, store, self._links.throttle(site, urgent=True))
        return Offer(site.uuid, supply, log, entry)
