"""Which names a power loss would leave: those that stood in a directory when that was flushed.

Invariant: a name counts as durable only while it leads to the directory or file that it led to at that flush.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest


class Disk:
    """Watches the system calls that make and flush names.

    Attributes:
        flushes: The directories that were flushed, in order.
        wasted: Those of them in which every name was durable already.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushes: list[str] = []
        self.wasted: list[str] = []
        self._durable: dict[tuple[int, str], int] = {}
        self._lock = threading.RLock()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._on_fsync)
        for name, position, folder in (
            ("mkdir", 0, "dir_fd"),
            ("link", 1, "dst_dir_fd"),
            ("replace", 1, "dst_dir_fd"),
        ):
            monkeypatch.setattr(os, name, self._naming(getattr(os, name), position, folder))

    def keeps(self, root: Path, key: str) -> bool:
        """Return whether an object of a store would be found after a power loss now."""
        place = root
        with self._lock:
            for name in key.split("/"):
                child = (place / name).stat().st_ino
                if self._durable.get((place.stat().st_ino, name)) != child:
                    return False
                place /= name
        return True

    def forget(self) -> None:
        """Begin to count anew."""
        self.flushes.clear()
        self.wasted.clear()

    def _on_fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.is_dir():
            return
        with self._lock:
            found = {(path.stat().st_ino, entry.name): entry.inode() for entry in os.scandir(path)}
            self.flushes.append(str(path))
            if found.items() <= self._durable.items():
                self.wasted.append(str(path))
            self._durable |= found

    def _naming(self, call: Any, position: int, folder: str) -> Any:
        def watched(*names: Any, **options: Any) -> Any:
            with self._lock:
                done = call(*names, **options)
                path = Path(os.fspath(names[position]))
                above = options.get(folder)
                number = path.parent.stat().st_ino if above is None else os.fstat(above).st_ino
                # Its inode number may be that of something that had the name before.
                self._durable.pop((number, path.name), None)
            return done

        return watched
