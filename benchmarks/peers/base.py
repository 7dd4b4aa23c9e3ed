"""The one face that every peer has: save a flat dict of tensors so that it is durable, and load it again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from benchmarks.common.state import State

T = TypeVar("T")
Wait = Callable[[], object]


@dataclass(frozen=True)
class Adapter(Generic[T]):
    """How to get a subject of a benchmark.

    Attributes:
        make: It, with the folder it may use.
        distribution: Whose version is reported; empty for the raw machine.
        requirement: What to install into an environment of its own; empty when the project's has it.
    """

    make: Callable[[Path], T]
    distribution: str = ""
    requirement: str = ""


class Peer(ABC):
    """One way to keep checkpoints in a directory."""

    def prepare(self, state: State) -> None:  # noqa: B027 - most peers have nothing to prepare
        """Get ready for a state, as early as a training program could: while it builds its model."""

    @abstractmethod
    def save(self, state: State, step: int) -> Wait:
        """Save; returns when the tensors may change, and what waits until the save is durable."""

    def staged(self) -> Wait:
        """Return what waits until the tensors of the last save may change: most have copied all when they return."""
        return done

    @abstractmethod
    def load(self, into: State, step: int) -> None:
        """Fill existing tensors."""

    def close(self) -> None:  # noqa: B027 - most peers hold nothing
        """Let go of everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def done() -> None:
    """Wait for a save that was durable when it returned."""
