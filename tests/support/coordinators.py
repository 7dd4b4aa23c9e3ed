"""Ranks as threads of one process: how they meet, and a job that they make up together.

Invariant: no call here waits for ever; a rank that hangs fails the test by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import fwstore
from fwstore.sched import ThreadScheduler

T = TypeVar("T")

HANG_S = 60.0


class Board:
    """What the ranks of one job tell each other; keys that were ever put stay in `journal`."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.journal: list[tuple[int, str]] = []
        self._lock = threading.Lock()

    def channels(self, world_size: int) -> list[SharedCoordinator]:
        """Return the coordinator of every rank."""
        return [SharedCoordinator(self, rank, world_size) for rank in range(world_size)]

    def put(self, rank: int, key: str, value: bytes) -> None:
        with self._lock:
            self.values[key] = value
            self.journal.append((rank, key))

    def poll(self, key: str) -> bytes | None:
        with self._lock:
            return self.values.get(key)

    def drop(self, key: str) -> None:
        with self._lock:
            self.values.pop(key, None)


class SharedCoordinator:
    """A rank's place at the board; a mute one says nothing any more, like a process that died."""

    def __init__(self, board: Board, rank: int, world_size: int) -> None:
        self.board = board
        self.rank = rank
        self.world_size = world_size
        self.mute = False

    def put(self, key: str, value: bytes) -> None:
        if not self.mute:
            self.board.put(self.rank, key, value)

    def poll(self, key: str) -> bytes | None:
        return self.board.poll(key)

    def drop(self, key: str) -> None:
        self.board.drop(key)


class HashStore:
    """What a c10d store does, in a dict."""

    def __init__(self, *, deletes: bool = True) -> None:
        self.values: dict[str, bytes] = {}
        self.deletes = deletes
        self.broken = False

    def set(self, key: str, value: bytes) -> None:
        self._check_alive()
        self.values[key] = value

    def check(self, keys: list[str]) -> bool:
        self._check_alive()
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key]

    def delete_key(self, key: str) -> bool:
        if not self.deletes:
            raise RuntimeError("this store does not delete")
        return self.values.pop(key, None) is not None

    def _check_alive(self) -> None:
        if self.broken:
            raise RuntimeError("connection reset by peer")


def together(functions: Sequence[Callable[[], T]]) -> list[T]:
    """Run functions side by side; once all have ended, raise the first error, in order."""
    return [future.result() for future in _run(functions)]


def outcomes(functions: Sequence[Callable[[], T]]) -> list[T | BaseException]:
    """Run functions side by side and return what came of each, errors as values."""
    return [future.exception() or future.result() for future in _run(functions)]


def _run(functions: Sequence[Callable[[], T]]) -> list[Future[T]]:
    scheduler = ThreadScheduler(1)
    futures = [scheduler.spawn(f"rank-{n}", function) for n, function in enumerate(functions)]
    _, hanging = wait(futures, HANG_S)
    assert not hanging, f"ranks {[n for n, f in enumerate(futures) if f in hanging]} hang"
    return futures


class ThreadJob:
    """A job whose ranks are threads, each with a repository of its own as a process would have.

    Args:
        url: The store.
        world_size: How many ranks.
        run: Name of the run.
        limits: Of every rank.
        repositories: Of every rank, where they are not all of that store.
        options: Of `Run.writer`.
    """

    def __init__(
        self,
        url: str,
        world_size: int,
        *,
        run: str = "run",
        limits: fwstore.Limits | None = None,
        repositories: Sequence[fwstore.Repository] = (),
        **options: Any,
    ) -> None:
        self.board = Board()
        self.channels = self.board.channels(world_size)
        limits = limits or fwstore.Limits(threads=2, commit_timeout_s=HANG_S / 2)
        self.repositories = repositories or [
            fwstore.open(url, limits=limits) for _ in range(world_size)
        ]
        self.writers: list[fwstore.Writer] = self.each_rank(
            lambda rank: (
                self.repositories[rank].run(run).writer(coordinator=self.channels[rank], **options)
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def ranks(self) -> range:
        """The ranks."""
        return range(len(self.channels))

    def each_rank(self, function: Callable[[int], T]) -> list[T]:
        """Run a function on every rank; raise the first error."""
        return together([partial(function, rank) for rank in self.ranks])

    def save(
        self, step: int, states: Sequence[Any], **options: Any
    ) -> list[fwstore.Checkpoint | None]:
        """Save one state per rank; wait until all have ended."""
        return self.each_rank(lambda rank: self.save_on(rank, step, states[rank], **options))

    def try_save(
        self, step: int, states: Sequence[Any], **options: Any
    ) -> list[fwstore.Checkpoint | BaseException | None]:
        """Save one state per rank; return what came of it on each, errors as values."""
        calls = [partial(self.save_on, r, step, states[r], **options) for r in self.ranks]
        return outcomes(calls)

    def save_on(self, rank: int, step: int, state: Any, **options: Any) -> Any:
        """Save on one rank and wait for the end."""
        return self.writers[rank].save(step, state, **options).result(HANG_S)

    def close(self) -> None:
        """Close all writers and repositories."""
        self.each_rank(lambda rank: self.writers[rank].close())
        for repository in self.repositories:
            repository.close()
