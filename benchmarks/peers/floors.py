"""The raw machine as a peer: what two threads can copy, write and read of the same bytes, and nothing else.

Invariant: they save and load the very tensors that the others do, and give them back bit for bit.
"""

from __future__ import annotations

import mmap
import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.state import State
from benchmarks.peers.base import Peer, Wait, done

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Run = tuple[int, list[Bytes]]

THREADS = 2
_CALL_BYTES = 16 << 20
_CALL_BUFFERS = 512
_BLOCK = 4096


def views(state: State) -> list[Bytes]:
    """Return the memory of the tensors, in order."""
    return [tensor.flatten().view(torch.uint8).numpy() for tensor in state.values()]


def memory_of(run: Run) -> list[memoryview]:
    """Return the buffers of a run as calls of the system take them."""
    return [buffer.data for buffer in run[1]]


def runs(buffers: Iterable[Bytes]) -> list[Run]:
    """Cut a row of buffers into runs, each with its offset, that one call may take."""
    result: list[Run] = []
    offset = room = 0
    for buffer in buffers:
        if buffer.nbytes > room or len(result[-1][1]) >= _CALL_BUFFERS:
            result.append((offset, []))
            room = _CALL_BYTES
        result[-1][1].append(buffer)
        offset += buffer.nbytes
        room -= buffer.nbytes
    return result


def in_threads(work: Callable[[Run], object], parts: list[Run]) -> None:
    """Do the runs on two threads, each a contiguous half."""
    half = (len(parts) + 1) // THREADS
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda share: [work(part) for part in share], (parts[:half], parts[half:])))


class Memcpy(Peer):
    """Copies into buffers that it keeps; nothing is stored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[Bytes] = []

    def prepare(self, state: State) -> None:
        self._kept = [np.zeros_like(view) for view in views(state)]

    def save(self, state: State, step: int) -> Wait:
        _copy(views(state), self._kept)
        return done

    def load(self, into: State, step: int) -> None:
        _copy(self._kept, views(into))


def _copy(sources: list[Bytes], targets: list[Bytes]) -> None:
    pairs = dict(zip(map(id, targets), sources, strict=True))

    def copy(run: Run) -> None:
        for target in run[1]:
            np.copyto(target, pairs[id(target)])

    in_threads(copy, runs(targets))


class _OneFile(Peer):
    """One file with the bytes of the tensors in a row."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, step: int) -> Wait:
        descriptor = self._open(step, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            self.write(descriptor, views(state))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return done

    @abstractmethod
    def write(self, descriptor: int, buffers: list[Bytes]) -> None:
        """Write the buffers in a row."""

    def load(self, into: State, step: int) -> None:
        descriptor = self._open(step, os.O_RDONLY)

        def read(run: Run) -> None:
            _complete(os.preadv(descriptor, memory_of(run), run[0]), run)

        try:
            in_threads(read, runs(views(into)))
        finally:
            os.close(descriptor)

    def _open(self, step: int, flags: int) -> int:
        return os.open(self._folder / f"{step}.raw", flags, 0o600)


class TwoThreads(_OneFile):
    """Two threads that pwrite, then one fsync."""

    def write(self, descriptor: int, buffers: list[Bytes]) -> None:
        def write(run: Run) -> None:
            _complete(os.pwritev(descriptor, memory_of(run), run[0]), run)

        in_threads(write, runs(buffers))


class Sequential(_OneFile):
    """One thread that writes, then one fsync."""

    def write(self, descriptor: int, buffers: list[Bytes]) -> None:
        for run in runs(buffers):
            _complete(os.writev(descriptor, memory_of(run)), run)


class Direct(_OneFile):
    """Two threads that copy into aligned memory and write past the page cache."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._kept = threading.local()

    def _open(self, step: int, flags: int) -> int:
        # Only writing goes past the cache; the destinations of a load are not aligned.
        return super()._open(step, flags | (os.O_DIRECT if flags & os.O_RDWR else 0))

    def write(self, descriptor: int, buffers: list[Bytes]) -> None:
        row = _aligned(runs(buffers))
        largest = max(sum(buffer.nbytes for buffer in run[1]) for run in row)

        def write(run: Run) -> None:
            if not hasattr(self._kept, "memory"):
                self._kept.memory = np.frombuffer(mmap.mmap(-1, largest + _BLOCK), np.uint8)
            _write_aligned(descriptor, run, self._kept.memory)

        in_threads(write, row)
        os.truncate(descriptor, sum(buffer.nbytes for buffer in buffers))


def _aligned(parts: list[Run]) -> list[Run]:
    """Move the ends of runs to whole blocks."""
    result: list[Run] = []
    rest: list[Bytes] = []
    for offset, buffers in parts:
        start = offset - sum(buffer.nbytes for buffer in rest)
        row = [*rest, *buffers]
        size = sum(buffer.nbytes for buffer in row)
        whole, rest = split_buffers(row, size - size % _BLOCK)
        result.append((start, whole))
    if rest:
        result.append((result[-1][0] + sum(b.nbytes for b in result[-1][1]), rest))
    return result


def split_buffers(buffers: list[Bytes], size: int) -> tuple[list[Bytes], list[Bytes]]:
    """Return the buffers of the first bytes, and those of the rest."""
    whole: list[Bytes] = []
    for index, buffer in enumerate(buffers):
        if buffer.nbytes > size:
            return [*whole, buffer[:size]], [buffer[size:], *buffers[index + 1 :]]
        whole.append(buffer)
        size -= buffer.nbytes
    return whole, []


def _write_aligned(descriptor: int, run: Run, memory: Bytes) -> None:
    offset, buffers = run
    position = 0
    for buffer in buffers:
        np.copyto(memory[position : position + buffer.nbytes], buffer)
        position += buffer.nbytes
    padded = memory[: -(-position // _BLOCK) * _BLOCK]
    _complete(os.pwrite(descriptor, padded.data, offset), (offset, [padded]))


def _complete(moved: int, run: Run) -> None:
    wanted = sum(buffer.nbytes for buffer in run[1])
    if moved != wanted:
        raise OSError(f"moved {moved} bytes of {wanted}")
