"""What the link between a GPU and its host gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.common.state import State, size_of
from benchmarks.peers.base import Peer, Wait, done


class OneCopy(Peer):
    """All bytes in a single copy into pinned memory that is kept; nothing is stored."""

    def __init__(self, folder: Path) -> None:
        self._source: Any = None
        self._kept: Any = None

    def prepare(self, state: State) -> None:
        self._source = torch.zeros(size_of(state), dtype=torch.uint8, device="cuda")
        self._kept = torch.empty(size_of(state), dtype=torch.uint8, pin_memory=True)

    def save(self, state: State, step: int) -> Wait:
        self._kept.copy_(self._source, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return done

    def load(self, into: State, step: int) -> None:
        raise NotImplementedError("one copy stores nothing")
