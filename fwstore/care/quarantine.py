"""Bad bytes, kept for whoever wants to look at them before good ones take their place.

Invariant: what is kept is named by the object it stood for and by what it is, so the same damage is kept once
whoever meets it, and nothing that was kept is ever overwritten. No reader and no collection looks here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from fwstore.base.errors import Conflict, Corrupt, NotFound
from fwstore.base.units import MIB
from fwstore.codec.hashing import ContentHash
from fwstore.format.keys import (
    QUARANTINE_PREFIX,
    quarantined_copies,
    quarantined_copy,
    run_of_quarantined,
)
from fwstore.store.base import ObjectInfo, Store

COPIES_MAX = 4
# Part of the name of what is kept: it is made of the digests of so many bytes each.
_SLICE_BYTES = 4 * MIB
_NAME_BYTES = 16


class Quarantine:
    """Keeps bad bytes of objects of one store.

    Args:
        store: Of the site.
        content_hash: The hash that names them.
    """

    def __init__(self, store: Store, content_hash: ContentHash) -> None:
        self._store = store
        self._hash = content_hash

    def keep(self, key: str) -> str | None:
        """Copy what stands under a key; return where it is kept, or None where nothing stands.

        Of one object at most `COPIES_MAX` different ones are kept; of what comes then the first few tell enough.

        Raises:
            Conflict: Somebody else replaces it now: look again whether it is bad.
            Unavailable: It cannot be read.
            LimitExceeded: There is no room for it.
        """
        try:
            size = self._store.head(key).size
            name = self._copy(key, size, lambda _: None)
            place = quarantined_copy(key, name)
            kept = {info.key for info in self._store.list(quarantined_copies(key))}
            if place in kept:
                return place
            if len(kept) >= COPIES_MAX:
                return None
            self._write(key, size, place, name)
        except NotFound:
            return None
        except Corrupt as error:
            raise Conflict(f"{key} changes while it is copied to quarantine: {error}") from error
        return place

    def _write(self, key: str, size: int, place: str, name: bytes) -> None:
        upload = self._store.upload(place)
        try:
            same = self._copy(key, size, lambda part: upload.write([part])) == name
            if same:
                upload.commit()
        finally:
            upload.abort()
        if not same:
            raise Conflict(f"{key} changes while it is copied to quarantine")

    def _copy(self, key: str, size: int, write: Callable[[bytes], None]) -> bytes:
        """Read an object slice by slice; return what names it."""
        digests = []
        for part in self._slices(key, size):
            write(part)
            digests.append(self._hash.digest(part))
        return self._hash.digest(*digests)[:_NAME_BYTES]

    def _slices(self, key: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, _SLICE_BYTES):
            yield self._store.get_range(key, start, min(_SLICE_BYTES, size - start))


def find_quarantined(store: Store, runs: Collection[str] | None = None) -> tuple[ObjectInfo, ...]:
    """Return what is kept of some runs, or of all."""
    return tuple(
        info
        for info in store.list(QUARANTINE_PREFIX)
        if runs is None or run_of_quarantined(info.key) in runs
    )
