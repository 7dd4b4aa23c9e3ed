"""Lists of condemned keys: writing them before the record, and asking them after it.

Invariant: a key in a list that a record names is never referred to again; a list is created once, before
its record, and never deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import blake3

from fwstore.base.errors import Corrupt, LimitExceeded, NotFound
from fwstore.format.condemned import (
    CONDEMNED_BYTES_MAX,
    CondemnedKey,
    CondemnedList,
    encode_condemned,
    parse_condemned,
)
from fwstore.format.groups import GroupRange, groups_meet
from fwstore.format.keys import LineageKeys
from fwstore.format.record import ObjectRef
from fwstore.format.summary import CondemnEntry
from fwstore.log.fold import Uses
from fwstore.log.packs import PackReader
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.store.create import create_once

_LISTS_KEPT = 16


class CondemnedKeys:
    """Says whether what a record refers to meets a condemned list.

    Args:
        store: The store of the log.
        keys: Where the lineage is.
        lineage: Its uuid.
        read_packs: Lists the packs of a snapshot.
    """

    def __init__(
        self, store: Store, keys: LineageKeys, lineage: str, read_packs: PackReader
    ) -> None:
        self._store = store
        self._keys = keys
        self._lineage = lineage
        self._read_packs = read_packs
        self._lists: dict[str, frozenset[str]] = {}
        self._packs: tuple[Uses | None, frozenset[str]] = (None, frozenset())

    def __call__(self, uses: Uses, entry: CondemnEntry) -> bool:
        """Return whether a pack or the manifest of a snapshot is in a condemned list."""
        condemned = self._list(entry)
        manifest = self._keys.snapshot(uses.snapshot)
        if any(key.startswith(manifest) for key in condemned):
            return True
        try:
            return not condemned.isdisjoint(self._packs_of(uses))
        except NotFound:
            # Its tables are gone, so it was collected: nothing may rest on it.
            return True

    def know(self, uses: Uses, packs: Iterable[str]) -> None:
        """Take the packs of a snapshot from who has just written its tables, rather than read them."""
        self._packs = (uses, frozenset(packs))

    def _list(self, entry: CondemnEntry) -> frozenset[str]:
        known = self._lists.pop(entry.token, None)
        if known is None:
            found = read_condemned(self._store, self._keys, self._lineage, entry)
            known = frozenset(row.key for row in found)
        self._lists[entry.token] = known
        while len(self._lists) > _LISTS_KEPT:
            del self._lists[next(iter(self._lists))]
        return known

    def _packs_of(self, uses: Uses) -> frozenset[str]:
        if self._packs[0] != uses:
            packs = self._read_packs(self._store, self._keys, uses)
            self._packs = (uses, frozenset(key for key, _ in packs))
        return self._packs[1]


def read_condemned(
    store: Store, keys: LineageKeys, lineage: str, entry: CondemnEntry
) -> tuple[CondemnedKey, ...]:
    """Return the keys that a record condemned.

    Raises:
        Corrupt: The list is missing or is not what the record names.
    """
    key = keys.condemned(entry.token)
    # Twice: the first time it may have been damaged on the way.
    for _ in range(2):
        try:
            stored = store.get(key, limit_bytes=min(entry.listing.size, CONDEMNED_BYTES_MAX))
        except (NotFound, LimitExceeded) as error:
            raise Corrupt(f"{key} in {store.url} is not the list that was condemned") from error
        if _reference(stored) == entry.listing:
            condemned = parse_condemned(stored)
            if condemned.lineage == lineage:
                return condemned.keys
    raise Corrupt(f"{key} in {store.url} is not the list that was condemned")


def condemned_among(
    store: Store,
    keys: LineageKeys,
    lineage: str,
    entries: Iterable[CondemnEntry],
    groups: Sequence[GroupRange],
) -> frozenset[str]:
    """Return the keys in the lists of some records that condemned anything of some groups.

    Raises:
        Corrupt: A list is missing or is not what its record names.
    """
    lists = (
        read_condemned(store, keys, lineage, entry)
        for entry in entries
        if groups_meet(entry.groups, groups)
    )
    return frozenset(row.key for rows in lists for row in rows)


def write_condemned(
    store: Store, keys: LineageKeys, condemned: CondemnedList, runtime: Runtime
) -> ObjectRef:
    """Create a list object and return what its record says of it."""
    stored = encode_condemned(condemned)
    if not create_once(store, keys.condemned(condemned.token), [stored], runtime):
        raise Corrupt(f"{keys.condemned(condemned.token)} in {store.url} is another's list")
    return _reference(stored)


def _reference(stored: bytes) -> ObjectRef:
    return ObjectRef(blake3.blake3(stored).hexdigest(), len(stored))
