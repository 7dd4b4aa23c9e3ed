"""Tensors of a checkpoint that are read when they are sliced.

Invariant: a slice reads and verifies only the chunks that hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fwstore.base.errors import InvalidInput
from fwstore.checkpoint.load import Fill, fill
from fwstore.checkpoint.reserved import is_reserved
from fwstore.checkpoint.shard import Piece, Shard, raw_dtype
from fwstore.checkpoint.states import common_kind, load_skeleton, slots_of
from fwstore.content.manifest import NoSuchTensor
from fwstore.format.paths import TensorPath, display_path
from fwstore.format.tensor import TensorInfo
from fwstore.plan.box import Box

if TYPE_CHECKING:
    from fwstore.checkpoint.snapshot import Checkpoint


class LazyTensor:
    """One tensor of a checkpoint; indexing it with slices reads that part."""

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo, kind: str) -> None:
        self._checkpoint = checkpoint
        self._info = info
        self.kind = kind

    def __repr__(self) -> str:
        return f"LazyTensor({self.name!r}, {self.dtype}{list(self.shape)})"

    @property
    def path(self) -> TensorPath:
        """Where it stands in the state."""
        return self._info.path

    @property
    def name(self) -> str:
        """Its path for people."""
        return display_path(self._info.path)

    @property
    def dtype(self) -> str:
        """Name of its element type."""
        return self._info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its global shape."""
        return self._info.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self._info.size_bytes

    @property
    def alias(self) -> TensorPath | None:
        """The path of the tensor that it is tied to, if it is tied."""
        return self._info.alias

    def __getitem__(self, index: Any) -> Any:
        """Read a part: integers, slices with any positive step, and ``...``.

        Returns:
            A tensor of the framework with which the state was saved.

        Raises:
            InvalidInput: The index does not fit the shape.
        """
        box, rest = _resolve(index, self.shape)
        access = self._checkpoint.access
        adapter = access.adapters.of_kind(self.kind)
        value = adapter.allocate(self.dtype, box.sizes)
        inner = adapter.describe(value, writable=True)
        pieces = tuple(Piece(box, piece.array) for piece in inner.pieces)
        shard = Shard(self.dtype, self.shape, pieces)
        manifest = self._checkpoint.manifest
        self._checkpoint.reading(
            lambda: fill(access, manifest, [Fill(self.path, self.dtype, shard, adapter)])
        )
        return value[rest]

    def read_raw(self, box: Box | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the verified bytes of a box, in C order.

        Args:
            box: In the global shape; None for the whole tensor.
        """
        box = Box.whole(self.shape) if box is None else box
        target = np.empty(box.sizes, raw_dtype(self.dtype))
        self._checkpoint.read_into({self.path: [(box, target)]})
        flat: np.ndarray[Any, np.dtype[np.uint8]] = target.reshape(-1).view(np.uint8)
        return flat


class TensorMapping(Mapping[TensorPath | str, LazyTensor]):
    """The tensors of a checkpoint by path or displayed name; iterates over paths."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        infos = checkpoint.reading(checkpoint.manifest.tensors)
        self._infos = {info.path: info for info in infos if not is_reserved(info.path)}
        self._slots = checkpoint.reading(
            lambda: slots_of(load_skeleton(checkpoint.access, checkpoint.manifest))
        )
        self._names: dict[str, list[TensorPath]] = {}
        for path in self._infos:
            self._names.setdefault(display_path(path), []).append(path)

    def __getitem__(self, key: TensorPath | str) -> LazyTensor:
        path = self._path(key)
        if path not in self._infos:
            raise NoSuchTensor(f"{self._checkpoint} has no tensor {key!r}")
        slot = self._slots.get(path)
        kind = common_kind(self._slots) if slot is None else slot.kind
        return LazyTensor(self._checkpoint, self._infos[path], kind)

    def __iter__(self) -> Iterator[TensorPath | str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def _path(self, key: TensorPath | str) -> TensorPath:
        if not isinstance(key, str):
            return key
        paths = self._names.get(key, [])
        if not paths:
            raise NoSuchTensor(f"{self._checkpoint} has no tensor {key!r}")
        if len(paths) > 1:
            raise InvalidInput(f"{key!r} names several tensors; use one of the paths {paths}")
        return paths[0]


def _resolve(index: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[Any, ...]]:
    """Return the box that covers an index, and the index into that box."""
    parts = index if isinstance(index, tuple) else (index,)
    where = next((n for n, part in enumerate(parts) if part is Ellipsis), None)
    if where is not None:
        filler = (slice(None),) * (len(shape) - len(parts) + 1)
        parts = (*parts[:where], *filler, *parts[where + 1 :])
    if len(parts) > len(shape):
        raise InvalidInput(f"an index of {len(parts)} dimensions does not fit shape {shape}")
    parts = (*parts, *(slice(None) for _ in range(len(shape) - len(parts))))
    axes = [_axis(part, size) for part, size in zip(parts, shape, strict=True)]
    box = Box(tuple(a[0] for a in axes), tuple(a[1] for a in axes))
    return box, tuple(a[2] for a in axes)


def _axis(part: Any, size: int) -> tuple[int, int, Any]:
    if isinstance(part, slice):
        return _slice(part, size)
    # numpy takes a bool for a mask, not for a number.
    if isinstance(part, bool | np.bool_) or not hasattr(part, "__index__"):
        raise InvalidInput(f"{part!r} cannot index a stored tensor; use integers and slices")
    try:
        number = part.__index__()
    except TypeError as error:
        raise InvalidInput(f"{part!r} cannot index a stored tensor: {error}") from error
    if not -size <= number < size:
        raise InvalidInput(f"index {number} is out of range for a dimension of {size}")
    return number % size, 1, 0


def _slice(part: slice, size: int) -> tuple[int, int, slice]:
    try:
        start, stop, step = part.indices(size)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{part!r} cannot index a stored tensor: {error}") from error
    if step < 1:
        raise InvalidInput("slices of a stored tensor need a positive step")
    return start, max(0, stop - start), slice(None, None, step)
