"""A large object on its way to a bucket, in parts.

Invariant: the object appears when the store completes the upload; if the answer to that is lost, the
write id in the metadata of the object tells whether it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Buffer

from fwstore.base.errors import FwstoreError, InvalidInput, NotFound
from fwstore.base.units import MIB
from fwstore.store.base import ObjectInfo
from fwstore.store.clients import Clients
from fwstore.store.seam import Seam
from fwstore.store.views import flat_views, private_copies

WRITE_ID = "fwwriteid"
_PART_BYTES_MIN = 5 * MIB
_PARTS_IN_FLIGHT = 4
_COPY_BYTES = 4 * MIB


@dataclass(frozen=True)
class UploadTarget:
    """Where an upload goes and how to look at what became of it."""

    key: str
    write_id: str
    clients: Clients
    seam: Seam
    head: Callable[[str], ObjectInfo]


class ObjectUpload:
    """See `fwstore.store.base.Upload`.

    Args:
        target: The object.
        part_bytes: Size of a part; a smaller object goes in one request.
    """

    def __init__(self, target: UploadTarget, part_bytes: int) -> None:
        self._target = target
        self._size = 0
        library = target.clients.library
        with target.seam.translated(library, "begin", target.key):
            self._writer: Any = library.open_writer(
                target.clients.patient,
                target.key,
                attributes={WRITE_ID: target.write_id},
                buffer_size=max(part_bytes, _PART_BYTES_MIN),
                max_concurrency=_PARTS_IN_FLIGHT,
            )

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers; they may be reused once this returns."""
        writer = self._open_writer()
        views = flat_views(buffers)
        with self._target.seam.translated(self._target.clients.library, "write", self._target.key):
            # The library keeps what it is given until the part is sent, so it gets copies.
            for copy in private_copies(views, _COPY_BYTES):
                self._size += writer.write(copy)

    def commit(self) -> None:
        """Make the object durable and visible."""
        writer = self._open_writer()
        self._writer = None
        try:
            with self._target.seam.translated(
                self._target.clients.library, "commit", self._target.key
            ):
                writer.close()
        except FwstoreError:
            if not self._is_there():
                raise

    def abort(self) -> None:
        """Drop what was written; parts that cannot be dropped now are left to a lifecycle rule."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            with self._target.seam.translated(
                self._target.clients.library, "abort", self._target.key
            ):
                writer.__exit__(FwstoreError, None, None)
        except FwstoreError:
            return

    def _open_writer(self) -> Any:
        if self._writer is None:
            raise InvalidInput(f"the upload of {self._target.key} was committed or aborted before")
        return self._writer

    def _is_there(self) -> bool:
        try:
            found = self._target.head(self._target.key)
        except NotFound:
            return False
        return (found.size, found.write_id) == (self._size, self._target.write_id)
