"""The only interface to bytes outside the process.

Invariant: `put(mode="create")` succeeds for at most one caller per key for the life of the store, and
nothing partial ever becomes visible under a key. Everything else in fwstore rests on these two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from typing_extensions import Buffer

Mode = Literal["create", "overwrite"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it.

    Attributes:
        key: The object key, relative to the root of the store.
        size: Bytes.
        modified: Seconds since the Unix epoch by the clock of the store; for display only.
        write_id: The write id given at `put`, where the store keeps metadata; else None.
    """

    key: str
    size: int
    modified: float = 0.0
    write_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What differs between stores, as data.

    Attributes:
        kind: "memory", "directory", "s3", "azure", "gcs" or "fsspec".
        shared: Other processes can open the same store.
        remote: A request costs a network round trip, so requests are worth saving.
        keeps_metadata: `head` returns the write id given at `put`.
        spread_max: Prefixes worth spreading packs over (S3 partitions request rates by prefix).
        requests_max: Requests worth having in flight at once.
    """

    kind: str
    shared: bool
    remote: bool
    keeps_metadata: bool
    spread_max: int
    requests_max: int


@dataclass(frozen=True, slots=True)
class ReadInto:
    """One contiguous range of an object and the buffers that receive it, in order.

    The range begins at `offset` and is as long as the buffers together.
    """

    offset: int
    buffers: Sequence[memoryview]


class Upload(Protocol):
    """An object being written in order; invisible until `commit`.

    After `commit` or `abort`, `write` and `commit` raise `InvalidInput`, and `abort` does nothing.
    """

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers; they may be reused once this returns."""
        ...

    def commit(self) -> None:
        """Make the object durable and visible."""
        ...

    def abort(self) -> None:
        """Drop what was written; never raises for a store that is gone."""
        ...


class Store(Protocol):
    """One bucket and prefix, or one directory. All methods may be called from any thread.

    Errors of every method: `Unavailable` (no answer, or an answer that says try again; a write may or may
    not have happened), `PermissionDenied`, `Unsupported`; `LimitExceeded` when the store is full.
    """

    @property
    def url(self) -> str:
        """The address without credentials, as `fwstore.open` takes it."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        ...

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        """Write an object whole.

        Idempotent calls (overwrite) are retried inside; create is sent once.

        Raises:
            AlreadyExists: `mode` is "create" and the key is taken - perhaps by an earlier attempt of this very
                write: read it back (`fwstore.store.create.create_once`).
        """
        ...

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object.

        Raises:
            NotFound: No object has this key.
            LimitExceeded: The object is larger than `limit_bytes`; it was not read.
        """
        ...

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; a negative offset counts from the end.

        Raises:
            NotFound: No object has this key.
            Corrupt: The object is too short.
        """
        ...

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        """Fill caller's buffers from several ranges of one object, without a copy where the store can.

        Raises:
            NotFound: No object has this key.
            Corrupt: The object is too short.
        """
        ...

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object.

        Raises:
            NotFound: No object has this key.
        """
        ...

    def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Iterator[ObjectInfo]:
        """Yield objects whose key begins with `prefix`, in byte order of the keys.

        Args:
            prefix: Compared as text; it need not end at a slash.
            start_after: Only keys greater than this one.
            limit: At most so many objects. Who limits a listing takes an empty one for a lower bound: only of a whole
                listing is it made sure that a store said so.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is absent counts as deleted."""
        ...

    def upload(self, key: str) -> Upload:
        """Begin a large object under a key that no one else writes."""
        ...

    def close(self) -> None:
        """Release connections; a second call does nothing."""
        ...
