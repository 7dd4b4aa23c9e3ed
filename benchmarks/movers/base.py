"""The one face of everybody who copies checkpoints from store to store.

Invariant: what is read at the target is what a job there would take; nobody looks at the source for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import obstore

from benchmarks.common.bed import Bed, Place
from benchmarks.peers.floors import Bytes

_SHARDS = 4
_TENSORS = 32


class Mover(ABC):
    """One way to bring checkpoints from the source of a bed to its target.

    Args:
        folder: Of its own, empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, bed: Bed, checkpoint: Sequence[Bytes], step: int) -> None:
        """Put a checkpoint into the source: files of equal size, as most trainers write them."""
        store = bed.source.client()
        for number, shard in enumerate(np.array_split(np.concatenate(checkpoint), _SHARDS)):
            obstore.put(store, f"{_folder(step)}/shard-{number}", shard.tobytes())

    @abstractmethod
    def copy(self, bed: Bed) -> None:
        """Bring everything to the target."""

    def take_over(self, bed: Bed) -> tuple[int, Bytes] | None:
        """Return the newest checkpoint of the source as a job at the target gets it: copied, then read."""
        self.copy(bed)
        return self.newest(bed)

    def newest(self, bed: Bed) -> tuple[int, Bytes] | None:
        """Return step and bytes of what a job takes for the newest checkpoint at the target, if there is one."""
        store = bed.target.client()
        names = sorted(sizes_at(bed.target))
        if not names:
            return None
        last = names[-1].partition("/")[0]
        shards = [name for name in names if name.startswith(f"{last}/")]
        content = b"".join(bytes(obstore.get(store, name).bytes()) for name in shards)
        return int(last.rpartition("-")[2]), np.frombuffer(content, np.uint8)

    def strangers(self, bed: Bed) -> int:
        """Return how many objects of the target are not those of the source."""
        return len(sizes_at(bed.target).items() - sizes_at(bed.source).items())


def same_bytes(found: tuple[int, Bytes] | None, checkpoint: Sequence[Bytes], step: int) -> bool:
    """Return whether a checkpoint is what was saved at a step."""
    return (
        found is not None
        and found[0] == step
        and np.array_equal(found[1], np.concatenate(checkpoint))
    )


def half_changed(state: Sequence[Bytes], size: int, random: np.random.Generator) -> list[Bytes]:
    """Return tensors of random bytes of which every second one is what it was."""
    fresh = [random.integers(0, 256, size // _TENSORS, np.uint8) for _ in range(_TENSORS)]
    return [
        state[number] if state and number % 2 else tensor for number, tensor in enumerate(fresh)
    ]


def sizes_at(place: Place) -> dict[str, int]:
    """Return the names and sizes of all objects of a bucket."""
    return {entry["path"]: entry["size"] for page in obstore.list(place.client()) for entry in page}


def _folder(step: int) -> str:
    return f"step-{step:06d}"


def run_tool(name: str, arguments: Sequence[str], environment: Mapping[str, str] = {}) -> None:
    """Run a program that was installed beside this Python.

    Raises:
        SystemExit: It failed; its last words are told.
    """
    program = Path(sys.executable).parent / name
    ended = subprocess.run(
        [str(program), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(f"{name} failed: {ended.stderr[-2000:]}")
