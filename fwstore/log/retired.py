"""Retirements: create-once objects that say of a site that it is lost for good.

Invariant: a retirement is never taken back; a site of which a majority of its electorate, itself counted, holds one takes no
part in anything any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fwstore.base.errors import Fenced
from fwstore.format.keys import RETIRED_PREFIX, parse_retired_key, retired_key
from fwstore.format.site import SITE_BYTES_MAX, RetiredSite, encode_site, parse_retired_site
from fwstore.log.site import Site
from fwstore.log.tail import get_parsed
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.store.create import create_once


def read_retired(store: Store, known: Iterable[str] = ()) -> Iterator[tuple[str, RetiredSite]]:
    """Yield the retirements that a store holds, each with its key.

    Args:
        store: Of any site.
        known: Keys that need not be read again.
    """
    known = frozenset(known)
    for info in store.list(RETIRED_PREFIX):
        if info.key not in known and parse_retired_key(info.key) is not None:
            found = get_parsed(store, info.key, SITE_BYTES_MAX, parse_retired_site)
            if found is not None:
                yield info.key, found


def write_retired(site: Site, made: RetiredSite, runtime: Runtime, *, lost: bool = False) -> None:
    """Let a site hold a retirement; one that it holds already is as good."""
    key = retired_key(made.site, lost=lost)
    create_once(site.store, key, [encode_site(made)], site.bounded(runtime))


def refuse_retired(home: Site, found: RetiredSite | None) -> None:
    """Refuse to write at a site that was retired.

    Args:
        home: The site.
        found: Its retirement, or None. One that any site holds is enough: whoever wrote it could reach a majority.

    Raises:
        Fenced: There is one.
    """
    if found is not None:
        raise Fenced(
            f"site {home.name or found.name} ({home.uuid}) was retired: {found.reason}; nothing that is written at "
            f"{home.store.url} counts any more. Empty that store to found the site anew"
        )
