"""A pack on its way between sites, cut into parts of whole chunks that prove themselves.

Invariant: header, footer and trailer follow from the footer, whose digest the pack table names; everything between
is compared with what the footer says, chunk by chunk, before it is stored. No byte of a copy is unproven.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fwstore.base.config import Limits
from fwstore.base.errors import Corrupt
from fwstore.codec.hashing import ContentHash, xxh3_128
from fwstore.format.blocks import (
    BLOCK_BYTES,
    Trailer,
    encode_chunk_headers,
    encode_header,
    encode_trailer,
)
from fwstore.format.footer import parse_footer
from fwstore.format.packtable import PackInfo
from fwstore.plan.coalesce import plan_coalesce

# So many parts of a pack are under way together: half of them on the link, half on their way into the store.
PARTS_AT_ONCE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive chunks that one request fetches, with their headers and padding.

    Attributes:
        offset: Where it begins in the pack.
        length: Its bytes.
        first: Number of its first chunk.
        end: Number after its last.
    """

    offset: int
    length: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive pieces, staged together; `PARTS_AT_ONCE` of them are sent again at most after a crash."""

    offset: int
    length: int
    pieces: tuple[Piece, ...]


class PackShape:
    """What a pack must look like, known from its footer.

    Args:
        info: The pack as the table names it.
        stored: The bytes of its footer, whose digest was compared.

    Raises:
        Corrupt: The footer is not that of this pack.

    Attributes:
        head: The first bytes of the pack.
        tail: Its last bytes, from the footer on.
    """

    def __init__(self, info: PackInfo, stored: bytes) -> None:
        footer = parse_footer(stored, info.footer_offset)
        named = (info.term, info.save, info.rank, info.number, info.token)
        who = footer.identity
        if (who.term, who.save, who.rank, who.number, who.token) != named:
            raise Corrupt("its footer is that of another pack")
        if len(footer) != info.chunks:
            raise Corrupt(f"its footer lists {len(footer)} chunks, not {info.chunks}")
        trailer = Trailer(info.footer_offset, info.footer_length, info.footer_digest, info.chunks)
        self.head = encode_header(who)
        self.tail = stored + encode_trailer(trailer)
        self._footer = footer
        starts = footer.offsets.astype(np.int64) - BLOCK_BYTES
        self._edges = np.append(starts, info.footer_offset)

    def parts(self, limits: Limits) -> list[Part]:
        """Return the parts of the pack in order; nothing where it has no chunk."""
        ranges = np.stack([self._edges[:-1], np.diff(self._edges)], axis=1)
        requests = plan_coalesce(ranges, gap_bytes=0, request_bytes=limits.read_request_bytes)
        pieces = [
            Piece(found.offset, found.length, found.indices[0], found.indices[-1] + 1)
            for found in requests
        ]
        spans = [(piece.offset, piece.length) for piece in pieces]
        parts = plan_coalesce(spans, gap_bytes=0, request_bytes=limits.part_bytes // PARTS_AT_ONCE)
        return [
            Part(found.offset, found.length, tuple(pieces[index] for index in found.indices))
            for found in parts
        ]

    def check(self, piece: Piece, read: memoryview) -> None:
        """Compare the bytes of a piece with what the footer says of its chunks.

        Raises:
            Corrupt: A chunk is not what was written; its number is named.
        """
        footer, rows = self._footer, slice(piece.first, piece.end)
        headers = encode_chunk_headers(
            footer.codecs[rows],
            footer.raw_lengths[rows],
            footer.stored_lengths[rows],
            footer.digests[rows],
            footer.ids[rows],
        )
        for number, header in enumerate(headers, piece.first):
            start, end = (int(edge) - piece.offset for edge in self._edges[number : number + 2])
            block = read[start:end]
            length = int(footer.stored_lengths[number])
            if (
                block[:BLOCK_BYTES] != header.data
                or xxh3_128(block[BLOCK_BYTES : BLOCK_BYTES + length])
                != footer.digests[number].tobytes()
                or any(block[BLOCK_BYTES + length :])
            ):
                raise Corrupt(f"chunk {number} is not what was written")


def shape_of(info: PackInfo, end: bytes, content_hash: ContentHash) -> PackShape:
    """Return the shape of a pack from its last bytes, footer and trailer.

    Raises:
        Corrupt: They are not those that the table names.
    """
    stored = end[: info.footer_length]
    if content_hash.digest(stored) != info.footer_digest:
        raise Corrupt("its footer is not the one that was written")
    shape = PackShape(info, stored)
    if end != shape.tail:
        raise Corrupt("its trailer is not the one that was written")
    return shape
