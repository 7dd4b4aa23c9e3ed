"""The bridge between torch tensors and fwstore's shards.

Invariant: a described tensor's pieces alias its live memory, so what is written to them stands in the
tensor at once; autograd sees nothing of it, neither a graph nor a new version.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fwstore import (
    Box,
    ForeignValue,
    InvalidInput,
    Piece,
    Shard,
    Unsupported,
    UnsupportedValue,
    itemsize,
    raw_dtype,
)
from fwstore_torch.device import DeviceTensor, raw_view

if TYPE_CHECKING:
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor
    from torch.distributed.tensor import DTensor

_LAZY = (UninitializedParameter, UninitializedBuffer)
# What nearly all tensors are: neither lazy nor distributed, which costs as much to ask as to describe them.
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def _is_stored(name: str) -> bool:
    try:
        itemsize(name)
    except Unsupported:
        return False
    return True


NAMES: dict[torch.dtype, str] = {
    dtype: name
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and _is_stored(name := str(dtype).removeprefix("torch."))
}
DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in NAMES.items()}


class TorchAdapter:
    """Tensors, parameters, DTensors and FSDP1's ShardedTensors on any device."""

    kind = "torch"

    def owns(self, value: Any) -> bool:
        """Return whether the value is a tensor of any sort."""
        return isinstance(value, torch.Tensor)

    def describe(self, value: torch.Tensor, *, writable: bool = False) -> Shard:
        """Return what this rank holds of a tensor; the pieces alias its live memory.

        Raises:
            UnsupportedValue: It is sparse, quantized, on the meta device, a pending sum (Partial) or of an
                unknown subclass.
            InvalidInput: It is to be written to and its elements share memory with each other.
        """
        if type(value) not in _PLAIN:
            if _is_dtensor(value):
                return _describe_dtensor(value, writable=writable)
            if _is_sharded(value):
                return _describe_sharded(value, writable=writable)
        _check_stored(value)
        shape = tuple(value.shape)
        piece = Piece(Box.whole(shape), _memory(value, writable=writable))
        return Shard(NAMES[value.dtype], shape, (piece,))

    def form(self, value: torch.Tensor) -> tuple[str, tuple[int, ...]]:
        """Return dtype name and global shape; the tensor may be on the meta device."""
        _check_form(value)
        return NAMES[value.dtype], tuple(value.shape)

    @torch.no_grad()
    def convert(
        self, source: np.ndarray[Any, Any], dtype: str, target: str
    ) -> np.ndarray[Any, Any]:
        """Return converted elements as a raw array of the same shape."""
        flat = torch.from_numpy(np.ascontiguousarray(source).reshape(-1).view(np.uint8))
        try:
            converted = flat.view(DTYPES[dtype]).to(DTYPES[target])
        except RuntimeError as error:
            raise Unsupported(f"torch cannot convert {dtype} to {target}: {error}") from error
        return converted.view(torch.uint8).numpy().view(raw_dtype(target)).reshape(source.shape)

    def identity(self, value: torch.Tensor) -> Hashable | None:
        """Return storage and geometry; None for tensors without elements or without one storage."""
        if type(value) not in _PLAIN:
            if _is_dtensor(value):
                local = self.identity(_local(value))
                return None if local is None else (local, tuple(value.shape), str(value.placements))
            if isinstance(value, _LAZY):
                return id(value)
            if _is_sharded(value):
                return None
        if value.layout != torch.strided or not value.numel():
            return None
        # Meta tensors have no address; tied ones still share the storage object.
        where = value.untyped_storage()._cdata if value.is_meta else value.data_ptr()  # noqa: SLF001
        if not where:
            # A tensor that wraps others, such as the pending result of a collective, has no address.
            return None
        signs = value.is_conj(), value.is_neg()
        return value.device, where, value.dtype, value.shape, value.stride(), signs

    def version(self, value: torch.Tensor) -> int | None:
        """Return autograd's count of changes, which changes by way of `.data` escape."""
        counted = not (_is_sharded(value) or value.is_inference())
        return value._version if counted else None  # noqa: SLF001 - the only name it has

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a new tensor with undefined elements on torch's default device.

        Raises:
            UnsupportedValue: This version of torch lacks the dtype.
        """
        if dtype not in DTYPES:
            raise UnsupportedValue(f"torch {torch.__version__} has no dtype {dtype}")
        return torch.empty(shape, dtype=_creatable(DTYPES[dtype])).view(DTYPES[dtype])

    def materialise(self, value: torch.Tensor) -> torch.Tensor:
        """Return the tensor to load into: for a meta tensor a new one with memory.

        Plain tensors get torch's default device, DTensors the device of their mesh; a parameter stays a
        parameter. The caller puts the result where the meta tensor stood.
        """
        local = _local(value) if type(value) not in _PLAIN and _is_dtensor(value) else value
        has_memory = not local.is_meta
        return value if has_memory else _materialised(value)

    def plain(self, value: Any) -> ForeignValue | None:
        """Return the inert form of a dtype, device, size, layout or memory format."""
        if isinstance(value, torch.Size):
            return ForeignValue("torch", "size", tuple(value))
        if isinstance(value, torch.device):
            return ForeignValue("torch", "device", (value.type, value.index))
        for noun, kind in _NAMED.items():
            if isinstance(value, kind):
                return ForeignValue("torch", noun, (str(value).removeprefix("torch."),))
        return None

    def revive(self, value: ForeignValue) -> Any:
        """Return torch's value of an inert form, or the form itself when this torch does not know it."""
        if value.noun == "size" and all(type(size) is int for size in value.fields):
            return torch.Size(value.fields)  # type: ignore[arg-type]  # checked in the line above
        if value.noun == "device" and len(value.fields) == 2:
            return _device(value)
        kind = _NAMED.get(value.noun)
        # Not getattr: torch imports submodules on attribute access, and a stored name must not do that.
        found = torch.__dict__.get(str(value.fields[0])) if value.fields else None
        return found if kind is not None and isinstance(found, kind) else value


adapter = TorchAdapter()

_NAMED: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def _device(value: ForeignValue) -> Any:
    kind, index = value.fields
    try:
        return torch.device(str(kind)) if index is None else torch.device(str(kind), int(index))
    except (RuntimeError, ValueError):
        return value


# Importing DTensor takes torch most of a second, and where nobody has done so no value can be one.
def _is_dtensor(value: Any) -> TypeGuard[DTensor]:
    module = sys.modules.get("torch.distributed.tensor")
    return isinstance(value, getattr(module, "DTensor", ()))


def _is_sharded(value: Any) -> TypeGuard[ShardedTensor]:
    module = sys.modules.get("torch.distributed._shard.sharded_tensor.api")
    return isinstance(value, getattr(module, "ShardedTensor", ()))


@torch.no_grad()
def _local(value: DTensor) -> torch.Tensor:
    local: torch.Tensor = value.to_local()
    return local


def _describe_dtensor(value: Any, *, writable: bool) -> Shard:
    local = _local(value)
    if hasattr(local, "wait"):
        local = local.wait()
    _check_stored(local)
    from fwstore_torch.layouts import layout_of

    layout = layout_of(value)
    shape = tuple(value.shape)
    rank = torch.distributed.get_rank()
    memory = _memory(local, writable=writable)
    parts = zip(layout.boxes(shape, rank), layout.local_boxes(shape, rank), strict=True)
    pieces = tuple(Piece(box, memory[local_box.slices()]) for box, local_box in parts)
    return Shard(NAMES[value.dtype], shape, pieces, layout)


def _describe_sharded(value: Any, *, writable: bool) -> Shard:
    pieces = []
    for shard in value.local_shards():
        _check_stored(shard.tensor)
        box = Box(tuple(shard.metadata.shard_offsets), tuple(shard.metadata.shard_sizes))
        pieces.append(Piece(box, _memory(shard.tensor, writable=writable)))
    return Shard(NAMES[value.dtype], tuple(value.size()), tuple(pieces))


def _check_form(value: torch.Tensor) -> None:
    if type(value) not in _PLAIN and isinstance(value, _LAZY):
        raise UnsupportedValue("a lazy parameter has no shape yet; run the model once")
    if value.is_quantized or value.dtype not in NAMES:
        raise UnsupportedValue(f"a tensor of dtype {value.dtype} cannot be stored")


def _check_stored(value: torch.Tensor) -> None:
    _check_form(value)
    if value.is_meta:
        raise UnsupportedValue("a tensor on the meta device has no elements to store")
    if value.layout != torch.strided:
        raise UnsupportedValue(
            f"a tensor of layout {value.layout} cannot be stored; use .to_dense()"
        )
    if hasattr(value, "__tensor_flatten__"):
        raise UnsupportedValue(
            f"a {type(value).__name__} wraps other tensors and cannot be stored; store those instead"
        )


def _memory(value: torch.Tensor, *, writable: bool) -> Any:
    """Return the raw memory of a strided tensor as numpy, or behind `DeviceArray` off the CPU."""
    plain = value.detach()
    if plain.is_conj() or plain.is_neg():
        if writable:
            raise InvalidInput("a lazily conjugated or negated view cannot be loaded into")
        plain = plain.resolve_conj().resolve_neg()
    if writable and not plain.is_contiguous() and _is_expanded(plain):
        raise InvalidInput("an expanded tensor cannot be loaded into: its elements share memory")
    raw = raw_view(plain)
    return raw.numpy() if raw.device.type == "cpu" else DeviceTensor(raw)


def _is_expanded(value: torch.Tensor) -> bool:
    return any(n > 1 and s == 0 for n, s in zip(value.shape, value.stride(), strict=True))


@torch.no_grad()
def _materialised(value: torch.Tensor) -> torch.Tensor:
    """Return a new tensor with memory in the place of a meta tensor."""
    if _is_dtensor(value):
        from torch.distributed.tensor import DTensor

        fresh: torch.Tensor = DTensor.from_local(
            _with_memory(value.to_local(), torch.device(value.device_mesh.device_type)),
            value.device_mesh,
            value.placements,
            run_check=False,
            shape=value.shape,
            stride=value.stride(),
        )
    else:
        fresh = _with_memory(value, torch.get_default_device())
    return nn.Parameter(fresh, value.requires_grad) if isinstance(value, nn.Parameter) else fresh


def _with_memory(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    raw = _creatable(value.dtype)
    return torch.empty_strided(value.shape, value.stride(), dtype=raw, device=device).view(
        value.dtype
    )


def _creatable(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype of the same size that torch creates without a warning about its maturity."""
    return torch.int32 if dtype == torch.complex32 else dtype
