"""System calls of the directory store: whole writes, whole reads, exclusive names, errors.

Invariant: a function returns only when all of its bytes moved; an `OSError` becomes an
`FwstoreError` in `translated` and nowhere else.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fwstore.base.errors import (
    Corrupt,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from fwstore.store.views import skip_bytes, total_bytes

READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FOLDER_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
CREATE_FLAGS = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL
_BUFFERS_MAX = os.sysconf("SC_IOV_MAX")
_CALL_BYTES_MAX = 1 << 30
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})
_NO_FLUSH = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_NO_FLAGS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None)
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

# What each errno asks of the caller; an errno that is not named here may pass: Unavailable.
_REACTIONS: dict[int, tuple[type[FwstoreError], str]] = {
    errno.ENOENT: (NotFound, "no such object"),
    errno.ENOTDIR: (NotFound, "no such object: a part of its path is not a directory"),
    errno.ELOOP: (NotFound, "symbolic links are not objects"),
    errno.EISDIR: (InvalidInput, "the key is already a prefix of other keys"),
    errno.ENAMETOOLONG: (InvalidInput, "the file system refuses so long a name"),
    errno.EACCES: (PermissionDenied, "give this user access to the directory"),
    errno.EPERM: (PermissionDenied, "give this user access to the directory"),
    errno.EROFS: (PermissionDenied, "the file system is mounted read-only"),
    errno.ENOSPC: (LimitExceeded, "the file system is full; free space or expire checkpoints"),
    errno.EDQUOT: (LimitExceeded, "the quota is used up; free space or expire checkpoints"),
    errno.EFBIG: (LimitExceeded, "the file system allows no file of that size"),
    errno.EMFILE: (LimitExceeded, "too many open files; raise `ulimit -n`"),
    errno.EXDEV: (
        Unsupported,
        "the directory spans file systems; keep one store on one file system",
    ),
}


@contextmanager
def translated(action: str, name: str) -> Iterator[None]:
    """Turn an `OSError` into the error of the reaction it asks for."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        reaction, advice = _REACTIONS.get(
            number, (Unavailable, "the file system did not do it; try again")
        )
        cause = errno.errorcode.get(number, "OSError")
        raise reaction(f"cannot {action} {name}: {advice} ({cause})") from error


def write_fully(descriptor: int, views: list[memoryview]) -> int:
    """Write all the bytes at the file position and return their number."""
    written = 0
    for batch in _batches(views):
        rest = batch
        while rest:
            count = os.writev(descriptor, rest)
            written += count
            rest = skip_bytes(rest, count)
    return written


def read_fully(descriptor: int, offset: int, views: list[memoryview], name: str) -> None:
    """Fill the views from a position of a file.

    Raises:
        Corrupt: The file ends first.
    """
    for batch in _batches(views):
        rest = batch
        while rest:
            count = os.preadv(descriptor, rest, offset)
            if count == 0:
                raise Corrupt(
                    f"{name} ends at byte {offset}, before what should be there: it was cut short"
                )
            offset += count
            rest = skip_bytes(rest, count)


def flush_folder(descriptor: int) -> None:
    """Make the names in a directory durable, where the file system has such a thing."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a directory: there a name is durable once it exists.
        if error.errno not in _NO_FLUSH:
            raise


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Ask for written bytes to go to the disk now, so that the final flush has little left to do."""
    if _sync_file_range is not None:
        # A refusal costs speed only: the flush that follows writes, and reports, everything.
        _sync_file_range(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE)


def link_new(source_folder: int, source: str, folder: int, name: str) -> None:
    """Give a finished file its name in a folder, atomically; the source name may remain.

    Raises:
        FileExistsError: The name is taken by another file.
        Unsupported: The file system has no atomic way to do it.
    """
    try:
        os.link(source, name, src_dir_fd=source_folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # A network file system repeats a request whose answer was lost; the first one may have won.
        here = os.stat(source, dir_fd=source_folder, follow_symlinks=False)
        if not os.path.samestat(here, os.stat(name, dir_fd=folder, follow_symlinks=False)):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_new(source_folder, source, folder, name)


def _rename_new(source_folder: int, source: str, folder: int, name: str) -> None:
    number = errno.ENOSYS
    if _renameat2 is not None:
        names = os.fsencode(source), os.fsencode(name)
        if _renameat2(source_folder, names[0], folder, names[1], _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
    if number in _NO_FLAGS:
        raise Unsupported(
            f"cannot create {name}: the file system has neither hard links nor an exclusive rename, so two "
            "jobs could both believe that they own a run; use another file system or an object store"
        )
    raise OSError(number, os.strerror(number), name)


def _batches(views: list[memoryview]) -> Iterator[list[memoryview]]:
    """Yield runs of views that one system call takes, each of at most 1 GiB unless it is one view."""
    if len(views) <= _BUFFERS_MAX and total_bytes(views) <= _CALL_BYTES_MAX:
        yield views
        return
    batch: list[memoryview] = []
    size = 0
    for view in views:
        if batch and (len(batch) == _BUFFERS_MAX or size + view.nbytes > _CALL_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(view)
        size += view.nbytes
    if batch:
        yield batch
