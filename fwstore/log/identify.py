"""Which lineage a name means, over all sites that answer.

Invariant: a name that is open at home means that lineage; what is only known elsewhere comes home before anybody votes
for it, so a run has one uuid at all sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fwstore.format.lineage import Lineage
from fwstore.format.names import validate_name
from fwstore.log.homes import Homes
from fwstore.log.lineage import birth, claim_name, find
from fwstore.log.log import Log
from fwstore.log.site import UNHEARD, Site
from fwstore.sched import Runtime


@dataclass(frozen=True)
class Identity:
    """What a name means.

    Attributes:
        lineage: The one that is open, or None when one is to be born.
        generation: Of that lineage, or of the one to be born.
        logs: Of the lineage, where they were read, by uuid of the site.
    """

    lineage: Lineage | None
    generation: int
    logs: Mapping[str, Log] = field(default_factory=dict)


def identify(
    name: str, home: Site, others: Sequence[Site], homes: Homes, runtime: Runtime
) -> Identity:
    """Return the newest generation at home; where home has none that is open, the newest at any other site.

    Raises:
        Conflict: The name means two lineages; the message names both.
        AlreadyExists: The name is taken in another spelling.
    """
    found = find(home.store, validate_name(name))
    if found is not None:
        log = homes.listen(home, found)
        if log is not None and log.fold.closed is None:
            return Identity(found, found.generation, {home.uuid: log})
    else:
        claim_name(home.store, name, runtime)
    here = found.generation if found else 0
    elsewhere = _newest_elsewhere(name, others, homes, runtime)
    if elsewhere.lineage is None or elsewhere.generation <= here:
        return Identity(None, max(here, elsewhere.generation) + 1)
    birth(home.store, elsewhere.lineage, runtime)
    return elsewhere


def _newest_elsewhere(
    name: str, others: Sequence[Site], homes: Homes, runtime: Runtime
) -> Identity:
    """Return the newest generation that other sites know, with its lineage if that is open at one of them."""

    def look(site: Site) -> tuple[Lineage, Log | None] | None:
        try:
            lineage = find(site.store, name)
            return None if lineage is None else (lineage, homes.listen(site, lineage))
        except UNHEARD:
            return None

    looked = zip(others, runtime.scheduler.map(look, others), strict=True)
    told = [(site, *answer) for site, answer in looked if answer is not None]
    newest = max((lineage.generation for _, lineage, _ in told), default=0)
    told = [one for one in told if one[1].generation == newest]
    for site, lineage, _ in told[1:]:
        told[0][1].must_be(lineage, f"at {site.name or site.store.url}")
    # A log that was set back cannot tell whether it was deleted.
    if all(log is not None and log.fold.closed is not None for _, _, log in told):
        return Identity(None, newest)
    logs = {site.uuid: log for site, _, log in told if log is not None}
    return Identity(told[0][1], newest, logs)
