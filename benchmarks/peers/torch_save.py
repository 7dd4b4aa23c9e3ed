"""One file of torch.save, fsynced; loaded without code execution (`weights_only`)."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from benchmarks.common.state import State
from benchmarks.peers.base import Peer, Wait, done


class TorchSave(Peer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, step: int) -> Wait:
        with (self._folder / f"{step}.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        return done

    def load(self, into: State, step: int) -> None:
        stored = torch.load(self._folder / f"{step}.pt", weights_only=True)
        for name, tensor in into.items():
            tensor.copy_(stored[name])
