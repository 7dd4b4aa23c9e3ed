"""Arrays of any bits and any geometry, saved in one step and compared bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import fwstore

RNG = np.random.default_rng(11)


def random_bits(dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Any bits, not-a-numbers with payloads among them."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    found = RNG.integers(0, 2 if dtype == "bool" else 256, count, dtype=np.uint8)
    return found.view(dtype).reshape(shape)


def save(run: fwstore.Run, state: Any, step: int = 0, **options: Any) -> fwstore.Checkpoint:
    with run.writer() as writer:
        checkpoint = writer.save(step, state, **options).result(60)
    assert checkpoint is not None
    return checkpoint


def same_bits(found: Any, expected: NDArray[Any]) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (
        expected.dtype,
        expected.shape,
        expected.tobytes(),
    )


def geometries() -> dict[str, NDArray[Any]]:
    base = random_bits("float32", (6, 4, 5))
    fixed = base[0].copy()
    fixed.flags.writeable = False
    return {
        "plain": base,
        "transposed": base.transpose(2, 0, 1),
        "fortran": np.asfortranarray(base[0]),
        "every other": base[::2, 1:],
        "reversed": base[::-1, :, ::-2],
        "reversed vector": np.arange(9.0)[::-1],
        "expanded": np.broadcast_to(base[:, :1], base.shape),
        "scalar expanded": np.broadcast_to(np.float64(3), (4, 3)),
        "overlapping": np.lib.stride_tricks.sliding_window_view(np.arange(8, dtype=np.int16), 3),
        "read-only": fixed,
        "zero-dimensional": np.array(-7, np.int64),
        "empty": np.zeros((0, 3), np.uint16),
        "empty inside": np.zeros((4, 0, 2), np.complex128),
        "empty view": base[3:3],
        "one": base[2:3, 1:2, 0],
    }
