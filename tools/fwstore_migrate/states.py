"""A foreign checkpoint of any kind as one lazy state.

Invariant: opening reads descriptions only; a tensor's bytes are read when the state is saved.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fwstore import InvalidInput, NotFound, Shard, display_path, itemsize
from fwstore_migrate.dcp import METADATA_FILE, read_dcp
from fwstore_migrate.files import local_failure, open_file
from fwstore_migrate.safetensors_read import (
    INDEX_SUFFIX,
    read_safetensors_file,
    read_safetensors_index,
)
from fwstore_migrate.torch_archive import MAGIC
from fwstore_migrate.torch_values import Skipped, keep_all, read_torch_file


@dataclass(frozen=True)
class ForeignState:
    """What a foreign checkpoint holds.

    Attributes:
        kind: "safetensors", "torch" or "dcp".
        state: Nested containers of lazy shards and plain values.
        tensors: How many different tensors.
        size_bytes: Their bytes.
    """

    kind: str
    state: dict[Any, Any]
    tensors: int
    size_bytes: int


def open_foreign(path: Path, *, skip: Sequence[str] = ()) -> ForeignState:
    """Open a foreign checkpoint, whatever its kind.

    Args:
        path: A safetensors or torch.save file, an index of safetensors files, a DCP directory, or a
            directory that holds one of the first three.
        skip: Globs of names that are left out.

    Raises:
        NotFound: Nothing is there.
        InvalidInput: It is of no known kind.
        Corrupt, Unsupported, UnsupportedValue, LimitExceeded: It cannot be imported; see the message.
    """
    skipped = functools.partial(_matches, tuple(skip)) if skip else keep_all
    try:
        kind, state = _read(path, skipped)
    except OSError as error:
        raise local_failure(error, f"cannot read {path}") from error
    if not isinstance(state, dict):
        bare = "tensor" if isinstance(state, Shard) else type(state).__name__
        raise InvalidInput(
            f"{path} holds a bare {bare}; only a dict of tensors and values has names"
        )
    kept = _without(state, skipped, ())
    shards = {id(shard): shard for shard in _shards(kept)}.values()
    size = sum(math.prod(shard.shape) * itemsize(shard.dtype) for shard in shards)
    return ForeignState(kind, kept, len(shards), size)


def _matches(globs: tuple[str, ...], name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _read(path: Path, skipped: Skipped) -> tuple[str, Any]:
    if path.is_dir() and (path / METADATA_FILE).is_file():
        return "dcp", read_dcp(path, skipped)
    if path.is_dir():
        return _read(_only_member(path), skipped)
    if path.name.endswith(INDEX_SUFFIX):
        return "safetensors", read_safetensors_index(path)
    source = open_file(path)
    if source.read(0, min(len(MAGIC), source.length)) == MAGIC or path.suffix in _TORCH_SUFFIXES:
        return "torch", read_torch_file(source, skipped)
    return "safetensors", read_safetensors_file(source)


_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def _only_member(folder: Path) -> Path:
    for pattern in (f"*{INDEX_SUFFIX}", "*.safetensors", *(f"*{end}" for end in _TORCH_SUFFIXES)):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidInput(
                f"{folder} holds {len(found)} files like {pattern}; name one of them"
            )
    raise NotFound(
        f"{folder} holds no checkpoint: neither {METADATA_FILE} of DCP nor a safetensors or torch file"
    )


def _without(value: Any, skipped: Skipped, path: tuple[str | int, ...]) -> Any:
    """Return the state without the entries of dicts that the globs name."""
    if not isinstance(value, dict):
        return value
    return type(value)(
        (key, _without(entry, skipped, (*path, key)))
        for key, entry in value.items()
        if not skipped(display_path((*path, key)))
    )


def _shards(value: Any) -> Iterator[Shard]:
    if isinstance(value, Shard):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _shards(entry)
