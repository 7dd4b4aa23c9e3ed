"""Boxes of the global shape of a tensor: the one coordinate system that all ranks and saves share.

Invariant: a box says where elements are in the whole tensor, never where they are in memory. A tensor
without dimensions has one box of volume 1; a box with a size of 0 holds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor that is contiguous in every dimension.

    Attributes:
        offsets: First index in every dimension.
        sizes: Extent in every dimension.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=1 << 12)
    def whole(shape: tuple[int, ...]) -> Box:
        """Return the box of a whole tensor; the same one for all tensors of a shape, of which a model has few."""
        return Box((0,) * len(shape), tuple(shape))

    @property
    def stops(self) -> tuple[int, ...]:
        """One past the last index in every dimension."""
        return tuple(offset + size for offset, size in zip(self.offsets, self.sizes, strict=True))

    @property
    def volume(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    def intersect(self, other: Box) -> Box | None:
        """Return what both boxes hold, or None when that is nothing."""
        offsets = tuple(map(max, self.offsets, other.offsets))
        stops = tuple(map(min, self.stops, other.stops))
        sizes = tuple(stop - offset for offset, stop in zip(offsets, stops, strict=True))
        return Box(offsets, sizes) if all(size > 0 for size in sizes) else None

    def contains(self, other: Box) -> bool:
        """Return whether every index range of the other box lies in this one."""
        return all(
            low <= other_low and other_high <= high
            for low, high, other_low, other_high in zip(
                self.offsets, self.stops, other.offsets, other.stops, strict=True
            )
        )

    def relative_to(self, origin: Box) -> Box:
        """Return this box as seen from the first element of another."""
        return Box(
            tuple(mine - first for mine, first in zip(self.offsets, origin.offsets, strict=True)),
            self.sizes,
        )

    def slices(self) -> tuple[slice, ...]:
        """Return the index that selects this box from an array of the whole."""
        return tuple(
            slice(offset, offset + size)
            for offset, size in zip(self.offsets, self.sizes, strict=True)
        )


def flat_boxes(shape: tuple[int, ...], start: int, stop: int) -> tuple[Box, ...]:
    """Return the boxes of a range of a tensor flattened in C order.

    Args:
        shape: The tensor's shape.
        start: First element of the range.
        stop: One past the last element.

    Returns:
        At most `2 * len(shape) - 1` boxes (one for a tensor without dimensions) whose elements, one box
        after the other and each in C order, are the elements of the range.
    """
    if start >= stop:
        return ()
    if not shape:
        return (Box((), ()),)
    row = math.prod(shape[1:])
    first, last = start // row, stop // row
    if first == last:
        return _in_row(first, flat_boxes(shape[1:], start % row, stop % row))
    head: tuple[Box, ...] = ()
    if start % row:
        head = _in_row(first, flat_boxes(shape[1:], start % row, row))
        first += 1
    tail = _in_row(last, flat_boxes(shape[1:], 0, stop % row))
    inner = Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    return (*head, inner, *tail) if first < last else (*head, *tail)


def _in_row(row: int, boxes: tuple[Box, ...]) -> tuple[Box, ...]:
    return tuple(Box((row, *box.offsets), (1, *box.sizes)) for box in boxes)
