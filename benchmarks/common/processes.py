"""What a process and its descendants cost: proportional memory and processor seconds.

Invariant: helpers count, wherever they were started from within the tree; files in the page cache do not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_INTERVAL_S = 0.01


def tree(root: int) -> Iterator[int]:
    """Yield a process and its descendants; those that end meanwhile may be missing."""
    yield root
    with suppress(OSError):
        for children in Path(f"/proc/{root}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from tree(int(child))


def memory_bytes(root: int, without: int = 0) -> int:
    """Return the anonymous and shared memory of a tree, every page counted once (PSS)."""
    return sum(_proportional_bytes(pid) for pid in tree(root) if pid != without)


def _proportional_bytes(pid: int) -> int:
    total = 0
    # A process that ended while it was looked at holds nothing any more.
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(root: int) -> float:
    """Return the processor seconds of a tree, ended children included."""
    return sum(_ticks(pid) for pid in tree(root)) / _TICKS


def _ticks(pid: int) -> int:
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        # user, system, and both of the children that were waited for
        return sum(int(field) for field in text.rpartition(")")[2].split()[11:15])
    return 0


@dataclass
class MemoryPeak:
    """The largest memory of a tree while a block ran, beyond what it had before."""

    before_bytes: int = 0
    extra_bytes: int = 0


class MemoryWatch:
    """A process that samples the memory of the process which made it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.common.processes", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask()

    @contextmanager
    def peak(self) -> Iterator[MemoryPeak]:
        """Measure the block; the result stands once it has ended."""
        result = MemoryPeak(before_bytes=memory_bytes(os.getpid(), self._process.pid))
        self._ask()
        yield result
        result.extra_bytes = max(0, self._ask() - result.before_bytes)

    def _ask(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()


def main() -> None:
    """Sample until told to say the peak; begin anew then; end with the standard input."""
    root = int(sys.argv[1])
    peak = 0
    os.set_blocking(0, False)
    while True:
        peak = max(peak, memory_bytes(root, os.getpid()))
        request = _request()
        if request == b"":
            return
        if request:
            print(peak, flush=True)
            peak = 0
        time.sleep(_INTERVAL_S)


def _request() -> bytes | None:
    try:
        return os.read(0, 1)
    except BlockingIOError:
        return None


if __name__ == "__main__":
    main()
