"""Tensors in the memory of a device, as fwstore copies to and from them.

Invariant: copies run on a side stream that first waits for the work queued when the tensor was described,
so training's own stream is never blocked and never overtaken. Nothing waits for more than its own copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fwstore_torch.pinning import pin_memory

_RAW = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64, 16: torch.complex128}


def raw_view(value: torch.Tensor) -> torch.Tensor:
    """Return a view of the tensor's memory as unsigned integers of the same size."""
    return value.view(_RAW[value.element_size()])


class DeviceTensor:
    """A `fwstore.DeviceArray` over a tensor that is not in host memory.

    Attributes:
        pin: What pins host memory for its device, or None where that is of no use.
    """

    def __init__(self, raw: torch.Tensor, ready: Any = None) -> None:
        self._raw = raw
        self._module = torch.get_device_module(raw.device)
        self._ready = ready or self._module.current_stream(raw.device).record_event()
        self.pin = functools.partial(pin_memory, raw.device) if raw.device.type == "cuda" else None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The raw dtype of the elements."""
        size = self._raw.element_size()
        return np.dtype(np.complex128) if size == 16 else np.dtype(f"u{size}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The extent of the tensor."""
        return tuple(self._raw.shape)

    def __getitem__(self, slices: tuple[slice, ...]) -> DeviceTensor:
        return DeviceTensor(self._raw[slices], self._ready)

    def copy_to_host(
        self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]
    ) -> Callable[[], object]:
        """Begin to copy a part to host memory; returns what waits until it is there."""
        return self._copy(torch.from_numpy(target), self._raw[slices])

    def copy_from_host(self, slices: tuple[slice, ...], source: np.ndarray[Any, Any]) -> None:
        """Copy host memory over a part; returns when done."""
        writable = source if source.flags.writeable else source.copy()
        self._copy(self._raw[slices], torch.from_numpy(writable))()

    @torch.no_grad()
    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> Callable[[], object]:
        device, stream = self._raw.device, _side_stream(self._raw.device)
        stream.wait_event(self._ready)
        # A blocking event lets its waiter sleep; others spin on a core that training may need.
        done = self._module.Event(blocking=True)
        # The device first: leaving a stream of another than the thread's own would wake the thread's own up.
        with self._module.device(device), self._module.stream(stream):
            target.copy_(source, non_blocking=True)
            done.record(stream)
        wait: Callable[[], object] = done.synchronize
        return wait


@functools.cache
def _side_stream(device: torch.device) -> Any:
    return torch.get_device_module(device).Stream(device)
