"""Memory whose copy waits until a test lets it go on, or fails."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fwstore import Box, Piece, Shard

_PATIENCE_S = 60.0


class HeldArray:
    """An array like that of a device.

    Args:
        array: Its elements.
        error: Raised by copies.
        held: Copies wait for the gate.

    Attributes:
        array: Where its elements are.
        error: Raised by the next copy, if any.
        copied: How many copies have ended.
    """

    def __init__(
        self,
        array: np.ndarray[Any, Any],
        error: BaseException | None = None,
        *,
        held: bool = True,
    ) -> None:
        self.array = array.view(f"u{array.itemsize}")
        self.error = error
        self.copied = 0
        self.gate = threading.Event()
        if not held:
            self.gate.set()
        self.arrived = threading.Event()
        self.dtype = self.array.dtype
        self.shape = array.shape
        self._name = array.dtype.name

    @property
    def shard(self) -> Shard:
        """The array as a tensor of a state."""
        return Shard(self._name, self.shape, (Piece(Box.whole(self.shape), self),))

    def wait_arrival(self) -> None:
        """Wait until somebody copies."""
        assert self.arrived.wait(_PATIENCE_S), "nobody copies"

    def copy_to_host(self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]) -> None:
        """Copy a part, once the gate is open."""
        self.arrived.set()
        assert self.gate.wait(_PATIENCE_S), "the gate was never opened"
        if self.error is not None:
            raise self.error
        target[...] = self.array[slices]
        self.copied += 1

    def copy_from_host(self, slices: tuple[slice, ...], source: np.ndarray[Any, Any]) -> None:
        """Copy host memory over a part."""
        self.array[slices] = source
