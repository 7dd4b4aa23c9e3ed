"""Safetensors checkpoints as lazy states: one file, or the files that an index names.

Invariant: a tensor is read from the one file that both the index and that file's header name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fwstore import Corrupt, InvalidInput, LimitExceeded
from fwstore_migrate.files import (
    FileRange,
    FileTensor,
    contiguous_strides,
    member_path,
    open_file,
)
from fwstore_migrate.limits import INDEX_BYTES_MAX
from fwstore_migrate.safetensors_format import (
    METADATA,
    PREFIX,
    Entry,
    header_length,
    parse_header,
    parse_json,
)
from fwstore_migrate.torch_values import whole_shard

INDEX_SUFFIX = ".safetensors.index.json"


def read_safetensors_file(source: FileRange) -> dict[str, Any]:
    """Return the state of one file: tensors by name, and its metadata if it has any.

    Raises:
        Corrupt: The file is malformed.
        Unsupported: A dtype is unknown.
    """
    prefix = source.read(0, min(PREFIX.size, source.length))
    length = header_length(prefix, source.name)
    start = PREFIX.size + length
    header = parse_header(source.read(PREFIX.size, length), source.length - start, source.name)
    space = source.narrow(start, source.length - start)
    state: dict[str, Any] = {
        entry.name: whole_shard(_tensor(space, entry)) for entry in header.entries
    }
    return state | ({METADATA: dict(header.metadata)} if header.metadata else {})


def _tensor(space: FileRange, entry: Entry) -> FileTensor:
    source = space.narrow(entry.start, entry.end - entry.start)
    return FileTensor(source, 0, entry.dtype, entry.shape, contiguous_strides(entry.shape))


def read_safetensors_index(path: Path) -> dict[str, Any]:
    """Return the state of the files that an index names.

    Raises:
        InvalidInput: The index leads outside of its folder.
        Corrupt: Index and files disagree.
    """
    weights = _weight_map(path)
    files: dict[str, dict[str, Any]] = {}
    state: dict[str, Any] = {}
    for name, file_name in weights.items():
        if file_name not in files:
            files[file_name] = read_safetensors_file(open_file(member_path(path.parent, file_name)))
        if name not in files[file_name] or name == METADATA:
            raise Corrupt(f"{path} says that {file_name} holds {name[:200]!r}, but it does not")
        state[name] = files[file_name][name]
    unnamed = {name for tensors in files.values() for name in tensors} - state.keys() - {METADATA}
    if unnamed:
        raise Corrupt(f"{path} does not name the tensor {min(unnamed)[:200]!r} that its files hold")
    metadata = [tensors[METADATA] for tensors in files.values() if METADATA in tensors]
    return state | ({METADATA: metadata[0]} if metadata else {})


def _weight_map(path: Path) -> dict[str, str]:
    source = open_file(path)
    if source.length > INDEX_BYTES_MAX:
        raise LimitExceeded(
            f"{path} has {source.length} bytes; an index has at most {INDEX_BYTES_MAX}"
        )
    weights = parse_json(source.read(0, source.length), str(path)).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise InvalidInput(f"{path} has no weight_map; it is not an index of safetensors files")
    for file_name in weights.values():
        member_path(path.parent, file_name)
    return weights
