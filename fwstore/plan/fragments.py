"""How much of a tensor a layout saves as fragments, over all ranks, without visiting any of them.

Invariant: the figures are exact. They need no list of boxes, because the boxes of all ranks are the
product of how each dimension is divided: a cell is whole where no dimension has an edge inside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fwstore.plan.grid import I64, Grid
from fwstore.plan.layout import Layout


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """What a layout makes of a grid.

    Attributes:
        elements: Elements of the tensor.
        fragment_elements: Those that are saved in fragments.
        chunks: Chunks of all ranks together, replicas counted once.
    """

    elements: int
    fragment_elements: int
    chunks: int

    @property
    def share(self) -> float:
        """The part of the elements that is in fragments, 0 to 1."""
        return self.fragment_elements / self.elements if self.elements else 0.0


def fragmentation(grid: Grid, layout: Layout) -> Fragmentation:
    """Return how a layout cuts the cells of a grid."""
    whole, chunks = 1, 1
    for axis, size in enumerate(grid.shape):
        splits = tuple((count, split.factor) for count, split in layout.splits(axis))
        cut, extra = _cut_cells(grid, axis, edges_along(size, splits))
        whole *= size - cut
        chunks *= grid.real_along[axis] + extra
    elements = math.prod(grid.shape)
    return Fragmentation(elements, elements - whole, chunks)


def _cut_cells(grid: Grid, axis: int, edges: I64) -> tuple[int, int]:
    """Return the extent of the cells that edges cut along a dimension, and how often they cut."""
    if not len(edges):
        return 0, 0
    extent, rows = grid.block_sizes[axis], grid.cells[axis][1]
    into = edges % extent % rows
    starts = np.unique((edges - into)[into > 0])
    stops = np.minimum(starts + rows, np.minimum((starts // extent + 1) * extent, grid.shape[axis]))
    return int((stops - starts).sum()), int(np.count_nonzero(into))


@lru_cache(maxsize=1 << 12)
def edges_along(size: int, splits: tuple[tuple[int, int], ...]) -> I64:
    """Return the indices at which a dimension passes from one shard to another.

    Args:
        size: Extent of the dimension.
        splits: In order, (extent of the mesh dimension, factor) of every split.
    """
    owner, starts = _shards_along(size, splits)
    edges: I64 = starts[1:][owner[1:] != owner[:-1]]
    return edges


def _shards_along(size: int, splits: tuple[tuple[int, int], ...]) -> tuple[I64, I64]:
    """Return shard and first index of every interval of a dimension, by index.

    This is `held_intervals` for all coordinates at once. Between splits, the intervals stand in the
    order of their shards, so that *packed* positions count the elements of shard 0, then 1, ...
    """
    if size == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    owner, starts, lengths = np.array([0]), np.array([0]), np.array([size])
    shards = 1
    for count, factor in splits:
        packed = np.cumsum(lengths) - lengths
        totals = np.zeros(shards, np.int64)
        np.add.at(totals, owner, lengths)
        bounds = _bounds(totals, count, factor)
        cuts = np.unique(np.concatenate([packed, bounds[bounds < size]]))
        interval = np.searchsorted(packed, cuts, side="right") - 1
        # Of several parts with the same start, only the last is not empty.
        part = np.searchsorted(bounds, cuts, side="right") - 1
        owner = part // (factor * count) * count + part % count
        order = np.lexsort((cuts, owner))
        starts = (starts[interval] + cuts - packed[interval])[order]
        lengths = np.diff(np.append(cuts, size))[order]
        owner = owner[order]
        shards *= count
    order = np.argsort(starts)
    return owner[order], starts[order]


def _bounds(totals: I64, count: int, factor: int) -> I64:
    """Return the packed start of every part, by old shard, then outer part, then coordinate."""
    origin = (np.cumsum(totals) - totals)[:, None, None]
    total = totals[:, None]
    outer = -(-total // factor)
    first = np.minimum(np.arange(factor) * outer, total)
    length = np.minimum(outer, total - first)[:, :, None]
    inner = -(-length // count)
    inside = np.minimum(np.arange(count) * inner, length)
    bounds: I64 = (origin + first[:, :, None] + inside).reshape(-1)
    return bounds
