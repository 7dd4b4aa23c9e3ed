"""The page cache of the files that a benchmark wrote."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_LEFT_MAX = 0.05
_PIECE_BYTES = 8 << 20


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file of a folder."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def sync_folder(folder: Path) -> None:
    """Make a folder durable: for peers that do not do it themselves."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in [*files_below(folder), *folders]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fill_cache(folder: Path) -> None:
    """Read every file of a folder: the kernel may have dropped what nobody touched for a while."""
    piece = memoryview(bytearray(_PIECE_BYTES))
    for path in files_below(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def drop_cache(folder: Path) -> None:
    """Drop the pages of every file of a folder; they are made durable first, dirty ones cannot be dropped.

    Raises:
        OSError: Many of them are still there: somebody maps the files, or the file system lives in memory.
    """
    sync_folder(folder)
    for path in files_below(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    left = sum(cached_bytes(path) for path in files_below(folder))
    total = sum(path.stat().st_size for path in files_below(folder))
    if left > total * _LEFT_MAX:
        raise OSError(f"{left} of {total} bytes in {folder} stay in the page cache")


def cached_bytes(path: Path) -> int:
    """Return how many bytes of a file are in the page cache."""
    size = path.stat().st_size
    if size == 0:
        return 0
    residency = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        address = np.frombuffer(pages, np.uint8).ctypes.data
        if ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(address), ctypes.c_size_t(size), residency
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    return sum(flags & 1 for flags in residency) * mmap.PAGESIZE
