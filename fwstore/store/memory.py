"""A store in the memory of this process, for tests, examples and simulation.

Invariant: every change is made under one lock, so a put is seen whole or not at all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from fwstore.base.errors import AlreadyExists, Corrupt, InvalidInput, LimitExceeded, NotFound
from fwstore.sched.locks import Lock
from fwstore.store.base import Capabilities, Mode, ObjectInfo, ReadInto
from fwstore.store.naming import validate_key, validate_prefix
from fwstore.store.ranges import resolve_range
from fwstore.store.views import flat_views

if TYPE_CHECKING:
    from fwstore.sched.runtime import Runtime

_CAPABILITIES = Capabilities(
    kind="memory", shared=False, remote=False, keeps_metadata=True, spread_max=1, requests_max=16
)


@dataclass(frozen=True, slots=True)
class _Object:
    content: bytes
    modified: float
    write_id: str | None


class Objects(MutableMapping[str, _Object]):
    """Objects by key, and their keys in order: listing few of many does not look at all."""

    def __init__(self, found: Mapping[str, _Object] = MappingProxyType({})) -> None:
        self._found = dict(found)
        self._keys = sorted(self._found)
        self._lock = Lock()

    def __getitem__(self, key: str) -> _Object:
        return self._found[key]

    def __setitem__(self, key: str, made: _Object) -> None:
        with self._lock:
            if key not in self._found:
                insort(self._keys, key)
            self._found[key] = made

    def __delitem__(self, key: str) -> None:
        with self._lock:
            del self._found[key]
            del self._keys[bisect_left(self._keys, key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.within(""))

    def __len__(self) -> int:
        return len(self._found)

    def create(self, key: str, made: _Object) -> bool:
        """Take an object in; False where there is one."""
        with self._lock:
            if key in self._found:
                return False
            insort(self._keys, key)
            self._found[key] = made
            return True

    def within(self, prefix: str, start_after: str = "") -> list[str]:
        """Return the keys that begin with a prefix, behind another key, in order."""
        with self._lock:
            first = max(bisect_left(self._keys, prefix), bisect_right(self._keys, start_after))
            return self._keys[first : bisect_left(self._keys, f"{prefix}\U0010ffff")]


_shared: dict[str, Objects] = {}


class MemoryStore:
    """Objects in memory.

    Args:
        runtime: Where time comes from.
        name: Stores of one name in one process hold the same objects; without a name it is private.
    """

    def __init__(self, runtime: Runtime, name: str = "") -> None:
        self._clock = runtime.clock
        self._name = name
        self._objects = _shared.setdefault(name, Objects()) if name else Objects()

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r})"

    @property
    def url(self) -> str:
        """The address of the store."""
        return f"memory://{self._name}"

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return _CAPABILITIES

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        """Write an object whole."""
        validate_key(key)
        made = _Object(b"".join(flat_views(buffers)), self._clock.wall(), write_id)
        if mode == "overwrite":
            self._objects[key] = made
        elif not self._objects.create(key, made):
            raise AlreadyExists(f"{key} exists in {self.url}")

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object."""
        content = self._find(key).content
        if len(content) > limit_bytes:
            raise LimitExceeded(
                f"{key} in {self.url} has {len(content)} bytes; the limit is {limit_bytes}"
            )
        return content

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; a negative offset counts from the end."""
        content = self._find(key).content
        start = resolve_range(key, len(content), offset, length)
        return content[start : start + length]

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        """Fill caller's buffers from several ranges of one object."""
        content = memoryview(self._find(key).content)
        for read in reads:
            position = read.offset
            for view in flat_views(read.buffers):
                piece = content[position : position + view.nbytes]
                if piece.nbytes < view.nbytes:
                    raise Corrupt(f"{key} in {self.url} ends before byte {position + view.nbytes}")
                view[:] = piece
                position += view.nbytes

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        return _describe(key, self._find(key))

    def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Iterator[ObjectInfo]:
        """Yield objects whose key begins with `prefix`, in byte order of the keys."""
        validate_prefix(prefix)
        for key in self._objects.within(prefix, start_after)[:limit]:
            found = self._objects.get(key)
            if found is not None:
                yield _describe(key, found)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is absent counts as deleted."""
        for key in keys:
            self._objects.pop(validate_key(key), None)

    def upload(self, key: str) -> _MemoryUpload:
        """Begin a large object under a key that no one else writes."""
        return _MemoryUpload(self, validate_key(key))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _find(self, key: str) -> _Object:
        found = self._objects.get(validate_key(key))
        if found is None:
            raise NotFound(f"{key} is not in {self.url}")
        return found


class _MemoryUpload:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._pieces: list[bytes] | None = []

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers; they may be reused once this returns."""
        self._open_pieces().extend(bytes(view) for view in flat_views(buffers))

    def commit(self) -> None:
        """Make the object visible."""
        pieces = self._open_pieces()
        self._pieces = None
        self._store.put(self._key, pieces, mode="overwrite")

    def abort(self) -> None:
        """Drop what was written."""
        self._pieces = None

    def _open_pieces(self) -> list[bytes]:
        if self._pieces is None:
            raise InvalidInput(f"the upload of {self._key} was committed or aborted before")
        return self._pieces


def _describe(key: str, found: _Object) -> ObjectInfo:
    return ObjectInfo(key, len(found.content), found.modified, found.write_id)
