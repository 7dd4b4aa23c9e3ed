"""The header of a safetensors file: eight bytes of length, JSON, then tensors without holes.

Invariant: an accepted header describes every byte behind it exactly once, in order.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fwstore import Corrupt, LimitExceeded, itemsize
from fwstore_migrate.dtypes import TO_SAFETENSORS, from_safetensors
from fwstore_migrate.limits import DIMENSIONS_MAX, HEADER_BYTES_MAX

PREFIX = struct.Struct("<Q")
METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: Its name.
        dtype: Its dtype, as fwstore names it.
        shape: Sizes.
        start: Its first byte behind the header.
        end: The byte after its last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        entries: The tensors in the order of their bytes.
        metadata: Free text by name.
    """

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


def header_length(prefix: bytes, name: str) -> int:
    """Return the length of the JSON that follows the first eight bytes.

    Raises:
        Corrupt: The prefix is cut, or the header is larger than the format allows.
    """
    if len(prefix) != PREFIX.size:
        raise Corrupt(f"{name} is too short to be a safetensors file")
    (length,) = PREFIX.unpack(prefix)
    if length > HEADER_BYTES_MAX:
        raise Corrupt(
            f"{name} declares a header of {length} bytes; safetensors allows {HEADER_BYTES_MAX}: "
            "it is not a safetensors file, or it is damaged"
        )
    return int(length)


def parse_header(payload: bytes, space_bytes: int, name: str) -> Header:
    """Return the header of a file.

    Args:
        payload: The JSON.
        space_bytes: How many bytes follow it in the file.
        name: The file, for messages.

    Raises:
        Corrupt: It is malformed, has holes or overlaps, or does not fit the file.
        Unsupported: A dtype is unknown.
    """
    fields = parse_json(payload, name)
    metadata = fields.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise Corrupt(f"{name} has metadata that is not text")
    entries = sorted(
        (_parse_entry(key, value, name) for key, value in fields.items()),
        key=lambda entry: (entry.start, entry.end),
    )
    position = 0
    for entry in entries:
        if entry.start != position:
            raise Corrupt(f"{name} has a hole or an overlap before tensor {entry.name[:200]!r}")
        position = entry.end
    if position != space_bytes:
        raise Corrupt(f"{name} describes {position} bytes of tensors and has {space_bytes}")
    return Header(tuple(entries), metadata)


def parse_json(payload: bytes, name: str) -> dict[str, Any]:
    """Return a JSON object without repeated names.

    Raises:
        Corrupt: It is malformed.
    """
    try:
        fields = json.loads(
            payload.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse
        )
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{name} is not the JSON it should be: {error}") from error
    if not isinstance(fields, dict):
        raise Corrupt(f"{name} is not a JSON object")
    return fields


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands in it twice")
    return fields


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _parse_entry(key: str, value: Any, name: str) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Corrupt(f"{name} describes tensor {key[:200]!r} in an unknown way")
    shape, offsets = _numbers(value["shape"]), _numbers(value["data_offsets"])
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > DIMENSIONS_MAX:
        raise Corrupt(f"{name} has impossible sizes or offsets for tensor {key[:200]!r}")
    dtype = from_safetensors(value["dtype"], key)
    if offsets[1] - offsets[0] != math.prod(shape) * itemsize(dtype):
        raise Corrupt(f"{name} gives tensor {key[:200]!r} a length that is not that of its shape")
    return Entry(key, dtype, shape, *offsets)


def _numbers(value: Any) -> tuple[int, ...] | None:
    valid = isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
    return tuple(value) if valid else None


def encode_header(header: Header) -> bytes:
    """Return the first bytes of a file, prefix and padding included.

    Raises:
        LimitExceeded: There are too many tensors for one file.
    """
    fields: dict[str, Any] = {METADATA: dict(header.metadata)} if header.metadata else {}
    for entry in header.entries:
        fields[entry.name] = {
            "dtype": TO_SAFETENSORS[entry.dtype],
            "shape": entry.shape,
            "data_offsets": (entry.start, entry.end),
        }
    payload = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    payload += b" " * (-len(payload) % 8)
    if len(payload) > HEADER_BYTES_MAX:
        raise LimitExceeded("the header of the file would be too large; use smaller shards")
    return PREFIX.pack(len(payload)) + payload
