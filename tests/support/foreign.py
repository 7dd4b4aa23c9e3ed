"""Foreign checkpoints for tests: made by the libraries that own the formats, and by hand for hostile ones."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwstore import DeviceArray, FwstoreError, Shard, raw_dtype


def read_shard(shard: Shard) -> NDArray[Any]:
    """Return all bytes of a lazy shard under its raw dtype, read box by box."""
    whole = np.zeros(shard.shape, raw_dtype(shard.dtype))
    for piece in shard.pieces:
        assert isinstance(piece.array, DeviceArray)
        part = np.zeros(piece.box.sizes, whole.dtype)
        piece.array.copy_to_host(tuple(slice(0, size) for size in piece.box.sizes), part)
        whole[piece.box.slices()] = part
    return whole


def safetensors_bytes(header: Any, space: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a safetensors file with any header, valid or not."""
    payload = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(payload) if length is None else length) + payload + space


def torch_archive(pickle: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """Return an archive as torch.save lays it out, with any pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def error_of(call: Callable[..., Any], *arguments: Any) -> FwstoreError | None:
    """Return the error that a call ends in, or None; errors of any other class fail the test."""
    try:
        call(*arguments)
    except FwstoreError as error:
        return error
    return None


def write(path: Path, content: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(content)
    return path
