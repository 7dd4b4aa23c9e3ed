"""Open directories of a directory store: found without following links, made durably.

Invariant: `make` returns a directory whose whole chain of names, up to and including the root, was
flushed to disk while this process held it open; so an object linked into it survives a power loss
once the directory itself is flushed. A name that was flushed is flushed again only when it leads from
another directory or to another one. A root that was there once is never made again: where it is gone, a
file system is not mounted or somebody removed the store, and what is written there would be lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fwstore.base.errors import Unavailable
from fwstore.format.keys import SITE_KEY
from fwstore.sched import Lock
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
        # Which directory held the flushed name of which; both are kept open, see `Folder`.
        self._flushed: dict[Parts, tuple[Folder, Folder]] = {}
        # Threads that make the same directory need one flush: the others wait for it.
        self._making = Lock()
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
        return self._remember(parts, _open_child(self.find(parts[:-1]), parts[-1]))

    def make(self, parts: Parts, *, durable: bool = True) -> Folder:
        """Return a directory, made if needed.

        Args:
            parts: Its path below the root.
            durable: Its name must survive a power loss; the names above it do in any case.

        Raises:
            OSError: It cannot be made; also when another process removes it meanwhile.
        """
        known = self._open.get(parts)
        if known is not None and (known.durable or not durable):
            return known
        with self._making:
            return self._make(parts, durable=durable)

    def _make(self, parts: Parts, *, durable: bool = True) -> Folder:
        known = self._open.get(parts)
        if known is not None and known.durable:
            return known
        if not parts:
            if self._first_root is None:
                _make_root(self._root)
            folder = self.find(parts)
        else:
            parent = self._make(parts[:-1])
            _make_child(parent, parts[-1])
            folder = _open_child(parent, parts[-1])
            if durable:
                self._flush_name(parts, parent, folder)
            self._open.pop(parts, None)
            self._remember(parts, folder)
        folder.durable = durable
        return folder

    def _flush_name(self, parts: Parts, parent: Folder, folder: Folder) -> None:
        before = self._flushed.get(parts)
        if before is None or not (_is_still(before[0], parent) and _is_still(before[1], folder)):
            # Also when another process made it: that one may not have flushed its name yet.
            flush_folder(parent.descriptor)
        if len(self._flushed) >= _OPEN_MAX:
            self._flushed = {}
        self._flushed[parts] = parent, folder

    def forget(self, parts: Parts) -> None:
        """Drop what is remembered of a directory and of those above it."""
        for length in range(len(parts) + 1):
            self._open.pop(parts[:length], None)

    def forget_all(self) -> None:
        """Drop all that is remembered."""
        self._open = {}
        self._flushed = {}
        self._first_root = None

    def _open_root(self) -> Folder:
        # Another thread may make it while it is opened here: that loses nothing.
        was_open = self._first_root is not None
        try:
            folder = Folder(os.open(self._root, FOLDER_FLAGS & ~os.O_NOFOLLOW))
        except FileNotFoundError as error:
            _refuse_loose_link(self._root)
            if not was_open:
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


def _is_still(before: Folder, now: Folder) -> bool:
    """Return whether a directory that is opened again is the one that it was."""
    if before is now:
        return True
    try:
        old, new = os.fstat(before.descriptor), os.fstat(now.descriptor)
    except OSError:
        # ESTALE: another host removed it, and its inode number may stand for another directory there.
        return False
    # On a network file system an open descriptor does not keep the number; a newer directory has a newer time.
    return os.path.samestat(old, new) and old.st_ctime_ns == new.st_ctime_ns


def _is_repository(folder: Folder) -> bool:
    """Return whether a directory at the path of the root is the store, perhaps mounted again."""
    try:
        os.stat(SITE_KEY, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open_child(parent: Folder, name: str) -> Folder:
    return Folder(os.open(name, FOLDER_FLAGS, dir_fd=parent.descriptor))


def _make_child(parent: Folder, name: str) -> None:
    try:
        os.mkdir(name, dir_fd=parent.descriptor)
    except FileExistsError:
        return


def _refuse_loose_link(root: Path) -> None:
    """Refuse a root that is a link to nowhere: an empty store must not be taken for one that is not mounted."""
    if root.is_symlink() and not root.exists():
        raise Unavailable(f"{root} is a symbolic link that leads nowhere: mount what it points to")


def _make_root(root: Path) -> None:
    _refuse_loose_link(root)
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
