"""DCP's `Metadata` of a snapshot, and what a snapshot must remember to give it back.

Invariant: the names, the object paths and the version that DCP saved come back as they were; a snapshot
that DCP never saw gets those that DCP's planners would have given its state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from fwstore import (
    Checkpoint,
    Corrupt,
    InvalidInput,
    TensorSlot,
    UnsupportedValue,
    decode_state,
    encode_state,
)
from fwstore_torch.tensors import DTYPES

ANNOTATION = "torch.distributed.checkpoint"
"""Name under which a snapshot keeps what only DCP needs."""

ObjectPath = tuple[str | int, ...]
Span = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Leaf:
    """A value of the state that DCP knows by one name.

    Attributes:
        path: Where it stands in the state.
        value: A `TensorSlot`, a plain value, or a tuple that holds slots.
    """

    path: ObjectPath
    value: Any


@dataclass(frozen=True)
class Names:
    """The leaves of a state by DCP's name, and the object path of each as DCP spells it."""

    leaves: Mapping[str, Leaf]
    mapping: Mapping[str, ObjectPath]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What a snapshot keeps for DCP beside tensors and plain state.

    Attributes:
        version: DCP's version of the metadata.
        save_id: DCP's name of the save.
        derived: The names and `planner_data` are those that `name_leaves` finds, so they are not stored.
        planner_data: What the planner gave, unless it is derived.
        paths: Where every name stands in the state, unless that is derived.
        opaque: Names whose bytes are kept as a tensor of bytes.
        pieces: Global sizes and spans of tensors of which only a part was saved.
    """

    version: str | None = CURRENT_DCP_VERSION
    save_id: str | None = None
    derived: bool = True
    planner_data: Any = None
    paths: Mapping[str, ObjectPath] = field(default_factory=dict)
    opaque: frozenset[str] = frozenset()
    pieces: Mapping[str, tuple[tuple[int, ...], tuple[Span, ...]]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the stored form.

        Raises:
            UnsupportedValue: The planner's data has no stored form.
        """
        try:
            return encode_state(dict(vars(self)))
        except UnsupportedValue as error:
            raise UnsupportedValue(f"metadata of the DCP planner: {error.message}") from error

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Notes:
        """Return the notes of a checkpoint; defaults when DCP did not save it.

        Raises:
            Corrupt: The stored notes are not what this version writes.
        """
        encoded = checkpoint.annotation(ANNOTATION)
        if encoded is None:
            return cls()
        try:
            return cls(**decode_state(encoded))
        except TypeError as error:
            raise Corrupt(
                f"{checkpoint.run} step {checkpoint.step}: its DCP notes are malformed: {error}"
            ) from error


def object_path(name: str, planner_data: Any) -> ObjectPath:
    """Return where a name stands in the state: where a flattening planner found it, else at the top."""
    path = planner_data.get(name) if isinstance(planner_data, Mapping) else None
    if isinstance(path, tuple) and path and all(type(key) in (str, int) for key in path):
        return path
    return (name,)


def piece_path(path: ObjectPath, offsets: Iterable[int]) -> ObjectPath:
    """Return where a piece of a tensor that is not saved whole stands in the state."""
    return (*path, "at " + ",".join(map(str, offsets)))


def is_whole(size: Iterable[int], sizes: Iterable[Iterable[int]]) -> bool:
    """Return whether pieces that do not overlap fill a tensor."""
    return sum(math.prod(extent) for extent in sizes) == math.prod(size)


def build_state(values: Mapping[ObjectPath, Any]) -> dict[str, Any]:
    """Return the nested state of values by path."""
    keys = {str(number): path for number, path in enumerate(values)}
    flat = dict(zip(keys, values.values(), strict=True))
    state: dict[str, Any] = unflatten_state_dict(flat, keys)
    return state


def name_leaves(state: Any) -> Names:
    """Return the names that DCP's flattening planner would give a state.

    Raises:
        InvalidInput: Two values get the same name.
    """
    leaves: dict[str, Leaf] = {}
    mapping: dict[str, ObjectPath] = {}
    for path, shown, value in _walk(state, (), ()):
        name = ".".join(map(str, shown))
        if name in leaves:
            raise InvalidInput(
                f"two values of the checkpoint have the DCP name {name!r}; load it with fwstore instead"
            )
        leaves[name] = Leaf(path, value)
        mapping[name] = shown
    return Names(leaves, mapping)


def is_derived(state: Any, paths: Mapping[str, ObjectPath], planner_data: Any) -> bool:
    """Return whether `name_leaves` finds just these paths and this planner's data in a state."""
    try:
        found = name_leaves(state)
    except InvalidInput:
        return False
    where = {name: leaf.path for name, leaf in found.leaves.items()}
    return planner_data == found.mapping and where == paths


def _walk(
    value: Any, path: tuple[Any, ...], shown: ObjectPath
) -> Iterator[tuple[Any, ObjectPath, Any]]:
    if isinstance(value, Mapping):
        for key, element in value.items():
            yield from _walk(element, (*path, key), (*shown, str(key)))
    elif isinstance(value, list) and _has_branches(value):
        for number, element in enumerate(value):
            yield from _walk(element, (*path, number), (*shown, number))
    else:
        yield path, shown, value


def _has_branches(values: list[Any]) -> bool:
    return any(
        isinstance(value, (Mapping, TensorSlot))
        or (isinstance(value, list) and _has_branches(value))
        for value in values
    )


def read_names(checkpoint: Checkpoint, notes: Notes) -> Names:
    """Return the names of a checkpoint, as DCP saved them or as DCP would give them."""
    state = checkpoint.state()
    if notes.derived:
        _add_slots(state, checkpoint.tensors)
        return name_leaves(state)
    leaves = {name: Leaf(tuple(path), _at(state, path)) for name, path in notes.paths.items()}
    return Names(leaves, {})


def _add_slots(state: Any, paths: Iterable[Any]) -> None:
    """Add the tensors that rank 0, which gives the plain state, knew nothing of."""
    for path in paths:
        parent = state
        for key in path[:-1]:
            parent = parent.setdefault(key, {}) if isinstance(parent, dict) else parent[key]
        if isinstance(parent, dict):
            parent.setdefault(path[-1], TensorSlot("torch"))


def _at(state: Any, path: ObjectPath) -> Any:
    for key in path:
        try:
            state = state[key]
        except (LookupError, TypeError) as error:
            raise Corrupt(f"the state has nothing at {path}, which its DCP notes name") from error
    return state


def make_metadata(
    checkpoint: Checkpoint, notes: Notes, names: Names, meta: StorageMeta
) -> Metadata:
    """Return what DCP's planners plan a load with: every tensor is one chunk of any wanted boxes."""
    entries = {name: _entry(checkpoint, name, leaf, notes) for name, leaf in names.leaves.items()}
    return Metadata(
        state_dict_metadata=entries,
        planner_data=dict(names.mapping) if notes.derived else notes.planner_data,
        storage_data=dict(_places(entries, names.leaves)),
        storage_meta=meta,
        version=notes.version,
    )


def _entry(checkpoint: Checkpoint, name: str, leaf: Leaf, notes: Notes) -> STORAGE_TYPES:
    if name in notes.pieces:
        size, spans = notes.pieces[name]
        first = checkpoint.tensors[piece_path(leaf.path, spans[0][0])]
        return _tensor_metadata(first.dtype, size, spans)
    if name in notes.opaque or not isinstance(leaf.value, TensorSlot):
        return BytesStorageMetadata()
    tensor = checkpoint.tensors[leaf.path]
    return _tensor_metadata(tensor.dtype, tensor.shape, [((0,) * len(tensor.shape), tensor.shape)])


def _tensor_metadata(
    dtype: str, size: tuple[int, ...], spans: Iterable[Span]
) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=DTYPES[dtype]),
        size=torch.Size(size),
        chunks=[ChunkStorageMetadata(torch.Size(start), torch.Size(size)) for start, size in spans],
    )


def _places(
    entries: Mapping[str, STORAGE_TYPES], leaves: Mapping[str, Leaf]
) -> Iterator[tuple[MetadataIndex, ObjectPath]]:
    for name, entry in entries.items():
        if isinstance(entry, BytesStorageMetadata):
            yield MetadataIndex(name), leaves[name].path
        else:
            for chunk in entry.chunks:
                yield MetadataIndex(name, chunk.offsets), leaves[name].path
