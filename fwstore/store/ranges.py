"""The meaning of an offset and a length, alike for every store.

Invariant: a range that does not lie inside the object is an error, never a shorter answer.
"""

from __future__ import annotations

from fwstore.base.errors import Corrupt, InvalidInput


def check_range(key: str, offset: int, length: int) -> None:
    """Check a range before the size of the object is known.

    Raises:
        InvalidInput: No object has such a range.
    """
    if length < 0 or (offset < 0 and offset + length > 0):
        raise InvalidInput(f"{length} bytes from {offset} of {key} is not a range")


def resolve_range(key: str, size: int, offset: int, length: int) -> int:
    """Return where a range begins in an object of `size` bytes.

    Raises:
        InvalidInput: No object has such a range.
        Corrupt: The object is too short for it.
    """
    check_range(key, offset, length)
    start = offset + size if offset < 0 else offset
    if start < 0 or start + length > size:
        raise Corrupt(
            f"{key} has {size} bytes, too few for {length} bytes from {offset}: it was cut short"
        )
    return start
