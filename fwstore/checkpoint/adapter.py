"""How values of numpy, torch and others become shards, without importing what is not in use.

Invariant: this module imports no framework. An adapter is loaded when a value of its framework turns up,
or when a tensor of its kind is to be made again.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Hashable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

import numpy as np

from fwstore.base.errors import InternalError, InvalidInput, Unsupported, UnsupportedValue
from fwstore.checkpoint.shard import Piece, Shard, raw_dtype
from fwstore.format.dtypes import ITEMSIZE
from fwstore.format.paths import TensorPath, display_path
from fwstore.format.state import ForeignValue
from fwstore.plan.box import Box

ENTRY_POINT_GROUP = "fwstore.tensors"


class TensorAdapter(Protocol):
    """The bridge between the tensors of one framework and shards."""

    @property
    def kind(self) -> str:
        """Name of the framework as it is stored in the state."""
        ...

    def owns(self, value: Any) -> bool:
        """Return whether the value is a tensor of this framework."""
        ...

    def describe(self, value: Any, *, writable: bool = False) -> Shard:
        """Return what this rank holds of a tensor; the pieces alias its live memory.

        Args:
            value: A tensor that this adapter owns.
            writable: The pieces will be written to; refuse memory that cannot be loaded in place.

        Raises:
            UnsupportedValue: The tensor has no elements to save, or none that can be stored.
            InvalidInput: The tensor cannot be a destination.
        """
        ...

    def form(self, value: Any) -> tuple[str, tuple[int, ...]]:
        """Return dtype name and global shape of a tensor, which need not have memory."""
        ...

    def convert(
        self, source: np.ndarray[Any, Any], dtype: str, target: str
    ) -> np.ndarray[Any, Any]:
        """Return elements of one dtype converted to another, both as raw arrays of the same shape.

        Raises:
            Unsupported: The framework cannot convert between the two.
        """
        ...

    def identity(self, value: Any) -> Hashable | None:
        """Return the same value for tensors that share the same memory in the same way, else None."""
        ...

    def version(self, value: Any) -> int | None:
        """Return a number that every change of the tensor in place raises, or None where nobody counts."""
        ...

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return a new tensor with undefined elements."""
        ...

    def materialise(self, value: Any) -> Any:
        """Return the tensor to load into: the value itself, or a new one where it has no memory yet."""
        ...

    def plain(self, value: Any) -> ForeignValue | None:
        """Return the inert form of a small value of the framework, or None when it has none."""
        ...

    def revive(self, value: ForeignValue) -> Any:
        """Return the framework's own value of an inert form, or the form itself when it is unknown."""
        ...


class NumpyAdapter:
    """Arrays of numbers; arrays of text, dates or a foreign byte order stay in the plain state."""

    kind = "numpy"

    def owns(self, value: Any) -> bool:
        """Return whether the value is an array whose dtype has a stored name."""
        return type(value) in (np.ndarray, np.memmap) and _is_stored_dtype(value.dtype)

    def describe(self, value: Any, *, writable: bool = False) -> Shard:
        """Return the whole array as one piece."""
        if writable and not value.flags.writeable:
            raise InvalidInput("a read-only numpy array cannot be loaded into")
        return Shard(value.dtype.name, value.shape, (Piece(Box.whole(value.shape), value),))

    def form(self, value: Any) -> tuple[str, tuple[int, ...]]:
        """Return dtype name and shape."""
        return value.dtype.name, value.shape

    def convert(
        self, source: np.ndarray[Any, Any], dtype: str, target: str
    ) -> np.ndarray[Any, Any]:
        """Return converted elements as a raw array.

        Raises:
            Unsupported: numpy lacks one of the dtypes.
        """
        try:
            converted = source.view(np.dtype(dtype)).astype(np.dtype(target))
        except TypeError as error:
            raise Unsupported(
                f"numpy cannot convert {dtype} to {target}: import ml_dtypes first, or use torch tensors"
            ) from error
        return converted.view(raw_dtype(target))

    def identity(self, value: Any) -> Hashable | None:
        """Return address, shape, strides and dtype."""
        if not value.size:
            return None
        return value.__array_interface__["data"][0], value.shape, value.strides, value.dtype.name

    def version(self, value: Any) -> int | None:  # noqa: ARG002 - arrays are alike in this
        """Return None: numpy does not count changes."""
        return None

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return an empty array.

        Raises:
            Unsupported: numpy does not have the dtype.
        """
        try:
            return np.empty(shape, np.dtype(dtype))
        except TypeError as error:
            raise Unsupported(
                f"numpy has no dtype {dtype}: import ml_dtypes first, or load into torch tensors"
            ) from error

    def materialise(self, value: Any) -> Any:
        """Return the value: arrays always have memory."""
        return value

    def plain(self, value: Any) -> ForeignValue | None:  # noqa: ARG002 - numpy scalars are plain already
        """Return None."""
        return None

    def revive(self, value: ForeignValue) -> Any:
        """Return the value as it is."""
        return value


class ShardAdapter(NumpyAdapter):
    """`Shard` values that the caller made: several boxes of one rank, flat ranges, other frameworks."""

    def owns(self, value: Any) -> bool:
        """Return whether the value is a shard."""
        return isinstance(value, Shard)

    def describe(self, value: Any, *, writable: bool = False) -> Shard:
        """Return the shard itself."""
        for piece in cast("Shard", value).pieces:
            if writable and isinstance(piece.array, np.ndarray) and not piece.array.flags.writeable:
                raise InvalidInput("a shard with a read-only array cannot be loaded into")
        return cast("Shard", value)

    def form(self, value: Any) -> tuple[str, tuple[int, ...]]:
        """Return dtype name and global shape."""
        return value.dtype, value.shape

    def identity(self, value: Any) -> Hashable | None:
        """Return the identity of the object."""
        return id(value)


class Adapters:
    """Finds the adapter of a value by the modules of its type, and of a stored kind by its name."""

    def __init__(self, adapters: Iterable[TensorAdapter] = (), *, discover: bool = True) -> None:
        self._numpy = NumpyAdapter()
        self._known: list[TensorAdapter] = [*adapters, self._numpy, ShardAdapter()]
        self._points = _entry_points() if discover else {}
        self._of_type: dict[type, tuple[TensorAdapter, ...]] = {}

    def of_tensor(self, value: Any) -> TensorAdapter | None:
        """Return the adapter that owns a tensor, or None when the value is no tensor."""
        for adapter in self._candidates(type(value)):
            if adapter.owns(value):
                return adapter
        return None

    def owner(self, value: Any) -> TensorAdapter:
        """Return the adapter of a value that is known to be a tensor.

        Raises:
            InternalError: It is none.
        """
        adapter = self.of_tensor(value)
        if adapter is None:
            raise InternalError(f"a {type(value).__name__} was taken for a tensor")
        return adapter

    def form(self, path: TensorPath, value: Any) -> tuple[str, tuple[int, ...]]:
        """Return dtype name and global shape of a value that is known to be a tensor.

        Raises:
            InvalidInput: It has none yet, or none that can be stored; the path is named.
        """
        try:
            return self.owner(value).form(value)
        except InvalidInput as error:
            raise _named(path, error) from error

    def describe(
        self,
        path: TensorPath,
        value: Any,
        *,
        writable: bool = False,
        adapter: TensorAdapter | None = None,
    ) -> Shard:
        """Return what this rank holds of a value that is known to be a tensor.

        Args:
            path: Names it in errors.
            value: The tensor.
            writable: Whether it is to be loaded into.
            adapter: Its owner, where that is known.

        Raises:
            InvalidInput: It cannot be saved, or loaded into; the path is named.
        """
        try:
            shard = (adapter or self.owner(value)).describe(value, writable=writable)
            if writable:
                _refuse_overlaps(shard)
            return shard
        except InvalidInput as error:
            raise _named(path, error) from error

    def plain(self, value: Any) -> ForeignValue | None:
        """Return the inert form of a small framework value, or None when it is not one."""
        for adapter in self._candidates(type(value)):
            found = adapter.plain(value)
            if found is not None:
                return found
        return None

    def of_kind(self, kind: str) -> TensorAdapter:
        """Return the adapter that makes tensors of a stored kind; numpy's where that is not installed."""
        for adapter in self._known:
            if adapter.kind == kind:
                return adapter
        point = self._points.get(kind)
        return self._numpy if point is None else self._load(point) or self._numpy

    def revive(self, value: ForeignValue) -> Any:
        """Return the framework's value where the framework is loaded, else the inert form."""
        if any(adapter.kind == value.kind for adapter in self._known):
            return self.of_kind(value.kind).revive(value)
        return self.of_kind(value.kind).revive(value) if value.kind in sys.modules else value

    def _candidates(self, kind: type) -> tuple[TensorAdapter, ...]:
        found = self._of_type.get(kind)
        if found is None:
            # A subclass of a tensor may be defined anywhere, so all its bases are looked at.
            tops = {base.__module__.partition(".")[0] for base in kind.__mro__} - {"builtins"}
            for top in tops & self._points.keys():
                self._load(self._points[top])
            found = tuple(self._known) if tops else ()
            self._of_type[kind] = found
        return found

    def _load(self, point: EntryPoint) -> TensorAdapter | None:
        for adapter in self._known:
            if adapter.kind == point.name:
                return adapter
        try:
            loaded = cast("TensorAdapter", point.load())
        except ImportError:
            # The entry point is declared whether or not its framework is installed.
            return None
        self._known.insert(0, loaded)
        return loaded


@functools.cache
def default_adapters() -> Adapters:
    """Return the adapters of this process, discovered once."""
    return Adapters()


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _named(path: TensorPath, error: InvalidInput) -> InvalidInput:
    """Return a refusal that begins with the path of what is refused."""
    return type(error)(f"{display_path(path)}: {error.message}")


def _is_stored_dtype(dtype: np.dtype[Any]) -> bool:
    return dtype.name in ITEMSIZE and dtype.isnative and not dtype.hasobject


def _refuse_overlaps(shard: Shard) -> None:
    for piece in shard.pieces:
        if isinstance(piece.array, np.ndarray) and _may_overlap(piece.array):
            raise InvalidInput(
                "memory that stands for several elements cannot be loaded into; load into a copy"
            )


def _may_overlap(array: np.ndarray[Any, Any]) -> bool:
    """Return whether elements share memory; true of some odd strides whose elements only interleave."""
    if array.flags.c_contiguous or not array.size:
        return False
    reach = 0
    for stride, size in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if size > 1:
            if stride < reach + array.itemsize:
                return True
            reach += stride * (size - 1)
    return False


def refuse_bare(value: Any) -> UnsupportedValue:
    """Return the error for a state that is a tensor itself and so has no name to be stored under."""
    return UnsupportedValue(
        f"the state is a bare {type(value).__name__}; put it into a dict so that it has a name"
    )
