"""States that a step alone determines, so that whoever loads one knows every byte of it.

Invariant: no two steps have a chunk of `trained` in common; `frozen` is the same in all.
"""

from __future__ import annotations

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
