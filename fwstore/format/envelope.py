"""What every stored object begins with: a magic that names its kind and version, and feature bits.

Invariant: an object of a later format, or one that needs a feature this version lacks, is refused as
`Unsupported` with that version or those bits named, and never read as something else.
"""

from __future__ import annotations

import struct

from fwstore.base.errors import Corrupt, Unsupported

MAGIC_BYTES = 8
FORMAT_MAJOR = b"1"
FEATURES_KNOWN = 0
_FEATURES = struct.Struct("<I")


def magic(kind: str) -> bytes:
    """Return the eight bytes that open an object of a kind named by four letters."""
    return b"fw" + FORMAT_MAJOR + kind.encode("ascii") + b"\n"


def check_magic(found: bytes, kind: str) -> None:
    """Refuse an object that is not of this kind and version.

    Raises:
        Corrupt: The bytes are not an object of this kind.
        Unsupported: They are, but of another major version.
    """
    expected = magic(kind)
    start = bytes(found[:MAGIC_BYTES])
    if start == expected:
        return
    if start[:2] == b"fw" and start[3:] == expected[3:] and start[2:3].isdigit():
        raise Unsupported(
            f"this {kind!r} object has format version {start[2:3].decode()}; this version of fwstore reads "
            f"version {FORMAT_MAJOR.decode()}: use a newer fwstore"
        )
    raise Corrupt(f"expected an object of kind {kind!r} but it begins with {start!r}")


def check_features(features: int, kind: str) -> None:
    """Refuse an object that needs features this version does not have.

    Raises:
        Unsupported: Some feature bits are unknown; the message names them.
    """
    unknown = features & ~FEATURES_KNOWN
    if unknown:
        bits = ", ".join(str(bit) for bit in range(unknown.bit_length()) if unknown >> bit & 1)
        raise Unsupported(
            f"this {kind!r} object needs the unknown features {bits}: use a newer fwstore"
        )


def check_envelope(found: bytes, kind: str) -> None:
    """Check the magic and the u32 of mandatory features that follows it in every kind of object.

    Raises:
        Corrupt: The bytes are not an object of this kind.
        Unsupported: Another major version, or unknown mandatory features.
    """
    check_magic(found, kind)
    if len(found) < MAGIC_BYTES + _FEATURES.size:
        raise Corrupt(f"this {kind!r} object is cut short after {len(found)} bytes")
    check_features(_FEATURES.unpack_from(found, MAGIC_BYTES)[0], kind)
