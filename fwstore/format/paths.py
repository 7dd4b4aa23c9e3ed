"""Tensor paths: where a tensor stands in the nested state.

Invariant: a path is a tuple of keys and never part of an object key; two different tuples are two
different tensors, so ``{"a.b": 1}`` and ``{"a": {"b": 1}}`` never meet.
"""

from __future__ import annotations

import msgspec

from fwstore.base.errors import Corrupt, InvalidInput

TensorPath = tuple[str | int, ...]

PATH_BYTES_MAX = 4096

_KEY_TYPES = frozenset({str, int})

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str | int, ...])


def encode_path(path: TensorPath) -> bytes:
    """Return the stored form of a path; tensors are sorted by these bytes.

    Raises:
        InvalidInput: The path is empty, too long, or has a key that is neither text nor integer.
    """
    if not path or not _KEY_TYPES.issuperset(map(type, path)):
        raise InvalidInput(
            f"{path!r} is not a tensor path: it must be a non-empty tuple of str and int"
        )
    try:
        encoded = _encoder.encode(path)
    except (UnicodeEncodeError, OverflowError) as error:
        raise InvalidInput(f"{path!r} cannot be stored as a tensor path: {error}") from error
    if len(encoded) > PATH_BYTES_MAX:
        raise InvalidInput(
            f"tensor path {display_path(path)[:80]}... is longer than {PATH_BYTES_MAX} bytes"
        )
    return encoded


def decode_path(encoded: bytes) -> TensorPath:
    """Return the path of its stored form.

    Raises:
        Corrupt: The bytes are not a path.
    """
    try:
        path = _decoder.decode(encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"stored tensor path is malformed: {error}") from error
    if not path or len(encoded) > PATH_BYTES_MAX:
        raise Corrupt("stored tensor path is empty or too long")
    return path


def display_path(path: TensorPath) -> str:
    """Return a path for people: keys joined by slashes; a slash inside a key is escaped."""
    return "/".join(str(key).replace("\\", "\\\\").replace("/", "\\/") for key in path)
