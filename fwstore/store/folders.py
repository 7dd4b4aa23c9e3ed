"""Open directories of a directory store: found without following links, made durably.

Invariant: `make` returns a directory whose whole chain of names, up to and including the root, was
flushed to disk while this process held it open; so an object linked into it survives a power loss
once the directory itself is flushed. A root that was there once is never made again: where it is gone, a
file system is not mounted or somebody removed the store, and what is written there would be lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fwstore.base.errors import Unavailable
from fwstore.format.keys import SITE_KEY
from fwstore.store.posix import FOLDER_FLAGS, flush_folder

_OPEN_MAX = 128

Parts = tuple[str, ...]


class Folder:
    """An open directory; closed when nobody refers to it any more.

    The open descriptor is what makes remembering it safe: a removed directory refuses new names, and
    its inode number is not reused while it is open.
    """

    __slots__ = ("descriptor", "durable")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.durable = False

    def __del__(self) -> None:
        os.close(self.descriptor)


@contextmanager
def scan(folder: Folder) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Open the entries of a directory for reading."""
    # A fresh descriptor: duplicates of one would share the reading position of the directory.
    fresh = Folder(os.open(".", FOLDER_FLAGS, dir_fd=folder.descriptor))
    with os.scandir(fresh.descriptor) as entries:
        yield entries


class Folders:
    """The directories below a root, with a bounded memory of open ones.

    Args:
        root: Absolute path; made when the first object is written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[Parts, Folder] = {}
        # Kept open, so that its inode number means no other directory.
        self._first_root: Folder | None = None

    def find(self, parts: Parts) -> Folder:
        """Return an existing directory.

        Raises:
            OSError: It does not exist, or a part of its path is a symbolic link.
        """
        known = self._open.get(parts)
        if known is not None:
            return known
        if not parts:
            return self._remember(parts, self._open_root())
        parent = self.find(parts[:-1])
        return self._remember(
            parts, Folder(os.open(parts[-1], FOLDER_FLAGS, dir_fd=parent.descriptor))
        )

    def make(self, parts: Parts) -> Folder:
        """Return a directory, made if needed, whose name is durable.

        Raises:
            OSError: It cannot be made; also when another process removes it meanwhile.
        """
        known = self._open.get(parts)
        if known is not None and known.durable:
            return known
        if not parts:
            if self._first_root is None:
                _make_root(self._root)
            folder = self.find(parts)
        else:
            parent = self.make(parts[:-1])
            _make_child(parent, parts[-1])
            folder = self.find(parts)
            # Also when another process made it: that one may not have flushed its name yet.
            flush_folder(parent.descriptor)
        folder.durable = True
        return folder

    def forget(self, parts: Parts) -> None:
        """Drop what is remembered of a directory and of those above it."""
        for length in range(len(parts) + 1):
            self._open.pop(parts[:length], None)

    def forget_all(self) -> None:
        """Drop all that is remembered."""
        self._open = {}
        self._first_root = None

    def _open_root(self) -> Folder:
        try:
            folder = Folder(os.open(self._root, FOLDER_FLAGS & ~os.O_NOFOLLOW))
        except FileNotFoundError as error:
            if self._first_root is None:
                raise
            raise self._lost() from error
        if self._first_root is None:
            self._first_root = folder
        elif not _same(self._first_root, folder) and not _is_repository(folder):
            raise self._lost()
        return folder

    def _lost(self) -> Unavailable:
        return Unavailable(
            f"{self._root} is not the directory any more that was opened: mount its file system again, or "
            "open the repository anew if it was removed on purpose"
        )

    def _remember(self, parts: Parts, folder: Folder) -> Folder:
        if len(self._open) >= _OPEN_MAX:
            self._open = {}
        return self._open.setdefault(parts, folder)


def _same(left: Folder, right: Folder) -> bool:
    return os.path.samestat(os.fstat(left.descriptor), os.fstat(right.descriptor))


def _is_repository(folder: Folder) -> bool:
    """Return whether a directory at the path of the root is the store, perhaps mounted again."""
    try:
        os.stat(SITE_KEY, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _make_child(parent: Folder, name: str) -> None:
    try:
        os.mkdir(name, dir_fd=parent.descriptor)
    except FileExistsError:
        return


def _make_root(root: Path) -> None:
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in {root.parent, *(path.parent for path in missing)}:
        _flush_path(path)


def _flush_path(path: Path) -> None:
    try:
        descriptor = os.open(path, FOLDER_FLAGS & ~os.O_NOFOLLOW)
    except PermissionError:
        # Whoever may not read the directory above the root did not make the root either.
        return
    try:
        flush_folder(descriptor)
    finally:
        os.close(descriptor)
