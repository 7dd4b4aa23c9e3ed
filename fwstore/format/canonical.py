"""Canonical JSON: one byte form for every value, and the checked form in which small objects are stored.

Invariant: what a decoder here accepts, its encoder gives back byte for byte; duplicate keys, NaN, unknown
fields, trailing bytes and other spellings are `Corrupt`. In the checked form so is every changed byte: the
newest slot of a log has no referrer that could notice.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec
import xxhash

from fwstore.base.errors import Corrupt, InvalidInput

S = TypeVar("S", bound=msgspec.Struct)

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Slot = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Token = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16,64}\Z")]
Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
TEXT_MAX = 1024
Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]

_encoder = msgspec.json.Encoder(order="sorted")
# The key sorts behind those of all objects, so that the checked form is sorted as well.
_CHECK = re.compile(rb',"xxh3":"([0-9a-f]{32})"}\Z')


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


def check_text(text: object, what: str) -> None:
    """Refuse what cannot be stored as `Text`.

    Raises:
        InvalidInput: It is no text, too long, or not expressible in UTF-8.
    """
    stored = text.encode(errors="replace").decode() if isinstance(text, str) else None
    if stored is None or stored != text or len(stored) > TEXT_MAX:
        raise InvalidInput(f"{what} must be a text of at most {TEXT_MAX} characters")


def encode_checked(value: msgspec.Struct) -> bytes:
    """Return the canonical form of a value with a checksum of it as the last member.

    Raises:
        InvalidInput: The value cannot be read back.
    """
    return with_check(encode_canonical(value))


def checked_bytes(value: msgspec.Struct) -> bytes:
    """Return the bytes that `decode_checked` made a value of."""
    return with_check(_encoder.encode(value))


def with_check(canonical: bytes) -> bytes:
    """Return the checked form of a JSON object in canonical form."""
    digest = xxhash.xxh3_128_hexdigest(canonical).encode()
    return canonical[:-1] + b',"xxh3":"' + digest + b'"}'


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


def decode_checked(encoded: bytes, kind: type[S], what: str) -> S:
    """Return the value of its checked form.

    Args:
        encoded: As stored.
        kind: What it should be.
        what: Named in errors: the key of the object.

    Raises:
        Corrupt: The bytes are not the checked form of such a value.
    """
    canonical = _without_check(encoded)
    if canonical is None or with_check(canonical) != encoded:
        raise Corrupt(
            f"{what} is not a {kind.__name__} as it was written, its checksum is wrong: restore it from "
            "another copy"
        )
    return decode_canonical(canonical, kind, what)


def peek_checked(encoded: bytes) -> dict[str, Any]:
    """Return the object that checked JSON holds, otherwise unchecked; empty when there is none.

    For telling a later version, which is `Unsupported`, from damage. A later version may check its objects
    in another way, so a missing checksum is no damage yet.
    """
    canonical = _without_check(encoded)
    if canonical is not None and with_check(canonical) != encoded:
        return {}
    try:
        value = msgspec.json.decode(encoded)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _without_check(encoded: bytes) -> bytes | None:
    match = _CHECK.search(encoded)
    return None if match is None else encoded[: match.start()] + b"}"


@cache
def _decoder(kind: type[S]) -> msgspec.json.Decoder[S]:
    return msgspec.json.Decoder(kind)
