"""Where the chunks of packs are, from their footers, fetched once.

Invariant: a footer that leaves this module had the digest that the pack table names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from fwstore.base.errors import Corrupt
from fwstore.base.units import MIB
from fwstore.content.cache import SharedCache
from fwstore.content.verified import Origin, read_verified
from fwstore.format.blocks import BLOCK_BYTES
from fwstore.format.footer import Chunks, parse_chunks
from fwstore.format.packtable import PackInfo
from fwstore.store.base import Store

C = TypeVar("C", bound=Chunks)

# The columns of a parsed footer take about this many times its stored bytes.
_EXPANSION = 2


class Pack(NamedTuple):
    """A pack by its object key, and what its referrer says of it."""

    key: str
    info: PackInfo


class FooterCache:
    """The chunks that footers list, by pack, bounded by bytes; safe in threads and forked children.

    Args:
        origin: Where packs are.
        limit_bytes: Most memory held by footers that nobody uses.
    """

    def __init__(self, origin: Origin, *, limit_bytes: int = 64 * MIB) -> None:
        self._origin = origin
        self._cache: SharedCache[Pack, Chunks] = SharedCache(limit_bytes)

    @property
    def used_bytes(self) -> int:
        """Estimated memory held."""
        return self._cache.used_bytes

    def get(self, pack: Pack) -> Chunks:
        """Return the chunks of a pack.

        Raises:
            NotFound: The pack is gone.
            Corrupt: Its footer is not the one that was written.
        """
        size_bytes = pack.info.footer_length * _EXPANSION
        return self._cache.get(
            pack, size_bytes, lambda: fetch_footer(self._origin, pack, parse_chunks)
        )

    def get_many(self, packs: Sequence[Pack]) -> list[Chunks]:
        """Return the chunks of some packs, whose footers are fetched side by side."""
        return self._origin.runtime.scheduler.map(self.get, packs)


def fetch_footer(origin: Origin, pack: Pack, parse: Callable[[bytes, int], C]) -> C:
    """Return the footer of a pack.

    Args:
        origin: Where the pack is.
        pack: Names it.
        parse: What takes the footer apart: `parse_footer`, or `parse_chunks` where its tensors are not wanted.

    Raises:
        NotFound: The pack is gone.
        Corrupt: Its footer is not the one that was written.
    """
    info = pack.info
    offset = info.size - BLOCK_BYTES - info.footer_length

    def read(store: Store) -> C:
        stored = store.get_range(pack.key, offset, info.footer_length)
        if origin.content_hash.digest(stored) != info.footer_digest:
            raise Corrupt(
                f"the footer of {pack.key} in {store.url} is damaged: "
                "restore the pack from another copy"
            )
        footer = parse(stored, offset)
        if len(footer) != info.chunks:
            raise Corrupt(f"the footer of {pack.key} lists {len(footer)} chunks, not {info.chunks}")
        return footer

    return read_verified(origin, read)
