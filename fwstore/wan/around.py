"""A store around a store, for those that change how some of its objects are read.

Invariant: what a subclass does not change is done by the store inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from typing_extensions import Buffer

from fwstore.store.base import Capabilities, Mode, ObjectInfo, ReadInto, Store, Upload


class StoreAround:
    """A store that does what another one does.

    Args:
        store: The other one; it belongs to whoever opened it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def url(self) -> str:
        """The address of the store inside."""
        return self._store.url

    @property
    def capabilities(self) -> Capabilities:
        """What the store inside can do."""
        return self._store.capabilities

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object."""
        return self._store.get(key, limit_bytes=limit_bytes)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; a negative offset counts from the end."""
        return self._store.get_range(key, offset, length)

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        """Fill caller's buffers from several ranges of one object."""
        self._store.read_into(key, reads)

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        return self._store.head(key)

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        """Write an object whole."""
        self._store.put(key, buffers, mode=mode, write_id=write_id)

    def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Iterator[ObjectInfo]:
        """Yield objects."""
        return self._store.list(prefix, start_after=start_after, limit=limit)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects."""
        self._store.delete(keys)

    def upload(self, key: str) -> Upload:
        """Begin a large object."""
        return self._store.upload(key)

    def close(self) -> None:
        """Do nothing: the store inside belongs to whoever opened it."""


class ThrottledStore(StoreAround):
    """A store of another site whose bytes wait for the link.

    Args:
        store: Of that site.
        throttle: Called with a number of bytes; returns when they may cross.
    """

    def __init__(self, store: Store, throttle: Callable[[int], None]) -> None:
        super().__init__(store)
        self._throttle = throttle

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object; what it is to pay for shows when it has come."""
        content = super().get(key, limit_bytes=limit_bytes)
        self._throttle(len(content))
        return content

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; a negative offset counts from the end."""
        self._throttle(length)
        return super().get_range(key, offset, length)

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        """Fill caller's buffers from several ranges of one object."""
        self._throttle(sum(memoryview(into).nbytes for read in reads for into in read.buffers))
        super().read_into(key, reads)
