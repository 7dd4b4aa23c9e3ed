"""Real text that every machine has: the sources of Python's standard library.

Invariant: sample `i` of an epoch is a pure function of the seed and `i`, so any number of ranks reads the
same samples in the same order.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

CORPUS_BYTES = 8 << 20


def read_corpus(limit_bytes: int = CORPUS_BYTES) -> torch.Tensor:
    """Return the bytes of the standard library's sources, in the order of their paths."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py")):
        if "site-packages" not in path.parts:
            text += path.read_bytes()
        if len(text) >= limit_bytes:
            break
    return torch.frombuffer(text[:limit_bytes], dtype=torch.uint8)


class Samples:
    """Fixed windows of a corpus in a seeded order; its position is one number.

    Args:
        corpus: Bytes of text.
        window: Tokens of one sample.
        batch: Samples of one step, over all ranks together.
        seed: Chooses the order.
    """

    def __init__(self, corpus: torch.Tensor, window: int, batch: int, seed: int) -> None:
        self._corpus = corpus
        self._window = window
        self._batch = batch
        count = (len(corpus) - 1) // window
        self._order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.next = 0

    def take(self) -> list[int]:
        """Return the ids of the samples of the next step and move on."""
        ids = [
            int(self._order[i % len(self._order)])
            for i in range(self.next, self.next + self._batch)
        ]
        self.next += self._batch
        return ids

    def tokens(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, each of shape (samples, window)."""
        rows = [self._corpus[i * self._window : (i + 1) * self._window + 1].long() for i in ids]
        stacked = torch.stack(rows)
        return stacked[:, :-1], stacked[:, 1:]

    def state_dict(self) -> dict[str, int]:
        """Return the position: the same on every rank and for every number of ranks."""
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a position."""
        self.next = state["next"]
