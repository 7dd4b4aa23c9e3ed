"""Sites: a named place with one store, known by the uuid written in that store.

Invariant: a site is never known by its address; two addresses of one store are one site, and a store
under another's address is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from fwstore.base.errors import Conflict, NotFound, Unsupported
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


@dataclass(frozen=True, slots=True)
class Site:
    """A named place with one store."""

    uuid: str
    name: str
    store: Store


def open_site(store: Store, *, expected: str | None = None, hash_key: str | None = None) -> Site:
    """Return the site that a store is.

    Args:
        store: Any store.
        expected: Uuid it must have, where one is known.
        hash_key: Id of the key of its hashes, or None for unkeyed ones.

    Raises:
        NotFound: The store is not one of fwstore, or not yet.
        Conflict: It is another site.
        Unsupported: It is of a later format, needs an unknown feature, or has another hash key.
    """
    found = get_parsed(store, SITE_KEY, SITE_BYTES_MAX, parse_site)
    if found is None:
        raise NotFound(f"{store.url} holds no repository: {SITE_KEY} is not there")
    if expected is not None and found.site != expected:
        raise Conflict(f"{store.url} is site {found.site} ({found.name}), not {expected}")
    if found.hash_key != hash_key:
        needs = "no hash key" if found.hash_key is None else f"the hash key of id {found.hash_key}"
        given = "none" if hash_key is None else f"the one of id {hash_key}"
        raise Unsupported(
            f"{store.url} was created with {needs}, and {given} was given; pass hash_key= as at its creation"
        )
    return Site(found.site, found.name, store)


def create_site(
    store: Store, runtime: Runtime, *, name: str = "", hash_key: str | None = None
) -> Site:
    """Return the site of a store, made if the store has none yet.

    Raises:
        Unsupported: It exists and is of a later format or has another hash key.
    """
    if get_or_none(store, SITE_KEY, SITE_BYTES_MAX) is None:
        made = SiteObject(
            format="fwstore",
            major=FORMAT_MAJOR,
            minor=FORMAT_MINOR,
            site=write_id(runtime.ids),
            name=name,
            hash_key=hash_key,
            write_id=write_id(runtime.ids),
        )
        create_once(store, SITE_KEY, [encode_site(made)], runtime, write_id=made.write_id)
    return open_site(store, hash_key=hash_key)
