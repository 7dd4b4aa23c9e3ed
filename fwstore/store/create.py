"""Create-if-absent with an answer, even when the answer of the store was lost.

Invariant: `create_once` returns only what is so: True when the object holds our bytes, False when it
holds another's; while that is unknown it tries again, and says `Unavailable` at the deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from fwstore.base.errors import AlreadyExists, LimitExceeded, NotFound, Unavailable
from fwstore.sched.retry import retry
from fwstore.store.base import Store
from fwstore.store.views import flat_views

if TYPE_CHECKING:
    from fwstore.sched.runtime import Runtime


def create_once(
    store: Store,
    key: str,
    buffers: Sequence[Buffer],
    runtime: Runtime,
    *,
    write_id: str | None = None,
) -> bool:
    """Create an object unless its key is taken; True when the object there is ours.

    Args:
        store: Where.
        key: Never deleted while anyone may still create it.
        buffers: Hold a random write id, so that equal bytes mean that they are ours.
        runtime: Bounds the time by `Limits.request_timeout_s`.
        write_id: Kept in the metadata of the object, for people.

    Raises:
        Unavailable: Whether our bytes are there, or will be, is unknown.
    """
    content = b"".join(flat_views(buffers))

    def attempt() -> bool:
        try:
            store.put(key, [content], mode="create", write_id=write_id)
        except AlreadyExists:
            return _holds(store, key, content)
        return True

    return retry(runtime, attempt, deadline_s=runtime.limits.request_timeout_s)


def _holds(store: Store, key: str, content: bytes) -> bool:
    # Only what differs twice is another's: a byte may have changed on the way here.
    return any(_reads(store, key, content) for _ in range(2))


def _reads(store: Store, key: str, content: bytes) -> bool:
    try:
        return store.get(key, limit_bytes=len(content)) == content
    except LimitExceeded:
        return False
    except NotFound as error:
        # Taken a moment ago and absent now: an answer such as S3's 409, or a deletion. Ask again.
        raise Unavailable(f"{key} in {store.url} was taken but cannot be read") from error
