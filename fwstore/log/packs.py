"""Which packs of a lineage a snapshot refers to.

Invariant: keys come from tables whose digests a record holds; a table that does not match is `Corrupt`
and never a shorter list, because what is not listed may be deleted.
"""

from __future__ import annotations

from collections.abc import Callable

from fwstore.base.errors import Corrupt, LimitExceeded
from fwstore.codec.hashing import ContentHash
from fwstore.format.keys import LineageKeys
from fwstore.format.packtable import PackInfo, parse_pack_table
from fwstore.format.record import ObjectRef
from fwstore.format.root import parse_root
from fwstore.log.fold import Uses
from fwstore.store.base import Store

PackReader = Callable[[Store, LineageKeys, Uses], list[tuple[str, int]]]


class PackTables:
    """Reads the pack tables of snapshots.

    Args:
        content_hash: BLAKE3 as the repository computes it.
    """

    def __init__(self, content_hash: ContentHash) -> None:
        self._hash = content_hash

    def __call__(self, store: Store, keys: LineageKeys, uses: Uses) -> list[tuple[str, int]]:
        """Return key and size of every pack of the lineage that the tables list.

        Raises:
            NotFound: A table is gone.
            Corrupt: A table is not what was written.
        """
        own = self._own_number(store, keys, uses)
        packs: list[tuple[str, int]] = []
        for number, part in enumerate(uses.tables):
            key = (
                keys.pack_table(uses.snapshot, number)
                if uses.hold is None
                else keys.hold_table(uses.snapshot, uses.hold, number)
            )
            stored = self._read(store, key, part)
            _, rows = parse_pack_table(stored)
            packs += [_named(keys, row) for row in rows if own in (None, row.lineage)]
        return packs

    def _own_number(self, store: Store, keys: LineageKeys, uses: Uses) -> int | None:
        if uses.root is None:
            return None
        root = parse_root(self._read(store, keys.root(uses.snapshot), uses.root))
        labels = [lineage.label for lineage in root.lineages]
        return labels.index(keys.label) if keys.label in labels else -1

    def _read(self, store: Store, key: str, expected: ObjectRef) -> bytes:
        # Twice: the first time it may have been damaged on the way.
        for _ in range(2):
            try:
                stored = store.get(key, limit_bytes=expected.size)
            except LimitExceeded as error:
                raise Corrupt(f"{key} in {store.url} is longer than was written") from error
            if self._hash.digest(stored).hex() == expected.digest:
                return stored
        raise Corrupt(f"{key} in {store.url} does not have the content that was written")


def _named(keys: LineageKeys, row: PackInfo) -> tuple[str, int]:
    return row.key([keys] * (row.lineage + 1)), row.size
