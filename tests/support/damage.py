"""Every way to damage a few bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fwstore.base.errors import Corrupt, Unsupported


def flips(stored: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes with one of them changed: its lowest bit, its highest, or all."""
    for place in range(len(stored)):
        for change in (0x01, 0x80, 0xFF):
            yield place, stored[:place] + bytes([stored[place] ^ change]) + stored[place + 1 :]


def truncations(stored: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield every shorter beginning of the bytes."""
    for length in range(len(stored)):
        yield length, stored[:length]


def refuses(parse: Callable[[bytes], object], stored: bytes) -> bool:
    """Return whether a parser refuses the bytes; any other error than the two allowed ones fails the test."""
    try:
        parse(stored)
    except (Corrupt, Unsupported):
        return True
    return False
