"""Canonical JSON: one byte form for every value.

Invariant: what `decode_canonical` accepts, `encode_canonical` gives back byte for byte; duplicate keys,
NaN, unknown fields, trailing bytes and other spellings are `Corrupt`.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec

from fwstore.base.errors import Corrupt, InvalidInput

S = TypeVar("S", bound=msgspec.Struct)

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Slot = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Token = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16,64}\Z")]
Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=1024)]

_encoder = msgspec.json.Encoder(order="sorted")


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A value that is stored as a JSON object."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A value that is stored as a JSON array, one element per field."""


def encode_canonical(value: msgspec.Struct) -> bytes:
    """Return the one byte form of a value.

    Raises:
        InvalidInput: The value cannot be read back, for example because of a number that is not finite.
    """
    try:
        # Through the decoder once, so that an integer given for a float is stored as a float.
        return _encoder.encode(_decoder(type(value)).decode(_encoder.encode(value)))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{type(value).__name__} cannot be stored: {error}") from error


def canonical_bytes(value: msgspec.Struct) -> bytes:
    """Return the bytes that a value was decoded from."""
    return _encoder.encode(value)


def decode_canonical(encoded: bytes, kind: type[S], what: str) -> S:
    """Return the value of its byte form.

    Args:
        encoded: As stored.
        kind: What it should be.
        what: Named in errors: the key of the object.

    Raises:
        Corrupt: The bytes are not the canonical form of such a value.
    """
    try:
        value: S = _decoder(kind).decode(encoded)
        if _encoder.encode(value) == encoded:
            return value
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Corrupt(f"{what} is not a {kind.__name__}: {error}") from error
    raise Corrupt(f"{what} is not in canonical form")


def peek_canonical(encoded: bytes) -> dict[str, Any]:
    """Return the object that JSON bytes hold, unchecked; empty when there is none.

    For telling a later version, which is `Unsupported`, from damage.
    """
    try:
        value = msgspec.json.decode(encoded)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@cache
def _decoder(kind: type[S]) -> msgspec.json.Decoder[S]:
    return msgspec.json.Decoder(kind)
