"""Reading what a referrer proved with a digest.

Invariant: bytes leave `read_verified` only after they were compared with their digest; a mismatch is read once
more, because a bad answer is likelier than a bad object, and then looked for in the other stores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fwstore.base.errors import (
    Corrupt,
    FwstoreError,
    InternalError,
    LimitExceeded,
    NotFound,
    Unavailable,
)
from fwstore.codec.hashing import ContentHash
from fwstore.sched import Runtime
from fwstore.store.base import Store

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where content comes from.

    Attributes:
        stores: In order of preference; there is at least one.
        runtime: Threads and limits.
        content_hash: The hash that proves objects and chunks.
    """

    stores: tuple[Store, ...]
    runtime: Runtime
    content_hash: ContentHash = field(default_factory=ContentHash)


def read_object(origin: Origin, key: str, digest: bytes, limit_bytes: int) -> bytes:
    """Return a whole object whose digest is known.

    Raises:
        NotFound: The nearest store does not have it, nor has another.
        Corrupt: No store has the bytes that were written.
        Unavailable: The nearest store does not answer, nor does another.
    """

    def read(store: Store) -> bytes:
        try:
            stored = store.get(key, limit_bytes=limit_bytes)
        except LimitExceeded as error:
            raise Corrupt(f"{key} in {store.url} is longer than it was written") from error
        if origin.content_hash.digest(stored) != digest:
            raise Corrupt(
                f"{key} in {store.url} does not have the content that was written: "
                "restore it from another copy"
            )
        return stored

    return read_verified(origin, read)


def read_verified(origin: Origin, read: Callable[[Store], T], *, again: bool = True) -> T:
    """Return what `read` gives for the first store whose bytes are right.

    Args:
        origin: Its stores are asked in order.
        read: Raises `Corrupt` for bytes that are not what was written.
        again: Ask the nearest store once more when its bytes are wrong.

    Raises:
        NotFound: The nearest store does not have the object, nor has another.
        Corrupt: The nearest store has wrong bytes, and no other has right ones.
        Unavailable: The nearest store does not answer, nor does another.
    """
    nearest, *others = origin.stores
    failure: FwstoreError | None = None
    asked_in_vain: Store | None = None
    for store in [nearest, nearest, *others] if again else origin.stores:
        if store is asked_in_vain:
            continue
        try:
            return read(store)
        except Corrupt as error:
            failure = failure or error
        except (NotFound, Unavailable) as error:
            failure = failure or error
            asked_in_vain = store
    # What the nearest store said is what the caller can act upon.
    raise failure or InternalError("content was read from an origin without stores")
