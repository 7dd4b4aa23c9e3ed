"""Grids whose cells follow one another in memory, so that whole runs of them are moved without a plan for each.

Invariant: where `flat_cells` returns something, the bytes of the cells in the order of their numbers are the
C-order bytes of the tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fwstore.plan.box import Box
from fwstore.plan.grid import I64, Grid


@dataclass(frozen=True, slots=True, eq=False)
class FlatCells:
    """A tensor that is cut along one dimension only, the first with more than one row.

    Attributes:
        shape: The tensor's shape.
        axis: The dimension.
        bounds: The row of `axis` at which every cell begins, and the end, shape (cells + 1,).
    """

    shape: tuple[int, ...]
    axis: int
    bounds: I64

    @property
    def row_elements(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape[self.axis + 1 :])

    def bytes_before(self, itemsize: int) -> list[int]:
        """Return how many bytes of the tensor lie before every cell, and all of them; not to be changed."""
        return _bytes_before(self, itemsize)

    def within(self, box: Box) -> tuple[int, int] | None:
        """Return the numbers of the first cell that lies whole in a box and of the one after the last.

        Returns:
            None when the elements of the box do not follow one another in the tensor, or no cell is whole.
        """
        if box.sizes == self.shape:
            return None if any(box.offsets) else (0, len(self.bounds) - 1)
        if len(box.sizes) != len(self.shape) or not Box.whole(self.shape).contains(box):
            return None
        if self._beside(box.sizes) != self._beside(self.shape):
            return None
        low, high = box.offsets[self.axis], box.stops[self.axis]
        first, last = np.searchsorted(self.bounds, (low, high + 1)).tolist()
        return (first, last - 1) if first < last - 1 else None

    def _beside(self, values: tuple[int, ...]) -> tuple[int, ...]:
        return values[: self.axis] + values[self.axis + 1 :]


@lru_cache(maxsize=1 << 9)
def flat_cells(shape: tuple[int, ...], cells: tuple[tuple[int, int], ...]) -> FlatCells | None:
    """Return the cells of a tensor if their bytes follow one another in it; None if not, or if it is empty."""
    grid = Grid(shape, cells)
    if 0 in shape:
        return None
    split = [axis for axis, real in enumerate(grid.real_along) if real > 1]
    axis = split[0] if split else next((a for a, size in enumerate(shape) if size > 1), 0)
    if len(split) > 1 or math.prod(shape[:axis]) > 1:
        return None
    offsets, _ = grid.cell_boxes(np.arange(grid.real, dtype=np.uint64))
    starts = offsets[:, axis] if shape else np.zeros(1, np.int64)
    return FlatCells(shape, axis, np.append(starts, shape[axis] if shape else 1))


# Whatever has the same form has the same cells: a model has few forms.
@lru_cache(maxsize=1 << 9)
def _bytes_before(cells: FlatCells, itemsize: int) -> list[int]:
    found: list[int] = (cells.bounds * (cells.row_elements * itemsize)).tolist()
    return found
