"""A large object on its way to a bucket, in parts.

Bytes are copied once, into the memory of a part that is used again when the library has sent it: fresh memory for
every piece costs more than the copy.

Invariant: the object appears when the store completes the upload; if the answer to that is lost, the
write id in the metadata of the object tells whether it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Buffer

from fwstore.base.errors import FwstoreError, InvalidInput, NotFound
from fwstore.sched.loans import Borrower, Bytes
from fwstore.store.base import ObjectInfo
from fwstore.store.clients import Clients
from fwstore.store.seam import Seam
from fwstore.store.views import flat_views

WRITE_ID = "fwwriteid"
# The memory of the parts is bounded, and that bounds how many are in flight.
_PARTS_IN_FLIGHT = 1024


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
    """

    def __init__(self, target: UploadTarget) -> None:
        self._target = target
        self._size = 0
        self._memory = Borrower(target.clients.parts)
        self._part: Bytes | None = None
        self._filled = 0
        library = target.clients.library
        with target.seam.translated(library, "begin", target.key):
            self._writer: Any = library.open_writer(
                target.clients.patient,
                target.key,
                attributes={WRITE_ID: target.write_id},
                buffer_size=target.clients.part_bytes,
                max_concurrency=_PARTS_IN_FLIGHT,
            )

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers; they may be reused once this returns."""
        writer = self._open_writer()
        for view in flat_views(buffers):
            rest = np.frombuffer(view, np.uint8)
            while rest.nbytes:
                rest = rest[self._fill(rest) :]
                if self._part is not None and self._filled == self._part.nbytes:
                    self._send(writer)

    def _fill(self, source: Bytes) -> int:
        """Copy what fits into the part; return how much that was."""
        if self._part is None:
            self._part = self._memory.take()
        room = self._part[self._filled : self._filled + source.nbytes]
        np.copyto(room, source[: room.nbytes])
        self._filled += room.nbytes
        return room.nbytes

    def _send(self, writer: Any) -> None:
        part, self._part = self._part, None
        filled, self._filled = self._filled, 0
        if part is not None:
            # A smaller object is kept by the library, and goes in one request.
            with self._target.seam.translated(
                self._target.clients.library, "write", self._target.key
            ):
                self._size += writer.write(part[:filled])

    def commit(self) -> None:
        """Make the object durable and visible."""
        writer = self._open_writer()
        self._send(writer)
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
        self._part = None
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
