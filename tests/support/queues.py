"""A device that copies by itself: nothing is there until somebody has waited for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fwstore import Box, Piece, Shard


class QueuedArray:
    """An array whose copies to the host are made when they are waited for.

    Args:
        array: Its elements.
        pin: Pins memory for it.

    Attributes:
        queued: Copies begun and not waited for.
        longest: Most of them at once.
    """

    def __init__(self, array: np.ndarray[Any, Any], pin: Any = None) -> None:
        self.array = array.view(f"u{array.itemsize}")
        self.dtype, self.shape = self.array.dtype, array.shape
        self.pin = pin
        self.queued = self.longest = 0
        self._name = array.dtype.name

    @property
    def shard(self) -> Shard:
        """The array as a tensor of a state."""
        return Shard(self._name, self.shape, (Piece(Box.whole(self.shape), self),))

    def copy_to_host(
        self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]
    ) -> Callable[[], None]:
        """Begin to copy a part."""
        self.queued += 1
        self.longest = max(self.longest, self.queued)

        def wait() -> None:
            np.copyto(target, self.array[slices])
            self.queued -= 1

        return wait

    def copy_from_host(self, slices: tuple[slice, ...], source: np.ndarray[Any, Any]) -> None:
        """Copy host memory over a part."""
        self.array[slices] = source
