"""Disks that are full and directories that may only be read, as the operating system has them.

A tmpfs or a bind mount where this user may mount; elsewhere the same errors come from the system calls.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    """Give a directory room for so many bytes."""
    path.mkdir()
    if _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)):
        try:
            yield path
        finally:
            _unmount(path)
    else:
        with pytest.MonkeyPatch.context() as monkeypatch:
            _limit_writes(monkeypatch, path, size_bytes)
            yield path


@contextmanager
def read_only(source: Path, path: Path) -> Iterator[Path]:
    """Show a directory at another path, where nothing can be written."""
    path.mkdir()
    if _mount("--bind", str(source), str(path)) and _mount("-o", "remount,ro,bind", str(path)):
        try:
            yield path
        finally:
            _unmount(path)
    else:
        with pytest.MonkeyPatch.context() as monkeypatch:
            _refuse_writes(monkeypatch)
            yield source


def _mount(*words: str) -> bool:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def _unmount(path: Path) -> None:
    # Lazily: a store keeps directories open until it is closed.
    subprocess.run(["umount", "-l", str(path)], check=True)


def _limit_writes(monkeypatch: pytest.MonkeyPatch, path: Path, size_bytes: int) -> None:
    plain = os.writev

    def writev(descriptor: int, buffers: Any) -> int:
        used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if used + sum(memoryview(buffer).nbytes for buffer in buffers) > size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(descriptor, buffers)

    monkeypatch.setattr(os, "writev", writev)


def _refuse_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.open

    def open_to_read(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return plain(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", open_to_read)
