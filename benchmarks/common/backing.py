"""Keeps free memory backed by the host: ``python -m benchmarks.common.backing SOCKET LEFT``.

A virtual machine may hand free pages back to its host within seconds, and touching them again then runs at 0.3-0.7
GB/s for everybody. This process holds what is free, so that it stays backed, and lets go of a little at a time as
others use it up: what they touch was held a moment before. Between trials it takes whatever becomes free; within
one only when it is asked to, since that costs processor time. It is a process of its own so that nothing of it shows
in the measured one.

Invariant: others always find memory that is free, it is the first to be killed where memory runs out nevertheless,
and it ends with the series that started it.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POPULATE_WRITE = 23
_BLOCK_BYTES = 64 << 20
LEFT_BYTES = 512 << 20
_SLACK_BYTES = 256 << 20
_INTERVAL_S = 0.02
_NICE = -10
_TAKE, _FOLLOW = b"t", b"f"


class Pool:
    """Memory that is held for others.

    Args:
        left_bytes: What others must always find.
    """

    def __init__(self, left_bytes: int = LEFT_BYTES) -> None:
        self._left_bytes = left_bytes
        self._blocks: list[mmap.mmap] = []

    def take(self) -> None:
        """Hold what is free, but for what others must always find."""
        while self.take_block():
            pass

    def take_block(self) -> bool:
        """Hold one more block; returns whether there was one."""
        enough = free_bytes() > self._left_bytes + _SLACK_BYTES
        if enough:
            self._hold()
        return enough

    def give(self) -> None:
        """Let go of as much as others have used up."""
        while self._blocks and free_bytes() < self._left_bytes:
            self._drop()

    def _hold(self) -> None:
        block = mmap.mmap(-1, _BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Small pages would scatter what is free, and cost a fault each.
        block.madvise(mmap.MADV_HUGEPAGE)
        block.madvise(_POPULATE_WRITE)
        self._blocks.append(block)

    def _drop(self) -> None:
        self._blocks.pop().close()


def free_bytes() -> int:
    """Return how much memory nobody uses, not even for files."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo does not say how much memory is free")


def back_memory(path: Path) -> None:
    """Have the process that listens at a socket hold what is free; returns when it does, and it rests from then on."""
    _ask(path, _TAKE)


def follow(path: Path) -> None:
    """Have the process take whatever becomes free from now on."""
    _ask(path, _FOLLOW)


def _ask(path: Path, request: bytes) -> None:
    if not path.exists():
        # Who measures little has no such process: what every process finds free is enough.
        return
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(request)
        connection.recv(1)


@contextmanager
def backing_process(path: Path, left_bytes: int = LEFT_BYTES) -> Iterator[None]:
    """Run the process until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.common.backing", str(path), str(left_bytes)],
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


def main() -> None:
    """Serve requests, one at a time, until killed."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(PermissionError):
        # Between trials others may keep every core busy.
        os.nice(_NICE)
    pool = Pool(int(sys.argv[2]))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        server.settimeout(_INTERVAL_S)
        print("ready", flush=True)
        following = False
        while True:
            pool.give()
            if following:
                # One at a time: a trial that begins must not wait for all of them.
                pool.take_block()
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                following = connection.recv(1) == _FOLLOW
                if not following:
                    pool.take()
                connection.sendall(b"d")


if __name__ == "__main__":
    main()
