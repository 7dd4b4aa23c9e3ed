"""Export of a checkpoint's tensors to safetensors: one file, or shards with an index.

Invariant: a file appears under its name only when it is complete and on disk; a directory likewise.
One tensor at a time is read, in boxes of bounded size.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import BinaryIO

from fwstore import (
    AlreadyExists,
    Box,
    Checkpoint,
    InvalidInput,
    LazyTensor,
    NotFound,
    Unsupported,
    itemsize,
)
from fwstore_migrate.dtypes import TO_SAFETENSORS
from fwstore_migrate.files import local_failure
from fwstore_migrate.limits import COPY_BYTES
from fwstore_migrate.safetensors_format import METADATA, Entry, Header, encode_header

SHARD_BYTES = 5_000_000_000
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        only: Globs of displayed tensor names; empty for all.
        shard_bytes: Largest file of a sharded export, unless one tensor alone is larger.
        overwrite: Replace what is there.
    """

    only: Sequence[str] = ()
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        files: The tensor files.
        tensors: How many tensors.
        size_bytes: Their bytes.
    """

    files: tuple[str, ...]
    tensors: int
    size_bytes: int


Advance = Callable[[int], None]


def export_safetensors(
    checkpoint: Checkpoint,
    destination: Path,
    options: ExportOptions,
    advance: Advance | None = None,
) -> Exported:
    """Write the tensors of a checkpoint as safetensors.

    Args:
        checkpoint: Where the tensors are.
        destination: A name that ends with ``.safetensors`` for one file, else a new directory.
        options: What is exported, and how.
        advance: Told the bytes written.

    Raises:
        AlreadyExists: The destination exists and `overwrite` is not set.
        Unsupported: safetensors has no such dtype.
        InvalidInput: Two tensors would have the same name.
        NotFound: No tensor matches, or there is no folder to write to.
    """
    if options.shard_bytes < 1:
        raise InvalidInput("a file of a sharded export holds one byte or more")
    if os.path.lexists(destination) and not options.overwrite:
        raise AlreadyExists(f"{destination} exists; choose another name, or --overwrite")
    tensors = select_tensors(checkpoint, options.only)
    writer = _Writer(tensors, _metadata(checkpoint), advance or (lambda _: None))
    with _translated(destination):
        if destination.name.endswith(SUFFIX):
            files = writer.single(destination)
        else:
            files = writer.sharded(destination, options.shard_bytes)
    size = sum(tensor.nbytes for tensor in tensors.values())
    return Exported(tuple(files), len(tensors), size)


def select_tensors(checkpoint: Checkpoint, only: Sequence[str]) -> dict[str, LazyTensor]:
    """Return the tensors to export under the names that they get: their keys joined by dots."""
    chosen: dict[str, LazyTensor] = {}
    for path, tensor in checkpoint.tensors.items():
        if only and not any(fnmatchcase(tensor.name, glob) for glob in only):
            continue
        name = ".".join(map(str, path))
        if name in chosen or name == METADATA:
            raise InvalidInput(f"two tensors would be called {name!r} in safetensors; use --only")
        if tensor.dtype not in TO_SAFETENSORS:
            raise Unsupported(f"safetensors has no {tensor.dtype}, the dtype of {tensor.name!r}")
        chosen[name] = tensor
    if not chosen:
        raise NotFound("there is no tensor to export; compare --only with `fwstore inspect`")
    return chosen


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    state = checkpoint.state()
    found = state.get(METADATA, {}) if isinstance(state, dict) else {}
    kept = found if isinstance(found, dict) else {}
    return {"format": "pt"} | {k: v for k, v in kept.items() if type(k) is type(v) is str}


@contextmanager
def _translated(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise local_failure(
            error, f"cannot write {destination}, and nothing of it is left"
        ) from error


@dataclass(frozen=True)
class _Writer:
    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]
    advance: Advance

    def single(self, destination: Path) -> list[str]:
        """Write one file."""
        handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                self._write(file, list(self.tensors))
            partial.chmod(0o644)
            partial.replace(destination)
            _sync_folder(destination.parent)
        finally:
            partial.unlink(missing_ok=True)
        return [destination.name]

    def sharded(self, destination: Path, shard_bytes: int) -> list[str]:
        """Write a directory of files with an index."""
        partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        try:
            files = self._write_folder(partial, shard_bytes)
            partial.chmod(0o755)
            _sync_folder(partial)
            _replace_folder(partial, destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return files

    def _write_folder(self, folder: Path, shard_bytes: int) -> list[str]:
        plan = plan_shards({k: t.nbytes for k, t in self.tensors.items()}, shard_bytes)
        weights: dict[str, str] = {}
        for number, names in enumerate(plan, 1):
            file_name = f"model-{number:05d}-of-{len(plan):05d}{SUFFIX}"
            with (folder / file_name).open("wb") as file:
                self._write(file, names)
            weights |= dict.fromkeys(names, file_name)
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}
        with (folder / f"model{SUFFIX}.index.json").open("wb") as file:
            file.write(json.dumps(index, indent=2).encode() + b"\n")
            _sync(file)
        return list(dict.fromkeys(weights.values()))

    def _write(self, file: BinaryIO, names: list[str]) -> None:
        names = sorted(names, key=lambda name: (-itemsize(self.tensors[name].dtype), name))
        file.write(encode_header(Header(tuple(self._entries(names)), self.metadata)))
        for name in names:
            tensor = self.tensors[name]
            for box in plan_boxes(tensor.shape, itemsize(tensor.dtype), COPY_BYTES * 4):
                file.write(tensor.read_raw(box).data)
                self.advance(box.volume * itemsize(tensor.dtype))
        _sync(file)

    def _entries(self, names: list[str]) -> Iterator[Entry]:
        position = 0
        for name in names:
            tensor = self.tensors[name]
            yield Entry(name, tensor.dtype, tensor.shape, position, position + tensor.nbytes)
            position += tensor.nbytes


def plan_shards(sizes: dict[str, int], shard_bytes: int) -> list[list[str]]:
    """Divide tensors over files, in order, none larger than asked unless one tensor is."""
    files: list[list[str]] = []
    room = -1
    for name, size in sizes.items():
        if size > room:
            files.append([])
            room = shard_bytes
        files[-1].append(name)
        room -= size
    return files


def plan_boxes(shape: tuple[int, ...], itemsize_bytes: int, limit_bytes: int) -> Iterator[Box]:
    """Yield boxes of bounded size that follow each other in C order."""
    if 0 in shape:
        return
    axis = 0
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) * itemsize_bytes > limit_bytes:
        axis += 1
    if not shape:
        yield Box.whole(shape)
        return
    rows = max(1, limit_bytes // (math.prod(shape[axis + 1 :]) * itemsize_bytes))
    for outer in product(*(range(size) for size in shape[:axis])):
        for row in range(0, shape[axis], rows):
            offsets = (*outer, row, *(0 for _ in shape[axis + 1 :]))
            sizes = (*(1 for _ in outer), min(rows, shape[axis] - row), *shape[axis + 1 :])
            yield Box(offsets, sizes)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_folder(new: Path, destination: Path) -> None:
    """Give a directory its name; what had it moves away first and is removed last."""
    old = None
    if os.path.lexists(destination):
        old = new.with_name(f"{new.name}.old")
        destination.rename(old)
    new.rename(destination)
    _sync_folder(destination.parent)
    if old is not None and old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    elif old is not None:
        old.unlink()
