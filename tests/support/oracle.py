"""States that a step alone determines, and a memory of what was acknowledged, outside of any store.

Invariant: whoever loads a state knows every bit of it, and what `Oracle` has noted survives the death of the
process that noted it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def trained(step: int, rows: int = 16, columns: int = 64) -> npt.NDArray[np.float32]:
    """A tensor that every step changes everywhere."""
    return np.random.default_rng([1, step]).random((rows, columns), np.float32)


def frozen(rows: int = 16, columns: int = 64) -> npt.NDArray[np.float32]:
    """A tensor that no step changes."""
    return np.random.default_rng(0).random((rows, columns), np.float32)


def make_state(step: int) -> dict[str, Any]:
    """A small state with tensors of several kinds and plain values."""
    weight = trained(step)
    return {
        "model": {"frozen": frozen(), "trained": weight, "tied": weight, "empty": np.empty((0, 3))},
        "optimizer": [{"moment": trained(step) * 2, "lr": 0.1 / (step + 1)}],
        "step": step,
        "name": f"step {step}",
    }


def same(left: Any, right: Any) -> bool:
    """Return whether two nested states are equal bit by bit."""
    if isinstance(left, np.ndarray):
        return (
            isinstance(right, np.ndarray)
            and (left.dtype, left.shape) == (right.dtype, right.shape)
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(same(value, right[key]) for key, value in left.items())
        )
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and bool(left == right)


@dataclass(frozen=True)
class Oracle:
    """Lines that processes append until they are killed: one write each, flushed to the disk."""

    path: Path

    def note(self, line: str) -> None:
        """Remember a line for good."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lines(self) -> list[str]:
        """Everything noted so far."""
        return self.path.read_text().splitlines() if self.path.exists() else []
