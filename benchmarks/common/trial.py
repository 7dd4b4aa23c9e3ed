"""One measurement in a process of its own: ``python -m benchmarks.common.trial MODULE SUBJECT FOLDER BYTES SOCKET``.

Imports the script that asks the question and calls its `measure`; prints its figures as one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.common.backing import back_memory, follow
from benchmarks.common.question import OURS
from benchmarks.common.state import State, allocate, empty_like, fill, make_state, same
from benchmarks.peers import PEERS
from benchmarks.peers.base import Peer
from benchmarks.subjects import ADAPTERS

Figures = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """What one process measures.

    Attributes:
        subject: Whom.
        folder: Empty, on the disk to measure, removed afterwards.
        size_bytes: Of the state.
        socket: Where the process listens that backs memory.
    """

    subject: str
    folder: Path
    size_bytes: int
    socket: Path

    def state(self) -> State:
        """Return a fresh state."""
        return make_state(self.size_bytes)

    def peer(self) -> Peer:
        """Make the subject."""
        return PEERS[self.subject].make(self.folder)

    @contextmanager
    def prepared(self) -> Iterator[tuple[Peer, State]]:
        """Make the subject, tell it of a state whose memory nobody has touched, and build the state meanwhile."""
        state = dict(allocate(self.size_bytes))
        with self.peer() as peer:
            peer.prepare(state)
            for name, tensor in state.items():
                fill(name, tensor)
            yield peer, state

    def save(self, peer: Peer, state: State, step: int) -> tuple[float, float]:
        """Return the seconds until the tensors may change and until the save is durable."""
        self.back_memory()
        started = time.perf_counter()
        wait = peer.save(state, step)
        blocked = time.perf_counter() - started
        wait()
        return blocked, time.perf_counter() - started

    def load(self, peer: Peer, state: State, step: int) -> float:
        """Return the seconds to fill touched memory with what a step saved; every byte is compared."""
        into = empty_like(state)
        self.back_memory()
        started = time.perf_counter()
        peer.load(into, step)
        seconds = time.perf_counter() - started
        self.check(into, state)
        return seconds

    def check(self, loaded: State, saved: State) -> None:
        """End the trial when a load did not give back what was saved."""
        if not same(loaded, saved):
            raise SystemExit(f"{self.subject} did not give back what it was given")

    def back_memory(self) -> None:
        """Have what is free backed by the host."""
        back_memory(self.socket)


def versions(subject: str) -> str:
    """Return name and version of the distribution behind a subject."""
    adapter = ADAPTERS.get(subject)
    # What grows is fwstore itself: its subjects are sizes.
    distribution = adapter.distribution if adapter else OURS if subject.startswith(OURS) else ""
    return f"{distribution} {version(distribution)}" if distribution else ""


def main() -> None:
    """Measure one subject."""
    module, subject, folder, size, socket = sys.argv[1:]
    torch.set_num_threads(2)
    trial = Trial(subject, Path(folder), int(size), Path(socket))
    trial.folder.mkdir(parents=True, exist_ok=True)
    trial.back_memory()
    figures: Figures = importlib.import_module(module).measure(trial)
    # What this process frees as it ends is still backed.
    follow(trial.socket)
    print(json.dumps({"figures": figures, "version": versions(subject)}))


if __name__ == "__main__":
    main()
