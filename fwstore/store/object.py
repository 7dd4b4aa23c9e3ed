"""A store in a bucket of S3, Google Cloud Storage or Azure, through obstore.

Invariant: a conditional write is one request that is sent once; everything else is idempotent and is
repeated with jitter until `Limits.request_timeout_s`. What is read is as long as what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import Buffer

from fwstore.base.errors import Corrupt, LimitExceeded, NotFound, Unavailable, Unsupported
from fwstore.base.ids import write_id as make_write_id
from fwstore.sched.retry import retry
from fwstore.store.base import Capabilities, Mode, ObjectInfo, ReadInto
from fwstore.store.clients import ClientMaker
from fwstore.store.naming import validate_key, validate_prefix
from fwstore.store.object_upload import WRITE_ID, ObjectUpload, UploadTarget
from fwstore.store.ranges import check_range, resolve_range
from fwstore.store.requests import Range, plan_batches, start_before
from fwstore.store.views import copy_into, flat_views

if TYPE_CHECKING:
    from fwstore.sched.runtime import Runtime
    from fwstore.store.bucket import BucketAddress

R = TypeVar("R")

_PAGE = 1000
_ANY_KEY = "-"


class ObjectStore:
    """Objects in a bucket.

    Args:
        address: The bucket and the prefix of all keys.
        runtime: Clock and jitter of retries, threads, limits.
        options: Configuration of the obstore client, such as credentials.
    """

    def __init__(
        self, address: BucketAddress, runtime: Runtime, options: Mapping[str, object]
    ) -> None:
        self._address = address
        self._runtime = runtime
        self._maker = ClientMaker(address, options, runtime.limits, runtime.environment)
        self._maker.clients()
        self._capabilities = Capabilities(
            kind=address.kind,
            shared=True,
            remote=True,
            keeps_metadata=True,
            spread_max=256,
            requests_max=64,
        )

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    @property
    def url(self) -> str:
        """The address without credentials."""
        return self._address.url

    @property
    def address(self) -> BucketAddress:
        """The bucket and the prefix of all keys."""
        return self._address

    @property
    def options(self) -> Mapping[str, object]:
        """The configuration given at opening; it may hold secrets."""
        return self._maker.options

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return self._capabilities

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        """Write an object whole, in one request."""
        validate_key(key)
        views = flat_views(buffers)
        attributes = {WRITE_ID: write_id} if write_id else None

        def send() -> None:
            clients = self._maker.clients()
            with self._maker.seam.translated(clients.library, "write", key):
                clients.once.put(
                    key, iter(views), mode=mode, attributes=attributes, use_multipart=False
                )

        if mode == "create":
            send()
        else:
            self._repeat(send)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object."""
        validate_key(key)
        return self._ask("read", key, lambda client: self._get_whole(client, key, limit_bytes))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; a negative offset counts from the end."""
        validate_key(key)
        check_range(key, offset, length)
        if length == 0:
            resolve_range(key, self.head(key).size, offset, 0)
            return b""
        if offset < 0:
            return self._get_suffix(key, -offset)[:length]
        target = bytearray(length)
        self.read_into(key, [ReadInto(offset, [memoryview(target)])])
        return bytes(target)

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        """Fill caller's buffers from several ranges of one object, in parallel requests."""
        validate_key(key)
        batches = plan_batches(reads, self._runtime.limits.read_request_bytes)
        self._runtime.scheduler.map(lambda batch: self._fetch(key, batch), batches)

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        validate_key(key)
        # Not `head` of the library, which leaves out the metadata.
        found = self._ask("look at", key, lambda client: _get(client, key, head=True))
        return _describe(key, found.meta, found.attributes.get(WRITE_ID))

    def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Iterator[ObjectInfo]:
        """Yield objects whose key begins with `prefix`, in byte order of the keys."""
        validate_prefix(prefix)
        return islice(self._list(prefix, start_after, whole=limit is None), limit)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, in batches; one that is absent counts as deleted."""
        names = [validate_key(key) for key in keys]
        if not names:
            return
        try:
            self._ask("delete", names[0], lambda client: client.delete(names))
        except NotFound:
            # Some stores delete one by one and stop at the first that is absent.
            for name in names:
                with suppress(NotFound):
                    self._ask("delete", name, partial(_delete_one, name))

    def upload(self, key: str) -> ObjectUpload:
        """Begin a large object under a key that no one else writes."""
        target = UploadTarget(
            key=validate_key(key),
            write_id=make_write_id(self._runtime.ids),
            clients=self._maker.clients(),
            seam=self._maker.seam,
            head=self.head,
        )
        return ObjectUpload(target)

    def close(self) -> None:
        """Release connections; they are made anew when needed."""
        self._maker.close()

    def _repeat(self, operation: Callable[[], R]) -> R:
        limits = self._runtime.limits
        return retry(self._runtime, operation, deadline_s=limits.request_timeout_s)

    def _ask(self, action: str, key: str, request: Callable[[Any], R]) -> R:
        """Do something idempotent, again if need be."""

        def attempt() -> R:
            clients = self._maker.clients()
            with self._maker.seam.translated(clients.library, action, key):
                return request(clients.once)

        return self._repeat(attempt)

    def _get_whole(self, client: Any, key: str, limit_bytes: int) -> bytes:
        found = _get(client, key)
        size = found.meta["size"]
        if size > limit_bytes:
            raise LimitExceeded(f"{key} in {self.url} has {size} bytes; the limit is {limit_bytes}")
        content = bytes(found.bytes())
        if len(content) != size:
            raise Unavailable(f"{key} in {self.url} has {size} bytes, but {len(content)} came")
        return content

    def _get_suffix(self, key: str, length: int) -> bytes:
        try:
            found = self._ask("read", key, lambda client: _read_suffix(client, key, length))
        except Unsupported:
            # Azure has no ranges that count from the end.
            size = self.head(key).size
            return self.get_range(key, resolve_range(key, size, -length, length), length)
        content, size = found
        resolve_range(key, size, -length, length)
        if len(content) != length:
            raise Unavailable(
                f"{length} bytes of {key} in {self.url} were asked for, {len(content)} came"
            )
        return content

    def _fetch(self, key: str, batch: Sequence[Range]) -> None:
        starts = [part.offset for part in batch]
        lengths = [part.length for part in batch]
        found = self._ask(
            "read",
            key,
            lambda client: client.get_ranges(key, starts=starts, lengths=lengths, coalesce=0),
        )
        for part, content in zip(batch, found, strict=True):
            if len(content) != part.length:
                raise Corrupt(
                    f"{key} in {self.url} has {len(content)} of the {part.length} bytes from {part.offset}: "
                    "it was cut short"
                )
            copy_into(part.views, content)

    def _list(self, prefix: str, start_after: str, *, whole: bool) -> Iterator[ObjectInfo]:
        for page in self._pages(prefix, start_before(prefix, start_after), whole=whole):
            for meta in page:
                key = meta["path"]
                if key.startswith(prefix):
                    if key > start_after:
                        yield _describe(key, meta, None)
                elif key > prefix:
                    return

    def _pages(
        self, prefix: str, after: str, *, whole: bool
    ) -> Iterator[Sequence[Mapping[str, Any]]]:
        folder = prefix.rpartition("/")[0] or None
        pages: Iterator[Any] | None = None

        def next_page(client: Any) -> Any:
            nonlocal pages
            # A listing that broke off goes on after the last key that came.
            current, pages = (
                pages or client.list(folder, offset=after or None, chunk_size=_PAGE),
                None,
            )
            page = next(current, None)
            pages = current if page else None
            return page

        full = True
        while True:
            page = self._ask("list", prefix, next_page)
            if not page and full and whole:
                # To the library, whatever a captive portal answers is an empty listing: an end that no
                # shorter page has shown is believed once something that knows objects says it again.
                with suppress(NotFound):
                    self.head(_ANY_KEY)
                page = self._ask("list", prefix, next_page)
            if not page:
                return
            yield page
            after, full = page[-1]["path"], len(page) >= _PAGE


def _get(client: Any, key: str, **options: object) -> Any:
    found = client.get(key, options=options or None)
    if found.meta["e_tag"] is None and not found.meta["last_modified"].timestamp():
        raise Unavailable(f"what answers for {key} is no object store: it knows no time and no tag")
    return found


def _read_suffix(client: Any, key: str, length: int) -> tuple[bytes, int]:
    found = _get(client, key, range={"suffix": length})
    return bytes(found.bytes()), found.meta["size"]


def _delete_one(key: str, client: Any) -> None:
    client.delete(key)


def _describe(key: str, meta: Mapping[str, Any], write_id: str | None) -> ObjectInfo:
    return ObjectInfo(key, meta["size"], meta["last_modified"].timestamp(), write_id)
