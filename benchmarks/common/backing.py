"""Keeps free memory backed by the host: ``python -m benchmarks.common.backing SOCKET``.

A virtual machine may hand free pages back to its host within seconds, and touching them again then runs at 0.5 GB/s
for everybody. This process touches and frees as much memory as it is asked for, right before a timed phase: what
follows finds pages that are there. It is a process of its own so that nothing of it shows in the measured one.

Invariant: it holds nothing between two requests, and ends with the series that started it.
"""

from __future__ import annotations

import mmap
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POPULATE_WRITE = 23
_HEADROOM = 0.8


def touch(size_bytes: int) -> None:
    """Touch and free memory, but never so much that others would have to be pushed out."""
    size = min(size_bytes, int(_available_bytes() * _HEADROOM))
    with mmap.mmap(-1, max(size, mmap.PAGESIZE)) as pages:
        pages.madvise(_POPULATE_WRITE)


def back_memory(path: Path, size_bytes: int) -> None:
    """Ask the process that listens at a socket to touch memory; returns when it has."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"{size_bytes}\n".encode())
        connection.makefile().readline()


@contextmanager
def backing_process(path: Path) -> Iterator[None]:
    """Run the process until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.common.backing", str(path)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo does not say how much memory is available")


def main() -> None:
    """Serve requests, one at a time, until killed."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                touch(int(connection.makefile().readline()))
                connection.sendall(b"done\n")


if __name__ == "__main__":
    main()
