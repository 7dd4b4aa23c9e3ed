"""What one rank holds of a tensor: boxes of the global shape, each with the memory that holds it.

Invariant: a piece's array has exactly the sizes of its box and aliases the caller's memory as unsigned
integers of the element's size, so the layers below move bytes and never interpret them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fwstore.base.errors import InvalidInput, Unsupported
from fwstore.format.dtypes import itemsize
from fwstore.plan.box import Box
from fwstore.plan.layout import Layout

_RAW: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
    # numpy has no 16-byte integer; a complex number of that size is copied bit for bit as well.
    16: np.dtype(np.complex128),
}


def raw_dtype(dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype under which the bytes of a stored dtype are moved.

    Raises:
        Unsupported: The name is not a known dtype.
    """
    return _RAW[itemsize(dtype)]


@runtime_checkable
class DeviceArray(Protocol):
    """Memory of a device, or any other that numpy cannot address."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The raw dtype of its elements."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its extent, equal to the sizes of its box."""
        ...

    def copy_to_host(
        self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]
    ) -> Callable[[], object] | None:
        """Copy a part, as it was when the array was described, to host memory.

        Returns:
            None when it is done; or, where the device goes on by itself, what waits until it is. Until then the
            caller keeps the array and the target.
        """
        ...

    def copy_from_host(self, slices: tuple[slice, ...], source: np.ndarray[Any, Any]) -> None:
        """Copy host memory over a part; returns when done."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of the global tensor and the memory that holds it.

    Attributes:
        box: Where it lies in the global shape.
        array: A numpy array of any strides, or a `DeviceArray`. An array of another dtype of the same
            element size is taken as its raw bytes. One with a true attribute `stable`, such as a tensor in a
            file that is imported, never changes and is therefore not copied before it is written. One with an
            attribute `pin` is copied to memory that this function has pinned: it is given memory and returns
            what undoes it, or raises OSError.
    """

    box: Box
    array: np.ndarray[Any, Any] | DeviceArray

    def __post_init__(self) -> None:
        if isinstance(self.array, np.ndarray):
            raw = _RAW.get(self.array.dtype.itemsize)
            if raw is None or self.array.dtype.hasobject:
                raise InvalidInput(f"an array of dtype {self.array.dtype} cannot hold a tensor")
            if self.array.dtype != raw:
                object.__setattr__(self, "array", self.array.view(raw))
        if tuple(self.array.shape) != self.box.sizes:
            raise InvalidInput(
                f"a piece of shape {tuple(self.array.shape)} does not fill its box of {self.box.sizes}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What a plan needs to know of a shard beside its layout; shards of one form have the same one.

    Attributes:
        raw: The numpy dtype of its elements.
        pieces: Box of every piece, and whether its memory is C-contiguous.
    """

    raw: np.dtype[Any]
    pieces: tuple[tuple[Box, bool], ...]


@lru_cache(maxsize=1 << 16)
def _form(dtype: str, shape: tuple[int, ...], pieces: tuple[tuple[Box, bool], ...]) -> Form:
    """Return the one form of all such shards, checked once: a model has few, and every save describes all."""
    try:
        raw = raw_dtype(dtype)
    except Unsupported as error:
        raise InvalidInput(error.message) from error
    whole = Box.whole(shape)
    for box, _ in pieces:
        if len(box.sizes) != len(shape) or not whole.contains(box):
            raise InvalidInput(f"the box {box} lies outside the shape {shape}")
    return Form(raw, pieces)


def _is_flat(array: np.ndarray[Any, Any] | DeviceArray) -> bool:
    return isinstance(array, np.ndarray) and array.flags.c_contiguous


@dataclass(frozen=True, slots=True)
class Shard:
    """What this rank holds of one tensor.

    Attributes:
        dtype: Name of the element type, as torch spells it: ``"float32"``, ``"bfloat16"``.
        shape: The global shape.
        pieces: What this rank holds; none when it holds nothing.
        layout: How all ranks divide the tensor. None: no other rank holds any of these elements, or, if
            this rank holds the whole tensor, every rank that has it does.
        kind: The framework whose tensor a load makes of it: ``"numpy"`` or ``"torch"``.
        form: What plans need to know of it.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    layout: Layout | None = None
    kind: str = "numpy"
    form: Form = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pieces = tuple((piece.box, _is_flat(piece.array)) for piece in self.pieces)
        form = _form(self.dtype, self.shape, pieces)
        object.__setattr__(self, "form", form)
        for piece in self.pieces:
            if piece.array.dtype != form.raw:
                raise InvalidInput(
                    f"a piece with elements of {piece.array.dtype.itemsize} bytes cannot hold {self.dtype}"
                )

    def with_layout(self, layout: Layout) -> Shard:
        """Return the same shard with another layout; what was checked is not checked again."""
        found = object.__new__(Shard)
        for name in Shard.__slots__:
            object.__setattr__(found, name, getattr(self, name))
        object.__setattr__(found, "layout", layout)
        return found
