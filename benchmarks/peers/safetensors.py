"""One file of safetensors, fsynced; nothing is verified on load."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.common.state import State
from benchmarks.peers.base import Peer, Wait, done


class Safetensors(Peer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, step: int) -> Wait:
        from safetensors.torch import save_file

        path = self._folder / f"{step}.safetensors"
        save_file(state, path)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return done

    def load(self, into: State, step: int) -> None:
        from safetensors import safe_open

        with safe_open(self._folder / f"{step}.safetensors", framework="pt") as stored:
            for name, tensor in into.items():
                tensor.copy_(stored.get_tensor(name))
