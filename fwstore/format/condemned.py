"""Lists of condemned keys, too long for a record.

Invariant: a list is immutable and known by the digest that its `condemn` record holds; every key in it
belongs to the lineage and to a group that the record names.
"""

from __future__ import annotations

from fwstore.format.canonical import Count, Row, Stored, Text, Token, Uuid
from fwstore.format.sealed import seal, unseal

CONDEMNED_KEYS_MAX = 20_000
_RAW_BYTES_MAX = 64 << 20
CONDEMNED_BYTES_MAX = _RAW_BYTES_MAX


class CondemnedKey(Row, frozen=True):
    """A key, the bytes under it, and why it is garbage."""

    key: Text
    size: Count
    reason: Text


class CondemnedList(Stored, frozen=True):
    """What one `condemn` record gives up."""

    lineage: Uuid
    token: Token
    keys: tuple[CondemnedKey, ...]


def encode_condemned(condemned: CondemnedList) -> bytes:
    """Return the stored form of a list."""
    return seal(condemned, "cond", _RAW_BYTES_MAX)


def parse_condemned(stored: bytes) -> CondemnedList:
    """Return a list.

    Raises:
        Corrupt: The bytes are not a list of condemned keys.
    """
    return unseal(stored, CondemnedList, "cond", _RAW_BYTES_MAX)
