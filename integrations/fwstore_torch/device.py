"""Tensors in the memory of a device, as fwstore copies to and from them.

Invariant: copies run on a side stream that first waits for the work queued when the tensor was described,
so training's own stream is never blocked and never overtaken.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

_RAW = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64, 16: torch.complex128}


def raw_view(value: torch.Tensor) -> torch.Tensor:
    """Return a view of the tensor's memory as unsigned integers of the same size."""
    return value.view(_RAW[value.element_size()])


class DeviceTensor:
    """A `fwstore.DeviceArray` over a tensor that is not in host memory."""

    def __init__(self, raw: torch.Tensor, ready: Any = None) -> None:
        self._raw = raw
        self._module = torch.get_device_module(raw.device)
        self._ready = ready or self._module.current_stream(raw.device).record_event()

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

    def copy_to_host(self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]) -> None:
        """Copy a part to host memory; returns when done."""
        self._copy(torch.from_numpy(target), self._raw[slices])

    def copy_from_host(self, slices: tuple[slice, ...], source: np.ndarray[Any, Any]) -> None:
        """Copy host memory over a part; returns when done."""
        writable = source if source.flags.writeable else source.copy()
        self._copy(self._raw[slices], torch.from_numpy(writable))

    @torch.no_grad()
    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        stream = _side_stream(self._raw.device)
        stream.wait_event(self._ready)
        done = self._module.Event()
        with self._module.stream(stream):
            target.copy_(source, non_blocking=True)
            done.record(stream)
        done.synchronize()


@functools.cache
def _side_stream(device: torch.device) -> Any:
    module = torch.get_device_module(device)
    return module.Stream() if device.type == "cpu" else module.Stream(device)


def pinned_memory(size_bytes: int) -> memoryview:
    """Return page-locked host memory, which devices copy to and from at full speed."""
    pinned: np.ndarray[Any, Any] = torch.empty(
        size_bytes, dtype=torch.uint8, pin_memory=True
    ).numpy()
    return pinned.data
