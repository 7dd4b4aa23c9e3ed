"""Directories of torch.distributed.checkpoint as lazy states, read without torch.

Invariant: `.metadata` is read as inert data, and only files beside it are opened. Each tensor must be
covered by its chunks exactly once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwstore import Box, Corrupt, FwstoreError, LimitExceeded, Piece, Shard, Unsupported, raw_dtype
from fwstore_migrate.dtypes import TORCH_DTYPES
from fwstore_migrate.files import FileRange, FileSource, FileTensor, member_path, open_file
from fwstore_migrate.limits import PICKLE_BYTES_MAX, PLAIN_BYTES_MAX
from fwstore_migrate.pickled import GETATTR, Built, Global, read_pickle
from fwstore_migrate.torch_values import Skipped, dtype_name, read_torch_file

METADATA_FILE = ".metadata"

_DCP = "torch.distributed.checkpoint"
_METADATA = f"{_DCP}.metadata"
_ALLOWED: frozenset[tuple[str, str]] = frozenset(
    {
        (_METADATA, "Metadata"),
        (_METADATA, "MetadataIndex"),
        (_METADATA, "StorageMeta"),
        (_METADATA, "BytesStorageMetadata"),
        (_METADATA, "TensorStorageMetadata"),
        (_METADATA, "ChunkStorageMetadata"),
        (_METADATA, "TensorProperties"),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        (f"{_DCP}.filesystem", "_StorageInfo"),
        ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
        ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
        (GETATTR.module, GETATTR.name),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib", "WindowsPath"),
        *(("torch", name) for name in TORCH_DTYPES),
    }
)


def read_dcp(folder: Path, skipped: Skipped) -> dict[str, Any]:
    """Return the nested state of a DCP directory.

    Args:
        folder: Holds `.metadata` and the files that it names.
        skipped: Tells the flat names that are left out.

    Raises:
        UnsupportedValue: `.metadata` or a value refers to a class that is not understood.
        Corrupt: The directory is malformed or incomplete.
        InvalidInput: It refers to files elsewhere.
    """
    source = open_file(folder / METADATA_FILE)
    if source.length > PICKLE_BYTES_MAX:
        raise LimitExceeded(f"{source.name} has {source.length} bytes; at most {PICKLE_BYTES_MAX}")
    metadata = read_pickle(source.read(0, source.length), _ALLOWED, source.name)
    try:
        reader = _Reader(folder, source.name, _storage(metadata))
        entries = _fields(metadata)["state_dict_metadata"].items()
        values = {name: reader.value(name, entry) for name, entry in entries if not skipped(name)}
        return _nest(values, _fields(metadata).get("planner_data"))
    except FwstoreError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise Corrupt(f"{source.name} is not what DCP writes: {error!r}") from error


@dataclass(frozen=True)
class _Place:
    file: str
    offset: int
    length: int


_Index = tuple[str, tuple[int, ...] | None]


def _fields(built: Any) -> dict[str, Any]:
    if not isinstance(built, Built):
        raise TypeError(f"{type(built).__name__} where an object should be")
    state = built.state if built.state is not None else {}
    if not isinstance(state, dict):
        raise TypeError(f"the state of {built.constructor} is malformed")
    return state


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Built) and value.constructor == Global("torch", "Size"):
        value = value.arguments[0]
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in value):
        raise ValueError("sizes are not whole numbers")
    return tuple(value)


def _storage(metadata: Any) -> dict[_Index, _Place]:
    places = {}
    for index, info in _fields(metadata)["storage_data"].items():
        key, value = _fields(index), _fields(info)
        if value.get("transform_descriptors"):
            raise Unsupported(f"{key['fqn']!r} is stored through a transform (compressed?)")
        offset = None if key.get("offset") is None else _sizes(key["offset"])
        numbers = _sizes((value["offset"], value["length"]))
        places[key["fqn"], offset] = _Place(value["relative_path"], *numbers)
    return places


@dataclass(frozen=True)
class _Reader:
    folder: Path
    name: str
    places: Mapping[_Index, _Place]
    files: dict[str, FileRange] = field(default_factory=dict)

    def value(self, name: str, entry: Built) -> Any:
        """Return a tensor as a lazy shard, or a plain value."""
        if entry.constructor.name == "BytesStorageMetadata":
            return self._plain(name)
        fields = _fields(entry)
        dtype, shape = dtype_name(_property(fields["properties"])), _sizes(fields["size"])
        chunks = [_chunk(_fields(chunk)) for chunk in fields["chunks"]]
        _check_cover(shape, chunks, f"{self.name}: tensor {name[:200]!r}")
        pieces = [Piece(box, self._source(name, box, dtype)) for box in chunks if box.volume]
        return Shard(dtype=dtype, shape=shape, pieces=tuple(pieces), kind="torch")

    def _plain(self, name: str) -> Any:
        source = self._range(name, None)
        if source.length > PLAIN_BYTES_MAX:
            raise LimitExceeded(f"{self.name}: the value {name[:200]!r} has {source.length} bytes")
        return read_torch_file(source)

    def _source(self, name: str, box: Box, dtype: str) -> DcpTensor:
        return DcpTensor(self._range(name, box.offsets), name, dtype, box.sizes)

    def _range(self, name: str, offset: tuple[int, ...] | None) -> FileRange:
        place = self.places.get((name, offset))
        if place is None:
            raise Corrupt(f"{self.name} does not say where {name[:200]!r} at {offset} is stored")
        if place.file not in self.files:
            self.files[place.file] = open_file(member_path(self.folder, place.file))
        return self.files[place.file].narrow(place.offset, place.length)


def _property(properties: Built) -> Any:
    state = properties.state
    return state["dtype"] if isinstance(state, dict) else state[0]


def _chunk(fields: dict[str, Any]) -> Box:
    return Box(_sizes(fields["offsets"]), _sizes(fields["sizes"]))


@dataclass(frozen=True, slots=True)
class DcpTensor(FileSource):
    """One chunk of a tensor: a torch.save archive in a range of a file, opened when it is read.

    Attributes:
        source: The range.
        name: The tensor, for messages.
        element: The name of its dtype in fwstore.
        shape: Sizes of the chunk.
    """

    source: FileRange
    name: str
    element: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The raw dtype of its elements."""
        return raw_dtype(self.element)

    def copy_to_host(self, slices: tuple[slice, ...], target: NDArray[Any]) -> None:
        """Read a box into an array of the same shape."""
        self._open().copy_to_host(slices, target)

    def _open(self) -> FileTensor:
        shard = read_torch_file(self.source)
        if not isinstance(shard, Shard) or (shard.dtype, shard.shape) != (self.element, self.shape):
            raise Corrupt(
                f"{self.source.name}: what is stored for tensor {self.name[:200]!r} is not the "
                f"{self.element} chunk of {self.shape} that {METADATA_FILE} describes"
            )
        tensor = shard.pieces[0].array
        if not isinstance(tensor, FileTensor):
            raise Corrupt(f"{self.source.name}: tensor {self.name[:200]!r} is not in its file")
        return tensor


def _check_cover(shape: tuple[int, ...], boxes: list[Box], name: str) -> None:
    """Refuse boxes that leave the shape, overlap, or leave a gap."""
    whole = Box.whole(shape)
    if any(len(box.sizes) != len(shape) or not whole.contains(box) for box in boxes):
        raise Corrupt(f"{name} has a chunk outside of its shape {shape}")
    filled = [box for box in boxes if box.volume]
    if sum(box.volume for box in filled) != math.prod(shape):
        raise Corrupt(f"{name} is not covered exactly once by its chunks; some are missing")
    if _overlap(filled):
        raise Corrupt(f"{name} has chunks that overlap")


def _overlap(boxes: list[Box]) -> bool:
    if len(boxes) < 2:
        return False
    starts = np.array([box.offsets for box in boxes])
    stops = starts + np.array([box.sizes for box in boxes])
    axis = int(np.argmax([len(np.unique(column)) for column in starts.T]))
    order = np.argsort(starts[:, axis], kind="stable")
    starts, stops = starts[order], stops[order]
    for index in range(len(boxes) - 1):
        last = int(np.searchsorted(starts[:, axis], stops[index, axis]))
        later = slice(index + 1, max(index + 1, last))
        meets = (starts[later] < stops[index]) & (stops[later] > starts[index])
        if meets.all(axis=1).any():
            return True
    return False


def _nest(values: Mapping[str, Any], paths: Any) -> dict[str, Any]:
    """Put flat values where the planner says they were in the nested state."""
    state: dict[str, Any] = {}
    for name, value in values.items():
        path = paths.get(name, (name,)) if isinstance(paths, dict) else (name,)
        if not isinstance(path, tuple) or not path or not all(type(k) in (str, int) for k in path):
            raise ValueError(f"the path of {name[:200]!r} is malformed")
        _set(state, path, value)
    return state


def _set(state: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key, following in itertools.pairwise(path):
        state = _enter(state, key, {} if isinstance(following, str) else [])
    if _enter(state, path[-1], value) is not value:
        raise ValueError(f"two values stand at {path!r}"[:300])


def _enter(container: Any, key: str | int, default: Any) -> Any:
    """Return what stands under a key, after putting the default there when nothing does."""
    if isinstance(container, dict):
        return container.setdefault(key, default)
    if not isinstance(container, list) or not isinstance(key, int) or not 0 <= key < 1 << 20:
        raise TypeError(f"{key!r} cannot be a key of a {type(container).__name__}")
    container += [None] * (key + 1 - len(container))
    if container[key] is None:
        container[key] = default
    return container[key]
