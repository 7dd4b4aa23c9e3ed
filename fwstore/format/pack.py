"""Packs: immutable objects full of chunks, with a footer that finds each.

Invariant: a pack is laid out in one pass without knowing how many chunks will come, and every chunk
says enough of itself that a pack whose footer is lost can be scanned.

    header 64 B | chunk header 64 B, stored bytes, zeros up to a multiple of 64 | ... | footer | trailer 64 B
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from fwstore.base.errors import Corrupt, InternalError
from fwstore.base.units import KIB
from fwstore.format.blocks import (
    ALIGNMENT,
    BLOCK_BYTES,
    CHUNKS_MAX,
    DIGEST_BYTES,
    ChunkHeader,
    PackIdentity,
    Trailer,
    encode_chunk_headers,
    encode_header,
    encode_trailer,
    parse_chunk_header,
    parse_trailer,
)
from fwstore.format.envelope import magic
from fwstore.format.footer import ID_BYTES, Footer, chunk_offsets, encode_footer
from fwstore.format.footer import KIND as FOOTER_KIND
from fwstore.format.rows import Boxes
from fwstore.format.tensor import TensorInfo, tensor_weight

FOOTER_READ_BYTES = 128 * KIB
_PADDING = bytes(ALIGNMENT)
_BOX_NUMBERS_MAX = (1 << 19) - 64
_WEIGHT_MAX = 15 / 16


class ChunkEntry(NamedTuple):
    """A chunk about to be appended; `box` tells which part of the cell it is, None the whole."""

    id: bytes
    digest: bytes
    codec: int
    raw_length: int
    stored_length: int
    tensor: int
    cell: int
    box: tuple[Sequence[int], Sequence[int]] | None = None


class ChunkPlace(NamedTuple):
    """Where an appended chunk lies, and what to write before and after its stored bytes."""

    number: int
    offset: int
    header: bytes
    padding: bytes


@dataclass(frozen=True, slots=True)
class PackEnd:
    """What completes a pack, and what the pack table says of it."""

    footer: bytes
    trailer: bytes
    footer_digest: bytes
    chunks: int
    size: int


class PackLayout:
    """Places chunks in one pack as they come, and ends it.

    Args:
        identity: Whose pack this is.
        dictionary: All tensors by the numbers that entries use, sorted by stored path.
        digest: BLAKE3 as this repository computes it.
    """

    def __init__(
        self,
        identity: PackIdentity,
        dictionary: Sequence[TensorInfo],
        digest: Callable[[Buffer], bytes],
    ) -> None:
        self.header = encode_header(identity)
        self._identity = identity
        self._dictionary = dictionary
        self._digest = digest
        self._entries: list[ChunkEntry] = []
        self._chunks = 0
        self._tensors: set[int] = set()
        self._weight = 0.0
        self._box_numbers = 0
        self._end = BLOCK_BYTES

    @property
    def size(self) -> int:
        """Bytes of the pack so far, without the footer."""
        return self._end

    @property
    def full(self) -> bool:
        """No further chunk may be appended: begin another pack."""
        return (
            self._chunks >= CHUNKS_MAX
            or self._weight > _WEIGHT_MAX
            or self._box_numbers > _BOX_NUMBERS_MAX
        )

    def append(self, entry: ChunkEntry) -> ChunkPlace:
        """Place one chunk behind the last."""
        places = self.extend([entry])
        if not places:
            raise InternalError("a chunk was appended to a full pack")
        return places[0]

    def extend(
        self, entries: Sequence[ChunkEntry], pack_bytes: int | None = None
    ) -> list[ChunkPlace]:
        """Place chunks behind the last until one finds no room.

        Args:
            entries: The chunks, in order.
            pack_bytes: Size of the pack, without its footer, that must not be exceeded; an empty pack takes one
                chunk of any size. None means no bound.
        """
        offsets: list[int] = []
        for entry in entries:
            exceeds = pack_bytes is not None and self._end + entry.stored_length > pack_bytes
            if self.full or (exceeds and self._chunks):
                break
            self._count(entry)
            offsets.append(self._end + BLOCK_BYTES)
            self._end += BLOCK_BYTES + entry.stored_length + -entry.stored_length % ALIGNMENT
        first, placed = len(self._entries), entries[: len(offsets)]
        self._entries += placed
        return [
            ChunkPlace(number, offset, header, _PADDING[: -entry.stored_length % ALIGNMENT])
            for number, (entry, offset, header) in enumerate(
                zip(placed, offsets, _headers(placed), strict=True), first
            )
        ]

    def _count(self, entry: ChunkEntry) -> None:
        self._chunks += 1
        if entry.tensor not in self._tensors:
            self._tensors.add(entry.tensor)
            self._weight += tensor_weight(self._dictionary[entry.tensor])
        if entry.box is not None:
            self._box_numbers += len(entry.box[0])

    def finish(self) -> PackEnd:
        """Return the footer and trailer, to be written in this order behind the last chunk.

        Raises:
            InvalidInput: A tensor or a box is not sane.
        """
        footer = encode_footer(self._footer())
        trailer = Trailer(self._end, len(footer), self._digest(footer), len(self._entries))
        size = self._end + len(footer) + BLOCK_BYTES
        return PackEnd(footer, encode_trailer(trailer), trailer.footer_digest, trailer.chunks, size)

    def _footer(self) -> Footer:
        numbers = sorted(self._tensors)
        columns = list(zip(*self._entries, strict=True)) or [()] * len(ChunkEntry._fields)
        ids, digests, codecs, raw_lengths, stored_lengths, tensors, cells, boxes = columns
        stored = np.array(stored_lengths, np.uint64)
        fragments = [number for number, box in enumerate(boxes) if box is not None]
        return Footer(
            identity=self._identity,
            dictionary=tuple(self._dictionary[number] for number in numbers),
            ids=_fixed(ids, ID_BYTES),
            digests=_fixed(digests, DIGEST_BYTES),
            codecs=np.array(codecs, np.uint8),
            raw_lengths=np.array(raw_lengths, np.uint64),
            stored_lengths=stored,
            offsets=chunk_offsets(stored)[0],
            tensors=np.searchsorted(numbers, np.array(tensors, np.int64)).astype(np.uint32),
            cells=np.array(cells, np.uint64),
            fragments=np.array(fragments, np.uint32),
            boxes=Boxes.of([boxes[number] for number in fragments]),
        )


def footer_of_suffix(suffix: bytes, pack_size: int) -> tuple[Trailer, bytes | None]:
    """Return the trailer and footer of a pack from its last bytes.

    Args:
        suffix: Any number of last bytes; `FOOTER_READ_BYTES` mostly suffice.
        pack_size: Bytes of the whole pack.

    Returns:
        The trailer, and the footer or None when the suffix is too short to hold it.

    Raises:
        Corrupt: There is no trailer at the end.
        Unsupported: It is of another format version.
    """
    trailer = parse_trailer(suffix[-BLOCK_BYTES:], pack_size)
    start = len(suffix) - BLOCK_BYTES - trailer.footer_length
    return trailer, suffix[start:-BLOCK_BYTES] if start >= 0 else None


def scan_chunks(read: Callable[[int, int], bytes], size: int) -> Iterator[tuple[int, ChunkHeader]]:
    """Yield the offset of the stored bytes and the header of every chunk, without the footer.

    Args:
        read: Returns `length` bytes from `offset` of the pack; both are inside `size`.
        size: Bytes of the pack that are there; the scan ends before a chunk that is cut off.

    Raises:
        Corrupt: Something that is neither a chunk nor the footer stands where a chunk should begin.
        Unsupported: The pack is of another format version.
    """
    start = BLOCK_BYTES
    while start + BLOCK_BYTES <= size:
        found = read(start, BLOCK_BYTES)
        if found.startswith(magic(FOOTER_KIND)):
            return
        try:
            header = parse_chunk_header(found)
        except Corrupt as error:
            raise Corrupt(f"no chunk begins at byte {start} of the pack: {error}") from error
        offset = start + BLOCK_BYTES
        start = offset + header.stored_length + -header.stored_length % ALIGNMENT
        if offset + header.stored_length > size:
            return
        yield offset, header


def _headers(entries: Sequence[ChunkEntry]) -> list[bytes]:
    if not entries:
        return []
    ids, digests, codecs, raw_lengths, stored_lengths, *_ = zip(*entries, strict=True)
    blocks = encode_chunk_headers(
        np.array(codecs, np.uint8),
        np.array(raw_lengths, np.uint64),
        np.array(stored_lengths, np.uint64),
        _fixed(digests, DIGEST_BYTES),
        _fixed(ids, ID_BYTES),
    ).tobytes()
    return [blocks[start : start + BLOCK_BYTES] for start in range(0, len(blocks), BLOCK_BYTES)]


def _fixed(strings: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(strings), np.uint8).reshape(len(strings), width)
