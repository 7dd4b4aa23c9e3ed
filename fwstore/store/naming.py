"""Which keys every store accepts, so that a key that works on one works on all.

Invariant: an accepted key is a relative path of plain segments; it cannot leave the root of a
directory store, and no two accepted keys name the same file.
"""

from __future__ import annotations

from fwstore.base.errors import InvalidInput

# Object stores allow 1024 bytes, of which the prefix of the store takes up to 200.
KEY_BYTES_MAX = 800
PREFIX_BYTES_MAX = 200
SEGMENT_BYTES_MAX = 255


def validate_key(key: str) -> str:
    """Return the key when every store can hold an object under it.

    Raises:
        InvalidInput: The key breaks a rule; the message says which.
    """
    _check_text(key)
    if len(key.encode()) > KEY_BYTES_MAX:
        raise InvalidInput(f"key {key[:80]!r}... is longer than {KEY_BYTES_MAX} bytes")
    for segment in key.split("/"):
        if not segment:
            raise InvalidInput(
                f"key {key!r} has an empty segment; write a/b without further slashes"
            )
        _check_segment(key, segment)
        if len(segment.encode()) > SEGMENT_BYTES_MAX:
            raise InvalidInput(
                f"key {key[:80]!r}... has a segment of more than {SEGMENT_BYTES_MAX} bytes"
            )
    return key


def validate_prefix(prefix: str) -> str:
    """Return the text when a key can begin with it.

    Raises:
        InvalidInput: No key can begin so.
    """
    _check_text(prefix)
    if prefix.startswith("/") or "//" in prefix:
        raise InvalidInput(f"prefix {prefix!r} has an empty segment; no key begins so")
    for segment in prefix.split("/"):
        _check_segment(prefix, segment)
    return prefix


def is_key(text: str) -> bool:
    """Return whether `validate_key` accepts the text."""
    try:
        validate_key(text)
    except InvalidInput:
        return False
    return True


def _check_text(key: str) -> None:
    if not key.isprintable() or "\\" in key:
        raise InvalidInput(
            f"key {key[:200]!r} has a character that is not printable, or a backslash"
        )


def _check_segment(key: str, segment: str) -> None:
    # Also keeps out '..', '.tmp' and what file systems hide: .nfs*, .snapshot, .zfs.
    if segment.startswith("."):
        raise InvalidInput(
            f"key {key[:200]!r} has the segment {segment!r}; none may begin with a dot"
        )
