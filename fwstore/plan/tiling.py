"""Whether boxes tile their targets: nothing missing, nothing twice.

Invariant: the answer is exact, and costs memory in proportion to the boxes and to one target, never to
all targets together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from fwstore.plan.box import Box

I64 = NDArray[np.int64]
_BATCH_ROWS = 1 << 19
_CORNERS_MAX = 1 << 25


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Boxes grouped by the target that they should tile.

    Attributes:
        target: Extent of every target, shape (targets, dimensions).
        group: The target of every box, ascending, shape (boxes,).
        offsets: Start of every box from the start of its target, shape (boxes, dimensions).
        sizes: Extent of every box; the box lies in its target and is not empty.
    """

    target: I64
    group: I64
    offsets: I64
    sizes: I64

    def of_target(self, number: int) -> tuple[I64, I64]:
        """Return offsets and sizes of the boxes of one target."""
        first, last = np.searchsorted(self.group, [number, number + 1]).tolist()
        return self.offsets[first:last], self.sizes[first:last]


@dataclass(frozen=True, slots=True)
class Flaw:
    """A part of a target that is in no box, or in more than one.

    Attributes:
        target: Number of the target.
        box: The part, from the start of the target.
        times: In how many boxes it is.
    """

    target: int
    box: Box
    times: int


def first_flaw(tiles: Tiles, *, twice_allowed: bool = False) -> Flaw | None:
    """Return the first flaw of the lowest target that is not tiled, or None when all are.

    Args:
        tiles: The boxes.
        twice_allowed: Only a part that is in no box is a flaw.
    """
    edges = _batches(tiles)
    for first, last in pairwise(edges):
        for number in _suspects(_slice(tiles, first, last)).tolist():
            flaw = _judge(tiles, first + number, twice_allowed=twice_allowed)
            if flaw is not None:
                return flaw
    return None


def _batches(tiles: Tiles) -> list[int]:
    """Return numbers of targets between which lie a bounded number of boxes and of targets."""
    edges = [0]
    while edges[-1] < len(tiles.target):
        first_row = int(np.searchsorted(tiles.group, edges[-1]))
        ahead = first_row + _BATCH_ROWS
        stop = int(tiles.group[ahead]) if ahead < len(tiles.group) else len(tiles.target)
        edges.append(max(edges[-1] + 1, min(stop, edges[-1] + _BATCH_ROWS)))
    return edges


def _slice(tiles: Tiles, first: int, last: int) -> Tiles:
    low, high = np.searchsorted(tiles.group, [first, last]).tolist()
    return Tiles(
        tiles.target[first:last],
        tiles.group[low:high] - first,
        tiles.offsets[low:high],
        tiles.sizes[low:high],
    )


def _suspects(tiles: Tiles) -> I64:
    """Return the targets that are not tiled, and perhaps others.

    Boxes tile a target exactly when their signed corners add up to those of the target: a box's
    indicator is determined by its mixed differences, which are +1 or -1 at the corners.
    """
    cut = np.flatnonzero((tiles.sizes != tiles.target[tiles.group]).any(axis=0))
    corners = 1 << len(cut)
    rows = len(tiles.group) + len(tiles.target)
    if rows * corners > _CORNERS_MAX:
        return np.arange(len(tiles.target), dtype=np.int64)
    target = tiles.target[:, cut]
    group = np.concatenate([tiles.group, np.arange(len(target), dtype=np.int64)])
    low = np.concatenate([tiles.offsets[:, cut], np.zeros_like(target)])
    size = np.concatenate([tiles.sizes[:, cut], target])
    sign = np.concatenate([np.ones(len(tiles.group), np.int64), np.full(len(target), -1, np.int64)])
    return _unbalanced(target, group, (low, size), sign)


def _unbalanced(target: I64, group: I64, boxes: tuple[I64, I64], sign: I64) -> I64:
    low, size = boxes
    points = np.prod(target + 1, axis=1, dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(points)])
    keys, signs = [], []
    for upper in product((0, 1), repeat=target.shape[1]):
        key = np.zeros(len(group), np.int64)
        for axis, high in enumerate(upper):
            key = key * (target[group, axis] + 1) + low[:, axis] + high * size[:, axis]
        keys.append(starts[group] + key)
        signs.append(sign if sum(upper) % 2 == 0 else -sign)
    every, order = np.concatenate(keys), np.concatenate(signs)
    sorting = np.argsort(every)
    every = every[sorting]
    firsts = np.flatnonzero(
        np.concatenate([np.ones(min(1, len(every)), np.bool_), every[1:] != every[:-1]])
    )
    if not len(firsts):
        return np.empty(0, np.int64)
    odd = every[firsts][np.add.reduceat(order[sorting], firsts) != 0]
    return np.unique(np.searchsorted(starts, odd, side="right") - 1)


def _judge(tiles: Tiles, number: int, *, twice_allowed: bool) -> Flaw | None:
    """Count how often every part of a target is covered, on the coarsest grid that fits all boxes."""
    offsets, sizes = tiles.of_target(number)
    target = tiles.target[number]
    edges = [
        np.unique(
            np.concatenate([[0, target[axis]], offsets[:, axis], offsets[:, axis] + sizes[:, axis]])
        )
        for axis in range(len(target))
    ]
    times = np.zeros(tuple(len(edge) - 1 for edge in edges), np.int32)
    for offset, size in zip(offsets, sizes, strict=True):
        times[
            tuple(
                slice(*np.searchsorted(edge, [low, low + length]).tolist())
                for edge, low, length in zip(edges, offset, size, strict=True)
            )
        ] += 1
    wrong = times == 0 if twice_allowed else times != 1
    if math.prod(times.shape) == 0 or not bool(wrong.any()):
        return None
    where = np.unravel_index(int(np.argmax(wrong)), times.shape)
    low = tuple(int(edge[at]) for edge, at in zip(edges, where, strict=True))
    high = tuple(int(edge[at + 1]) for edge, at in zip(edges, where, strict=True))
    box = Box(low, tuple(end - start for start, end in zip(low, high, strict=True)))
    return Flaw(number, box, int(times[where]))
