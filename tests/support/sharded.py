"""What the ranks of a job hold of whole arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fwstore import Layout, Piece, Shard, Split


def rows(world_size: int, dim: int = 0) -> Layout:
    """A layout that divides one dimension among all ranks."""
    return Layout((world_size,), (Split(dim),), tuple(range(world_size)))


def shard(array: np.ndarray[Any, Any], layout: Layout, rank: int) -> Shard:
    """Return what a rank of a layout holds of an array; the pieces alias it."""
    pieces = tuple(Piece(b, np.asarray(array[b.slices()])) for b in layout.boxes(array.shape, rank))
    return Shard(array.dtype.name, array.shape, pieces, layout)


def divided(arrays: Mapping[str, Any], layout: Layout) -> list[dict[str, Any]]:
    """Return the state of every rank of a layout; scalars and plain values are given to all."""
    return [
        {
            name: shard(array, layout, rank) if getattr(array, "ndim", 0) else array
            for name, array in arrays.items()
        }
        for rank in layout.ranks
    ]


def empty_like(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with the same shards over new memory."""
    return {name: _empty(value) for name, value in states.items()}


def _empty(value: Any) -> Any:
    if not isinstance(value, Shard):
        return value
    pieces = tuple(Piece(p.box, np.zeros_like(np.asarray(p.array))) for p in value.pieces)
    return Shard(value.dtype, value.shape, pieces, value.layout)
