"""Orbax, version 1 of its interface, on numpy arrays that share the memory of the tensors.

It neither fsyncs nor fills existing arrays, so both is done for it. numpy has no bf16; 16-bit integers stand in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.cache import sync_folder
from benchmarks.common.state import State
from benchmarks.peers.base import Peer, Wait


class Orbax(Peer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, step: int) -> Wait:
        from orbax.checkpoint.experimental import v1

        folder = self._folder / str(step)
        response: Any = v1.save_async(folder, _arrays(state))

        def wait() -> None:
            response.result()
            sync_folder(folder)

        return wait

    def load(self, into: State, step: int) -> None:
        from orbax.checkpoint.experimental import v1

        targets = _arrays(into)
        loaded: Any = v1.load(self._folder / str(step), targets)
        for name, target in targets.items():
            np.copyto(target, loaded[name])


def _arrays(state: State) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in state.items()
    }
