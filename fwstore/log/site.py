"""Sites: a named place with one store, known by the uuid written in that store.

Invariant: a site is never known by its address; two addresses of one store are one site, and a store
under another's address is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fwstore.base.errors import (
    Corrupt,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from fwstore.base.ids import write_id
from fwstore.format.keys import SITE_KEY
from fwstore.format.site import (
    FORMAT_MAJOR,
    FORMAT_MINOR,
    SITE_BYTES_MAX,
    SiteObject,
    encode_site,
    parse_site,
)
from fwstore.log.tail import get_or_none, get_parsed
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.store.create import create_once

# What another site may answer in place of what was asked: it then counts as one that did not answer. A bucket that was
# deleted, or is in another region, refuses what it is asked as invalid.
UNHEARD = (Unavailable, PermissionDenied, InvalidInput, Corrupt, Unsupported, LimitExceeded)


@dataclass(frozen=True, slots=True)
class Site:
    """A named place with one store.

    Attributes:
        uuid: What the store says of itself.
        name: In the topology, or for people.
        store: Where its objects are.
        patience_s: Longest time for one request of the protocol; None takes that of the process.
    """

    uuid: str
    name: str
    store: Store
    patience_s: float | None = None

    def bounded(self, runtime: Runtime) -> Runtime:
        """Return a runtime whose requests wait no longer than this site is worth."""
        return runtime if self.patience_s is None else with_patience(runtime, self.patience_s)


def with_patience(runtime: Runtime, patience_s: float) -> Runtime:
    """Return a runtime whose requests wait no longer than that."""
    return replace(runtime, limits=replace(runtime.limits, request_timeout_s=patience_s))


def open_site(store: Store, *, hash_key: str | None = None) -> Site:
    """Return the site that a store is.

    Args:
        store: Any store.
        hash_key: Id of the key of its hashes, or None for unkeyed ones.

    Raises:
        NotFound: The store is not one of fwstore, or not yet.
        Unsupported: It is of a later format, needs an unknown feature, or has another hash key.
    """
    found = get_parsed(store, SITE_KEY, SITE_BYTES_MAX, parse_site)
    if found is None:
        raise NotFound(f"{store.url} holds no repository: {SITE_KEY} is not there")
    if found.hash_key != hash_key:
        needs = "no hash key" if found.hash_key is None else f"the hash key of id {found.hash_key}"
        given = "none" if hash_key is None else f"the one of id {hash_key}"
        raise Unsupported(
            f"{store.url} was created with {needs}, and {given} was given; pass hash_key= as at its creation"
        )
    return Site(found.site, found.name, store)


def still_is(site: Site) -> bool:
    """Return whether a store says now that it is the site that it was; False where it does not answer.

    A witness that was wiped has forgotten its votes: it is another site (S2).
    """
    try:
        found = get_parsed(site.store, SITE_KEY, SITE_BYTES_MAX, parse_site)
    except UNHEARD:
        return False
    return found is not None and found.site == site.uuid


def create_site(
    store: Store,
    runtime: Runtime,
    *,
    name: str = "",
    uuid: str | None = None,
    hash_key: str | None = None,
) -> Site:
    """Return the site of a store, made if the store has none yet.

    Args:
        store: Any store.
        runtime: Bounds the time.
        name: Of a site that is made.
        uuid: Of a site that is made; None draws one.
        hash_key: Id of the key of its hashes, or None for unkeyed ones.

    Raises:
        Unsupported: It exists and is of a later format or has another hash key.
    """
    if get_or_none(store, SITE_KEY, SITE_BYTES_MAX) is None:
        made = SiteObject(
            format="fwstore",
            major=FORMAT_MAJOR,
            minor=FORMAT_MINOR,
            site=uuid or write_id(runtime.ids),
            name=name,
            hash_key=hash_key,
            write_id=write_id(runtime.ids),
        )
        create_once(store, SITE_KEY, [encode_site(made)], runtime, write_id=made.write_id)
    return open_site(store, hash_key=hash_key)
