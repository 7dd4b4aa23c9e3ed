"""Ranges of foreign files, and tensors that lie in them.

Invariant: no read leaves its range, and a file that was exchanged or cut while it is being read is
noticed. Nothing is kept open, so a source can be read from any thread and after a fork.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from fwstore import (
    Conflict,
    Corrupt,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
    raw_dtype,
)
from fwstore_migrate.limits import COPY_BYTES, DIMENSIONS_MAX

_REACTIONS: dict[int | None, type[FwstoreError]] = {
    errno.ENOENT: NotFound,
    errno.ENOTDIR: InvalidInput,
    errno.EISDIR: InvalidInput,
    errno.ENAMETOOLONG: InvalidInput,
    errno.ELOOP: InvalidInput,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOSPC: LimitExceeded,
    errno.EDQUOT: LimitExceeded,
    errno.EFBIG: LimitExceeded,
}


def local_failure(error: OSError, what: str) -> FwstoreError:
    """Return what to raise for an error of a local file, such as "cannot write x"."""
    kind = _REACTIONS.get(error.errno, Unavailable)
    return kind(f"{what}: {error.strerror or error}")


@dataclass(frozen=True, slots=True)
class FileRange:
    """Some bytes of a regular file.

    Attributes:
        path: The file.
        start: Where the range begins in the file.
        length: Bytes in the range.
        identity: What tells this file from one that took its name later.
    """

    path: Path
    start: int
    length: int
    identity: tuple[int, ...]

    @property
    def name(self) -> str:
        """The file for messages."""
        return str(self.path)

    def narrow(self, offset: int, length: int) -> FileRange:
        """Return a part of this range.

        Raises:
            Corrupt: It is not inside.
        """
        self._check(offset, length)
        return FileRange(self.path, self.start + offset, length, self.identity)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the range."""
        self._check(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `offset`.

        Raises:
            Corrupt: The range is too short.
            Conflict: The file changed since it was opened.
            FwstoreError: The file cannot be read.
        """
        self._check(offset, buffer.nbytes)
        try:
            with self.path.open("rb", buffering=0) as file:
                if _identity(os.fstat(file.fileno())) != self.identity:
                    raise Conflict(f"{self.name} changed while it was read; try again")
                _fill(file, self.start + offset, buffer.cast("B"))
        except EOFError as error:
            raise Corrupt(f"{self.name} ends early; it was cut while it was read") from error
        except OSError as error:
            raise local_failure(error, f"cannot read {self.name}") from error

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise Corrupt(
                f"{self.name} has no bytes {offset} to {offset + length}; it is cut or malformed"
            )


def open_file(path: Path) -> FileRange:
    """Return the range that is a whole file.

    Raises:
        NotFound: There is no such file.
        InvalidInput: It is not a regular file.
        PermissionDenied: It may not be read.
        FwstoreError: It cannot be read for another reason.
    """
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise local_failure(error, f"cannot open {path}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"{path} is not a regular file")
    return FileRange(path, 0, status.st_size, _identity(status))


def member_path(folder: Path, name: object) -> Path:
    """Return the path of a file that an index names, which must stay inside its folder.

    Raises:
        InvalidInput: The name could lead elsewhere.
    """
    safe = isinstance(name, str) and 0 < len(name) <= 1024 and name.isprintable()
    parts = PurePosixPath(name).parts if isinstance(name, str) and safe else ()
    if (
        not isinstance(name, str)
        or not parts
        or any(part in ("..", "/") for part in parts)
        or any(character in name for character in "\\:%")
    ):
        raise InvalidInput(
            f"{folder} refers to the file {str(name)[:100]!r}, which could lie outside of it; "
            "import only checkpoints from sources you trust"
        )
    return folder.joinpath(*parts)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _fill(file: io.FileIO, position: int, buffer: memoryview) -> None:
    while buffer.nbytes:
        count = os.preadv(file.fileno(), [buffer], position)
        if count == 0:
            raise EOFError
        buffer, position = buffer[count:], position + count


class RangeReader(io.RawIOBase):
    """A range as a file object, for libraries that want one; no single read exceeds a limit."""

    def __init__(self, source: FileRange, read_bytes_max: int) -> None:
        self._source = source
        self._limit = read_bytes_max
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, which may lie behind the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.length}
        if base[whence] + offset < 0:
            raise OSError("negative position")
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return at most `size` bytes.

        Raises:
            Corrupt: More than the limit was asked for.
        """
        left = max(0, self._source.length - self._position)
        count = left if size is None or size < 0 else min(size, left)
        if count > self._limit:
            raise Corrupt(f"{self._source.name} has a directory of {count} bytes; it is malformed")
        payload = self._source.read(self._position, count) if count else b""
        self._position += count
        return payload


class FileSource:
    """A tensor, or a part of one, whose bytes lie in a file that is only read."""

    __slots__ = ()

    @property
    def stable(self) -> bool:
        """Its bytes don't change, so it is read when it is written, and never staged."""
        return True

    def copy_from_host(self, *_: object, **__: object) -> None:
        """Refuse.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported("a foreign checkpoint is imported from, not loaded into")


@dataclass(frozen=True, slots=True)
class FileTensor(FileSource):
    """A tensor that lies in a file, with any strides; it is read in small boxes, never whole.

    Attributes:
        source: The bytes that its storage may use.
        offset: Elements of the storage before its first element.
        element: The name of its dtype in fwstore.
        shape: Sizes.
        strides: Elements between neighbours along each dimension.
    """

    source: FileRange
    offset: int
    element: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The raw dtype of its elements."""
        return raw_dtype(self.element)

    def copy_to_host(self, slices: tuple[slice, ...], target: NDArray[Any]) -> None:
        """Read a box into an array of the same shape."""
        starts = [part.indices(size)[0] for part, size in zip(slices, self.shape, strict=True)]
        offset = self.offset + _dot(starts, self.strides)
        if target.size:
            self._gather(offset, self.strides, target)

    def _gather(self, offset: int, strides: tuple[int, ...], out: NDArray[Any]) -> None:
        """Read along the widest stride until what is left lies close together."""
        if out.flags.c_contiguous and strides == contiguous_strides(out.shape):
            view = out.reshape(-1).view(np.uint8).data
            self.source.read_into(offset * out.itemsize, view)
            return
        span = _dot([size - 1 for size in out.shape], strides) + 1
        if span * out.itemsize <= max(COPY_BYTES, 2 * out.nbytes) <= 2 * COPY_BYTES or not strides:
            self._copy_span(offset, span, strides, out)
            return
        axis = max(range(out.ndim), key=lambda number: strides[number] * (out.shape[number] > 1))
        inner = strides[:axis] + strides[axis + 1 :]
        for index in range(out.shape[axis]):
            target = out[(slice(None),) * axis + (index, ...)]
            self._gather(offset + index * strides[axis], inner, target)

    def _copy_span(
        self, offset: int, span: int, strides: tuple[int, ...], out: NDArray[Any]
    ) -> None:
        payload = self.source.read(offset * out.itemsize, span * out.itemsize)
        flat = np.frombuffer(payload, self.dtype)
        steps = [stride * out.itemsize for stride in strides]
        out[...] = as_strided(flat, out.shape, steps, writeable=False)


def check_tensor(tensor: FileTensor) -> FileTensor:
    """Return the tensor when all its elements lie in its range.

    Raises:
        Corrupt: A size, stride or offset leads outside.
    """
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    size = tensor.dtype.itemsize
    if (
        len(tensor.shape) != len(tensor.strides)
        or len(tensor.shape) > DIMENSIONS_MAX
        or any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers)
    ):
        raise Corrupt(f"{tensor.source.name} has a tensor with impossible sizes or strides")
    if 0 in tensor.shape:
        return tensor
    last = tensor.offset + _dot([extent - 1 for extent in tensor.shape], tensor.strides)
    if (last + 1) * size > tensor.source.length:
        raise Corrupt(
            f"{tensor.source.name} has a tensor of shape {tensor.shape} that needs "
            f"{(last + 1) * size} bytes of a storage of {tensor.source.length}"
        )
    return tensor


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor stored in C order, in elements."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(1, shape[axis + 1])
    return tuple(strides)


def _dot(numbers: list[int], strides: tuple[int, ...]) -> int:
    return sum(number * stride for number, stride in zip(numbers, strides, strict=True))
