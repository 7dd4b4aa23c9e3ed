"""Records the system calls that change a directory, as events of `support.powerloss`, and makes images real.

Invariant: every call of the directory store that changes names or bytes is among those that are watched; the image
in which nothing is lost equals the directory itself, which the tests compare.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fwstore.store import posix
from support.powerloss import ROOT, Event, Flush, Image, Name, Node, Note, Write

_LONG_AGO = 1_000_000_000


class Recorder:
    """The calls of this process below one directory.

    Attributes:
        events: What was changed and flushed, in order.
    """

    def __init__(self, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[Event] = []
        self._plain = {name: getattr(os, name) for name in _WATCHED}
        self._renameat2 = posix._renameat2
        # By inode number; one that is used anew gets a new node when it is made.
        self._nodes = {disk.stat().st_ino: ROOT}
        for name in _WATCHED:
            monkeypatch.setattr(os, name, getattr(self, f"_on_{name}"))
        monkeypatch.setattr(posix, "_renameat2", self._on_renameat2)

    def note(self, what: object) -> None:
        """Remember that something was acknowledged."""
        self.events.append(Note(what))

    def _on_open(self, path: Any, flags: int, *mode: int, **folder: int) -> int:
        descriptor: int = self._plain["open"](path, flags, *mode, **folder)
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL, "whether it made the file cannot be told"
            self._made(path, folder.get("dir_fd"), os.fstat(descriptor).st_ino, Node)
        return descriptor

    def _on_mkdir(self, path: Any, *mode: int, dir_fd: int | None = None) -> None:
        self._plain["mkdir"](path, *mode, dir_fd=dir_fd)
        number = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino
        self._made(path, dir_fd, number, lambda fresh: Node(fresh, folder=True))

    def _on_writev(self, descriptor: int, buffers: Sequence[Any]) -> int:
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        count: int = self._plain["writev"](descriptor, buffers)
        node = self._node(descriptor)
        if node is not None:
            content = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
            self.events.append(Write(node, offset, content[:count]))
        return count

    def _on_fsync(self, descriptor: int) -> None:
        self._plain["fsync"](descriptor)
        node = self._node(descriptor)
        if node is not None:
            self.events.append(Flush(node))

    def _on_link(self, source: str, name: str, **options: Any) -> None:
        self._plain["link"](source, name, **options)
        self._led(name, options["dst_dir_fd"])

    def _on_replace(self, source: str, name: str, **options: Any) -> None:
        self._plain["replace"](source, name, **options)
        self._moved(options["src_dir_fd"], source, options["dst_dir_fd"], name)

    def _on_renameat2(self, above: int, source: bytes, folder: int, name: bytes, flags: int) -> int:
        assert self._renameat2 is not None
        result: int = self._renameat2(above, source, folder, name, flags)
        if result == 0:
            self._moved(above, os.fsdecode(source), folder, os.fsdecode(name))
        return result

    def _on_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._plain["unlink"](path, dir_fd=dir_fd)
        self._gone(path, dir_fd)

    def _on_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._plain["rmdir"](path, dir_fd=dir_fd)
        self._gone(path, dir_fd)

    def _made(self, path: Any, folder: int | None, inode: int, make: Callable[[int], Node]) -> None:
        above = self._above(path, folder)
        if above is not None:
            self._nodes[inode] = make(len(self.events) + 1)
            self.events.append(Name(above, Path(path).name, self._nodes[inode]))

    def _led(self, name: str, folder: int) -> None:
        above = self._node(folder)
        if above is not None:
            inode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
            self.events.append(Name(above, name, self._nodes[inode]))

    def _moved(self, above: int, source: str, folder: int, name: str) -> None:
        self._led(name, folder)
        self._gone(source, above)

    def _gone(self, path: Any, folder: int | None) -> None:
        above = self._above(path, folder)
        if above is not None:
            self.events.append(Name(above, Path(path).name, None))

    def _above(self, path: Any, folder: int | None) -> Node | None:
        if folder is not None:
            return self._node(folder)
        return self._nodes.get(Path(path).parent.stat().st_ino)

    def _node(self, descriptor: int) -> Node | None:
        return self._nodes.get(os.fstat(descriptor).st_ino)


_WATCHED = ("open", "mkdir", "writev", "fsync", "link", "replace", "unlink", "rmdir")


@contextmanager
def recording(disk: Path) -> Iterator[Recorder]:
    """Record what happens below an existing directory."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Recorder(disk, monkeypatch)


def image_of(disk: Path) -> Image:
    """Return what a directory holds."""
    return {
        str(path.relative_to(disk)): None if path.is_dir() else path.read_bytes()
        for path in disk.rglob("*")
    }


def materialise(image: Image, disk: Path) -> None:
    """Make a directory that holds an image, written long ago: nobody who wrote it lives."""
    disk.mkdir()
    for path, content in sorted(image.items()):
        if content is None:
            (disk / path).mkdir()
        else:
            (disk / path).write_bytes(content)
            os.utime(disk / path, (_LONG_AGO, _LONG_AGO))
