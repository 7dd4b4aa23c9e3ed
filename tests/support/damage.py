"""Every way to damage a few bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from fwstore.base.errors import Corrupt, Unsupported
from fwstore.format.canonical import with_check

_CHECK = re.compile(rb',"xxh3":"[0-9a-f]{32}"}\Z')


def unchecked(stored: bytes) -> bytes:
    """Return a checked JSON object without its checksum."""
    return _CHECK.sub(b"}", stored)


def rechecked(changed: bytes) -> bytes:
    """Return a changed JSON object with the checksum that a writer would have given it."""
    return with_check(unchecked(changed))


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
