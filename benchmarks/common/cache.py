"""The page cache of the files that a benchmark wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


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


def drop_cache(folder: Path) -> None:
    """Drop the pages of every file of a folder; they are made durable first, dirty ones cannot be dropped."""
    sync_folder(folder)
    for path in files_below(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
