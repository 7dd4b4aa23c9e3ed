"""The catalog: which lineages a store has, and how one comes and goes.

Invariant: a name has one spelling, a generation of it has one uuid, and only the newest generation of a
name is open; a lineage object is written after term 1 was won with its uuid in the vote.
"""

from __future__ import annotations

from fwstore.base.errors import AlreadyExists, Conflict, Corrupt, InvalidInput
from fwstore.base.ids import write_id
from fwstore.format.canonical import check_text
from fwstore.format.keys import CATALOG_PREFIX, LineageKeys, parse_catalog_key
from fwstore.format.lineage import (
    LINEAGE_BYTES_MAX,
    Lineage,
    NameClaim,
    claim_key,
    closed_key,
    encode_lineage,
    parse_claim,
    parse_lineage,
)
from fwstore.format.names import validate_name
from fwstore.format.record import AnyBody, Close
from fwstore.log.fold import Fold
from fwstore.log.log import Log
from fwstore.log.packs import PackReader
from fwstore.log.pins import lift, pins_of_users
from fwstore.log.tail import get_parsed
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.store.create import create_once

_CLOSED = ".closed"


def newest_generation(store: Store, name: str) -> LineageKeys | None:
    """Return the newest generation of a name, deleted or not, or None: one LIST."""
    prefix = f"{CATALOG_PREFIX}{validate_name(name)}@"
    found = [parse_catalog_key(info.key) for info in store.list(prefix)]
    return max((keys for keys in found if keys), key=lambda k: k.generation, default=None)


def find(store: Store, name: str) -> Lineage | None:
    """Return the newest generation of a lineage, or None; whether it was deleted its log says.

    Raises:
        Corrupt: Its object is damaged.
    """
    keys = newest_generation(store, name)
    return read_lineage(store, keys) if keys else None


def read_lineage(store: Store, keys: LineageKeys) -> Lineage | None:
    """Return a lineage object, or None where it is not yet written.

    Raises:
        Corrupt: It is damaged.
    """
    lineage = get_parsed(store, keys.catalog, LINEAGE_BYTES_MAX, parse_lineage)
    if lineage is not None and lineage.keys != keys:
        raise Corrupt(f"{keys.catalog} in {store.url} describes {lineage.keys.label}")
    return lineage


def list_lineages(store: Store) -> list[LineageKeys]:
    """Return the newest generation of every lineage that is not deleted, by name.

    Deletion is read from the markers; a lineage deleted a moment ago may still be listed.
    """
    newest: dict[str, LineageKeys] = {}
    closed: set[str] = set()
    for info in store.list(CATALOG_PREFIX):
        if info.key.endswith(_CLOSED):
            closed.add(info.key.removesuffix(_CLOSED))
        keys = parse_catalog_key(info.key)
        if keys and keys.generation > newest.get(keys.name, LineageKeys(keys.name, 0)).generation:
            newest[keys.name] = keys
    return [newest[name] for name in sorted(newest) if newest[name].catalog not in closed]


def all_generations(store: Store) -> list[LineageKeys]:
    """Return every generation of every lineage, deleted ones included, by name: what has bytes to free."""
    found = [parse_catalog_key(info.key) for info in store.list(CATALOG_PREFIX)]
    return sorted((keys for keys in found if keys), key=lambda keys: (keys.name, keys.generation))


def open_log(store: Store, lineage: Lineage, runtime: Runtime, read_packs: PackReader) -> Log:
    """Return the log of a lineage at a site, not yet read."""
    return Log(store, lineage.keys, lineage.lineage, runtime, read_packs)


def claim_name(store: Store, name: str, runtime: Runtime) -> None:
    """Fix the spelling of a name in this store.

    Raises:
        AlreadyExists: It is taken in another spelling, which the message names.
    """
    key = claim_key(validate_name(name))
    claim = NameClaim(name, write_id(runtime.ids))
    if create_once(store, key, [encode_lineage(claim)], runtime):
        return
    taken = parse_claim(store.get(key, limit_bytes=LINEAGE_BYTES_MAX), key)
    if taken.name != name:
        raise AlreadyExists(
            f"the name {name!r} is taken by {taken.name!r} in {store.url}: names that differ in case "
            "alone are one name"
        )


def birth(store: Store, lineage: Lineage, runtime: Runtime) -> None:
    """Write the object of a lineage whose first term was won, unless it is there.

    Raises:
        Conflict: Another lineage has the name; the message names both uuids.
    """
    key = lineage.keys.catalog
    if create_once(store, key, [encode_lineage(lineage)], runtime):
        return
    found = read_lineage(store, lineage.keys)
    if found is None:
        raise Conflict(f"{key} in {store.url} was just taken, and is not there: who deletes it?")
    lineage.must_be(found, f"in {store.url}")


def delete(log: Log, reason: str, *, lift_pins: bool = False) -> None:
    """Delete a lineage: its name returns as the next generation, its bytes go with garbage collection.

    Args:
        log: Its log.
        reason: For people.
        lift_pins: Lift the pins of users first; nobody could name their run afterwards.

    Raises:
        InvalidInput: Users have pinned snapshots; the message names the pins.
    """
    check_text(reason, "the reason of a deletion")
    for pin in pins_of_users(log.refresh()) if lift_pins else ():
        lift(log, pin.pin)

    def close(fold: Fold) -> AnyBody | None:
        if fold.closed is not None:
            return None
        held = [f"{pin.pin} ({pin.reason})" for pin in pins_of_users(fold)]
        if held:
            raise InvalidInput(
                f"{log.keys.label} has pins that would keep its bytes for ever: "
                f"{', '.join(held)[:1000]}; lift them first, or tell the deletion to"
            )
        return Close(reason)

    log.append(close)
    mark_closed(log)


def mark_closed(log: Log) -> None:
    """Keep a deleted lineage out of listings; called again wherever the marker may have been lost."""
    marker = Close(log.fold.closed or "deleted")
    create_once(log.store, closed_key(log.keys), [marker.reason.encode()], log.runtime)
