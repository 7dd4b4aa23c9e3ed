"""Keys of a directory store in byte order, streamed.

Invariant: every object that exists from the beginning to the end of a listing is listed once, and the
keys ascend: a directory sorts as its name with a slash, which is how all keys below it begin.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from fwstore.store.base import ObjectInfo
from fwstore.store.folders import Folder, scan
from fwstore.store.naming import is_key
from fwstore.store.posix import FOLDER_FLAGS


def walk_files(folder: Folder, path: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
    """Yield the objects below a directory.

    Args:
        folder: The directory.
        path: What all keys below it begin with: empty, or ending with a slash.
        prefix: Only keys that begin with it.
        start_after: Only keys greater than it.
    """
    for name, is_folder in _entries(folder):
        key = path + name
        if is_folder:
            if _may_hold(key, prefix, start_after):
                yield from _walk_below(folder, name, key, prefix, start_after)
        elif key.startswith(prefix) and key > start_after:
            found = _describe(folder, name, key)
            if found is not None:
                yield found


def _walk_below(
    folder: Folder, name: str, path: str, prefix: str, start_after: str
) -> Iterator[ObjectInfo]:
    try:
        below = Folder(os.open(name, FOLDER_FLAGS, dir_fd=folder.descriptor))
    except FileNotFoundError:
        return
    yield from walk_files(below, path, prefix, start_after)


def _entries(folder: Folder) -> list[tuple[str, bool]]:
    with scan(folder) as entries:
        found = [
            (entry.name + "/", True) if entry.is_dir(follow_symlinks=False) else (entry.name, False)
            for entry in entries
            if is_key(entry.name)
        ]
    return sorted(found)


def _may_hold(path: str, prefix: str, start_after: str) -> bool:
    in_prefix = path.startswith(prefix) or prefix.startswith(path)
    return in_prefix and (path > start_after or start_after.startswith(path))


def _describe(folder: Folder, name: str, key: str) -> ObjectInfo | None:
    try:
        status = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return (
        ObjectInfo(key, status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None
    )
