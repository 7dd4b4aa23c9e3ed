"""What the processes of a site know of sites that were retired.

Invariant: a retirement is in force only where a majority of the electorate that it names, the retired site counted, was seen
to hold it, or where an operator has said that nobody will hear of that site again.
"""

from __future__ import annotations

from collections.abc import Collection

from fwstore.format.keys import parse_retired_key, retired_key
from fwstore.format.site import RetiredSite
from fwstore.log.retired import read_retired, write_retired
from fwstore.log.site import Site
from fwstore.sched import Runtime
from fwstore.store.base import Store


class Retirements:
    """The retirements that this process has heard of."""

    def __init__(self) -> None:
        self._known: dict[str, RetiredSite] = {}
        self._holders: dict[str, frozenset[str]] = {}
        self._held: dict[str, frozenset[str]] = {}

    def hear(self, store: Store, uuid: str) -> None:
        """Take in what a site holds.

        Args:
            store: Of the site.
            uuid: Of the site.
        """
        held = self._held.get(uuid, frozenset())
        for key, found in read_retired(store, held):
            self._known.setdefault(found.site, found)
            self._holders[key] = self._holders.get(key, frozenset()) | {uuid}
            held |= {key}
        self._held[uuid] = held

    def heard(self, uuid: str) -> RetiredSite | None:
        """Return the retirement of a site that any other one holds, or None."""
        return self._known.get(uuid)

    def of(self, uuid: str | None) -> RetiredSite | None:
        """Return the retirement of a site that is in force, or None."""
        found = None if uuid is None else self._known.get(uuid)
        return found if found is not None and self._is_in_force(found) else None

    def named(self, name: str) -> str | None:
        """Return a site that was retired under a name: it stands for one that never answered here."""
        found = (site for site in self._known.values() if site.name == name)
        return next((site.site for site in found if self._is_in_force(site)), None)

    def pending(self) -> bool:
        """Return whether one was heard of and not yet seen to be in force."""
        return not all(self._is_in_force(found) for found in self._known.values())

    def keep(self, home: Site, runtime: Runtime) -> None:
        """Let the own site hold what is in force, so that its processes know it without asking others."""
        for key in self._holders.keys() - self._held.get(home.uuid, frozenset()):
            named = parse_retired_key(key)
            found = named and self.of(named[0])
            if named is not None and found is not None:
                write_retired(home, found, runtime, lost=named[1])
                self._holders[key] |= {home.uuid}
                self._held[home.uuid] = self._held.get(home.uuid, frozenset()) | {key}

    def _is_in_force(self, found: RetiredSite) -> bool:
        if retired_key(found.site, lost=True) in self._holders:
            return True
        return is_majority(self._holders[retired_key(found.site)], found.witnesses)


def is_majority(sites: Collection[str], members: Collection[str]) -> bool:
    """Return whether some sites are a majority of a set."""
    return 2 * len(frozenset(sites) & frozenset(members)) > len(members)
