"""Sealed objects: canonical JSON, compressed, with its own digest.

Invariant: a reader sees the bytes that were sealed or raises `Corrupt`; the declared length is compared
with a limit before anything is allocated.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import blake3
import msgspec

from fwstore.base.errors import Corrupt, LimitExceeded
from fwstore.format.canonical import decode_canonical, encode_canonical
from fwstore.format.envelope import FEATURES_KNOWN, check_envelope, magic
from fwstore.format.frames import compress_frame, decompress_frame

S = TypeVar("S", bound=msgspec.Struct)

_HEADER = struct.Struct("<8sIQ32s")
_LEVEL = 3


def seal(value: msgspec.Struct, kind: str, limit_bytes: int) -> bytes:
    """Return the sealed form of a value.

    Raises:
        LimitExceeded: Its JSON is longer than the limit.
    """
    raw = encode_canonical(value)
    if len(raw) > limit_bytes:
        raise LimitExceeded(f"a {kind!r} object of {len(raw)} bytes exceeds {limit_bytes}")
    digest = blake3.blake3(raw).digest()
    header = _HEADER.pack(magic(kind), FEATURES_KNOWN, len(raw), digest)
    return header + compress_frame(raw, _LEVEL)


def unseal(stored: bytes, form: type[S], kind: str, limit_bytes: int) -> S:
    """Return the value of its sealed form.

    Raises:
        Corrupt: The bytes are not what was sealed.
        Unsupported: They are of a later version.
    """
    what = f"a {kind!r} object"
    check_envelope(stored, kind)
    if len(stored) < _HEADER.size:
        raise Corrupt(f"{what} is cut short after {len(stored)} bytes")
    _, _, length, digest = _HEADER.unpack_from(stored)
    if length > limit_bytes:
        raise Corrupt(f"{what} declares {length} bytes; at most {limit_bytes} are allowed")
    raw = decompress_frame(stored[_HEADER.size :], length)
    if blake3.blake3(raw).digest() != digest:
        raise Corrupt(f"{what} does not match its digest")
    return decode_canonical(raw, form, what)
