"""Collects what the ranks of a save bring: a hundred thousand of them must not cost as many parses.

Invariant: nothing leaves here that was not parsed by the rules of a single contribution; what is alike in the
messages of many ranks is parsed once, and their rows together.
"""

from __future__ import annotations

from fwstore.content.contribution import (
    Contribution,
    Dictionaries,
    Message,
    decode_message,
    join_messages,
)
from fwstore.format.root import LineageRef

_MESSAGES_PER_BATCH = 1024
_BYTES_PER_BATCH = 16 << 20


class Gathering:
    """Takes the messages of ranks; those that arrived are parsed while others are on their way."""

    def __init__(self) -> None:
        self._known: Dictionaries = {}
        self._alike: dict[tuple[tuple[bytes, ...], tuple[LineageRef, ...]], list[Message]] = {}
        self._count = self._size_bytes = 0
        self._parsed: list[Contribution] = []

    def add(self, stored: bytes) -> None:
        """Take the contribution of one rank.

        Raises:
            Corrupt: It, or one that came before, is malformed.
            Unsupported: It comes from another version of fwstore.
        """
        message = decode_message(stored)
        self._alike.setdefault((message.dictionaries, message.lineages), []).append(message)
        self._count += 1
        self._size_bytes += len(message.rows)
        if self._count >= _MESSAGES_PER_BATCH or self._size_bytes >= _BYTES_PER_BATCH:
            self._parse()

    def finish(self) -> list[Contribution]:
        """Return what all ranks brought, in fewer contributions than there were messages.

        Raises:
            Corrupt: A contribution is malformed.
            Unsupported: It comes from another version of fwstore.
        """
        self._parse()
        return self._parsed

    def _parse(self) -> None:
        alike, self._alike = self._alike, {}
        self._count = self._size_bytes = 0
        self._parsed += [join_messages(messages, self._known) for messages in alike.values()]
