"""The one face of everybody who copies checkpoints from store to store."""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import obstore

from benchmarks.common.bed import Bed
from benchmarks.peers.floors import Bytes

_SHARDS = 4


class Mover(ABC):
    """One way to bring checkpoints from the source of a bed to its target.

    Args:
        folder: Of its own, empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, bed: Bed, checkpoint: Sequence[Bytes], step: int) -> None:
        """Put a checkpoint into the source: files of equal size, as most trainers write them."""
        store = bed.store(bed.source)
        content = np.concatenate(checkpoint)
        for number, shard in enumerate(np.array_split(content, _SHARDS)):
            obstore.put(store, f"step-{step:06d}/shard-{number}", shard.tobytes())

    @abstractmethod
    def copy(self, bed: Bed) -> None:
        """Bring everything to the target."""

    def check(self, bed: Bed, checkpoint: Sequence[Bytes], step: int) -> bool:
        """Return whether a checkpoint at the target is the one that was saved."""
        store = bed.store(bed.target)
        names = [f"step-{step:06d}/shard-{number}" for number in range(_SHARDS)]
        found = b"".join(bytes(obstore.get(store, name).bytes()) for name in names)
        return found == np.concatenate(checkpoint).tobytes()


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
