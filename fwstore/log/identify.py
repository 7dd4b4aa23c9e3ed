"""Which lineage a name means, over all sites that answer.

Invariant: a name that is open at home means that lineage; what is only known elsewhere comes home before anybody votes
for it, so a run has one uuid at all sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fwstore.base.errors import Conflict
from fwstore.format.lineage import Lineage
from fwstore.format.names import validate_name
from fwstore.log.lineage import birth, claim_name, find, open_log
from fwstore.log.log import Log
from fwstore.log.packs import PackReader
from fwstore.log.site import UNHEARD, Site
from fwstore.sched import Runtime


@dataclass(frozen=True)
class Identity:
    """What a name means.

    Attributes:
        lineage: The one that is open, or None when one is to be born.
        generation: Of that lineage, or of the one to be born.
        log: Of the lineage at home, where it was read.
    """

    lineage: Lineage | None
    generation: int
    log: Log | None = None


def identify(
    name: str, home: Site, others: Sequence[Site], runtime: Runtime, read_packs: PackReader
) -> Identity:
    """Return the newest generation at home; where home has none that is open, the newest at any other site.

    Raises:
        Conflict: The name means two lineages; the message names both.
        AlreadyExists: The name is taken in another spelling.
    """
    found = find(home.store, validate_name(name))
    if found is not None:
        log = open_log(home.store, found, runtime, read_packs)
        if log.refresh().closed is None:
            return Identity(found, found.generation, log)
    else:
        claim_name(home.store, name, runtime)
    here = found.generation if found else 0
    newest, elsewhere = _newest_elsewhere(name, others, runtime, read_packs)
    if elsewhere is None or newest <= here:
        return Identity(None, max(here, newest) + 1)
    birth(home.store, elsewhere, runtime)
    return Identity(elsewhere, newest)


def _newest_elsewhere(
    name: str, others: Sequence[Site], runtime: Runtime, read_packs: PackReader
) -> tuple[int, Lineage | None]:
    """Return the newest generation that other sites know, and its lineage if it is open at one of them."""

    def look(site: Site) -> tuple[Lineage, bool] | None:
        try:
            lineage = find(site.store, name)
            if lineage is None:
                return None
            log = open_log(site.store, lineage, site.bounded(runtime), read_packs)
            return lineage, log.refresh().closed is None
        except UNHEARD:
            return None

    told = [answer for answer in runtime.scheduler.map(look, others) if answer is not None]
    newest = max((lineage.generation for lineage, _ in told), default=0)
    known = {lineage.lineage: lineage for lineage, _ in told if lineage.generation == newest}
    if len(known) > 1:
        raise Conflict(
            f"{name} is lineage {' and '.join(sorted(known))} at different sites: two lineages were created "
            "under one name; rename one"
        )
    still_open = (lineage for lineage, is_open in told if is_open and lineage.lineage in known)
    return newest, next(still_open, None)
