"""The links that lead to a site: what crosses them, and the caps that hold for it.

Invariant: what this process asks of another site of the packs and manifests of checkpoints is asked through here, so
it is counted, and waits where the link has a cap. Logs, catalogs and votes are small, and do not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fwstore.base.config import Limits
from fwstore.base.topology import Topology
from fwstore.base.units import MIB
from fwstore.log.site import Site
from fwstore.sched import Lock, Runtime
from fwstore.store.base import Store
from fwstore.wan.around import ThrottledStore
from fwstore.wan.rate import LinkRate, RateStatistics

# Requests of so much of a second keep the cap within 5 % over ten seconds, also where eight workers share it.
_REQUEST_S = 0.02
_REQUEST_MIN_BYTES = MIB


class Links:
    """What this process fetches from other sites.

    Args:
        topology: Names the caps.
        local: Name of the site of this process.
        store: Its store.
        runtime: Time, ids, threads.
    """

    def __init__(self, topology: Topology, local: str, store: Store, runtime: Runtime) -> None:
        self._topology = topology
        self._local = local
        self._store = store
        self._runtime = runtime
        self._lock = Lock()
        self._rates: dict[tuple[str, bool, bool], LinkRate] = {}
        self._counted: dict[str, int] = {}

    def throttle(
        self, site: Site, *, urgent: bool = False, spare: bool = False
    ) -> Callable[[int], None]:
        """Return what waits until bytes may cross the link from a site, and counts them.

        Args:
            site: Where they come from.
            urgent: Somebody waits for them.
            spare: They can wait for all others.
        """
        key = (site.name, urgent, spare)
        name, cap = site.name, self._topology.cap(site.name, self._local)
        with self._lock:
            self._counted.setdefault(name, 0)
            if cap is not None and key not in self._rates:
                self._rates[key] = LinkRate(
                    self._store,
                    self._runtime,
                    source=site.uuid,
                    cap=cap,
                    urgent=urgent,
                    spare=spare,
                )
            rate = self._rates.get(key)

        def take(size_bytes: int) -> None:
            if rate is not None:
                rate.take(size_bytes)
            with self._lock:
                self._counted[name] += size_bytes

        return take

    def throttled(self, site: Site, store: Store) -> Store:
        """Return the store of a site for those who wait for what they read there."""
        return ThrottledStore(store, self.throttle(site, urgent=True))

    def paced(self, limits: Limits) -> Limits:
        """Return limits whose requests are small enough for the caps of these links."""
        caps = [link.cap for link in self._topology.links if link.target == self._local]
        if not caps:
            return limits
        largest = max(_REQUEST_MIN_BYTES, int(min(caps) * _REQUEST_S))
        return replace(limits, read_request_bytes=min(limits.read_request_bytes, largest))

    def bytes_received(self) -> dict[str, int]:
        """Return the bytes that this process has asked of each site."""
        with self._lock:
            return dict(self._counted)

    def statistics(self) -> dict[str, RateStatistics]:
        """Return what this process replicates over each link that has a cap, by the name of its source."""
        with self._lock:
            rates = dict(self._rates)
        return {
            name: rate.statistics()
            for (name, urgent, spare), rate in rates.items()
            if not (urgent or spare)
        }

    def close(self) -> None:
        """Leave the shares to the others at once."""
        with self._lock:
            rates, self._rates = list(self._rates.values()), {}
        for rate in rates:
            rate.close()
