"""The blocks of 64 bytes in a pack: its header, the header of every chunk, its trailer.

Invariant: a block ends with the CRC-32 of the rest of it, so a damaged block is never believed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt, InvalidInput
from fwstore.base.units import MIB
from fwstore.format.envelope import check_envelope, check_magic, magic
from fwstore.format.rows import U64
from fwstore.format.tensor import CELL_BYTES_MAX

BLOCK_BYTES = 64
ALIGNMENT = 64
CHUNKS_MAX = 1 << 16
FOOTER_BYTES_MAX = 24 * MIB
DIGEST_BYTES, ID_PREFIX_BYTES = 16, 16
RAW_CODEC = 0

_IDENTITY = struct.Struct("<8sII16sQQ8sI")
_CHUNK = struct.Struct("<8sQQ16s16sB3x")
_CHUNK_COLUMNS = np.dtype(
    [
        ("magic", np.uint8, 8),
        ("raw_length", "<u8"),
        ("stored_length", "<u8"),
        ("digest", np.uint8, DIGEST_BYTES),
        ("id_prefix", np.uint8, ID_PREFIX_BYTES),
        ("codec", np.uint8),
        ("padding", np.uint8, 3),
        ("check", "<u4"),
    ]
)
_TRAILER = struct.Struct("<8sQQ32sI")
_CHECK = struct.Struct("<I")
_LINEAGE_BYTES, _TOKEN_BYTES = 16, 8
_HEADER_KIND, _CHUNK_KIND, _TRAILER_KIND = "pack", "chnk", "tail"
_CHUNK_MAGIC = magic(_CHUNK_KIND)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackIdentity:
    """Whose pack this is: repeated in its header and its footer.

    Attributes:
        lineage: Uuid of the lineage that wrote it, 32 hexadecimal digits.
        term: Term of the job.
        save: Number of the save in that term.
        rank: Rank that wrote it.
        number: Number among the packs of that rank and save.
        token: 16 hexadecimal digits, as in its key.
    """

    lineage: str
    term: int
    save: int
    rank: int
    number: int
    token: str


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What a chunk says of itself.

    Attributes:
        codec: Number of the codec of its stored bytes.
        raw_length: Bytes after decoding.
        stored_length: Bytes in the pack.
        digest: XXH3-128 of the stored bytes.
        id_prefix: First half of the BLAKE3 of the decoded bytes.
    """

    codec: int
    raw_length: int
    stored_length: int
    digest: bytes
    id_prefix: bytes


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last bytes of a pack: where its footer is and what proves it."""

    footer_offset: int
    footer_length: int
    footer_digest: bytes
    chunks: int


def encode_header(identity: PackIdentity) -> bytes:
    """Return the first `BLOCK_BYTES` of a pack.

    Raises:
        InvalidInput: A number or an id does not fit.
    """
    try:
        lineage, token = bytes.fromhex(identity.lineage), bytes.fromhex(identity.token)
        start = _IDENTITY.pack(
            magic(_HEADER_KIND),
            0,
            identity.rank,
            lineage,
            identity.term,
            identity.save,
            token,
            identity.number,
        )
    except (ValueError, struct.error) as error:
        raise InvalidInput(f"{identity} cannot be stored: {error}") from error
    if len(lineage) != _LINEAGE_BYTES or len(token) != _TOKEN_BYTES:
        raise InvalidInput(f"{identity} cannot be stored: an id has another length")
    return _sealed(start)


def parse_header(header: bytes) -> PackIdentity:
    """Return whose pack begins with these `BLOCK_BYTES`.

    Raises:
        Corrupt: The bytes are not the header of a pack.
        Unsupported: It is of another format version or needs an unknown feature.
    """
    check_envelope(header, _HEADER_KIND)
    _check_seal(header, _HEADER_KIND)
    _, _, rank, lineage, term, save, token, number = _IDENTITY.unpack_from(header)
    return PackIdentity(
        lineage=lineage.hex(), term=term, save=save, rank=rank, number=number, token=token.hex()
    )


def encode_chunk_header(chunk: ChunkHeader) -> bytes:
    """Return the `BLOCK_BYTES` before the stored bytes of a chunk."""
    start = _CHUNK.pack(
        _CHUNK_MAGIC,
        chunk.raw_length,
        chunk.stored_length,
        chunk.digest,
        chunk.id_prefix,
        chunk.codec,
    )
    return _sealed(start)


def encode_chunk_headers(
    codecs: NDArray[np.integer],
    raw_lengths: U64,
    stored_lengths: U64,
    digests: NDArray[np.uint8],
    ids: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Return what `encode_chunk_header` returns for every row of some columns, shape (chunks, 64)."""
    headers = np.zeros(len(codecs), _CHUNK_COLUMNS)
    headers["magic"] = np.frombuffer(_CHUNK_MAGIC, np.uint8)
    headers["raw_length"], headers["stored_length"] = raw_lengths, stored_lengths
    headers["digest"], headers["id_prefix"] = digests, ids[:, :ID_PREFIX_BYTES]
    headers["codec"] = codecs
    blocks = headers.view(np.uint8).reshape(-1, BLOCK_BYTES)
    stored = blocks.tobytes()
    headers["check"] = [
        zlib.crc32(stored[start : start + BLOCK_BYTES - _CHECK.size])
        for start in range(0, len(stored), BLOCK_BYTES)
    ]
    return blocks


def parse_chunk_header(header: bytes) -> ChunkHeader:
    """Return what a chunk says of itself.

    Raises:
        Corrupt: The bytes are not the header of a chunk, or its lengths cannot be.
        Unsupported: It is of another format version.
    """
    check_magic(header, _CHUNK_KIND)
    _check_seal(header, _CHUNK_KIND)
    _, raw_length, stored_length, digest, id_prefix, codec = _CHUNK.unpack_from(header)
    check_lengths(
        np.array([codec]), np.array([raw_length], np.uint64), np.array([stored_length], np.uint64)
    )
    return ChunkHeader(codec, raw_length, stored_length, digest, id_prefix)


def encode_trailer(trailer: Trailer) -> bytes:
    """Return the last `BLOCK_BYTES` of a pack."""
    start = _TRAILER.pack(
        magic(_TRAILER_KIND),
        trailer.footer_offset,
        trailer.footer_length,
        trailer.footer_digest,
        trailer.chunks,
    )
    return _sealed(start)


def parse_trailer(trailer: bytes, pack_size: int) -> Trailer:
    """Return what the last `BLOCK_BYTES` of a pack of this size say.

    Raises:
        Corrupt: The bytes are not a trailer, or belong to a pack of another size.
        Unsupported: It is of another format version.
    """
    check_magic(trailer, _TRAILER_KIND)
    _check_seal(trailer, _TRAILER_KIND)
    _, offset, length, digest, chunks = _TRAILER.unpack_from(trailer)
    if offset % ALIGNMENT or offset < BLOCK_BYTES or offset + length + BLOCK_BYTES != pack_size:
        raise Corrupt(f"a pack of {pack_size} bytes has a footer of {length} bytes at {offset}")
    if length > FOOTER_BYTES_MAX or chunks > CHUNKS_MAX:
        raise Corrupt(f"a pack claims {chunks} chunks and a footer of {length} bytes")
    return Trailer(offset, length, digest, chunks)


def check_lengths(codecs: NDArray[np.integer], raw_lengths: U64, stored_lengths: U64) -> None:
    """Refuse chunks that are empty, too long, or longer than what they were encoded from.

    Raises:
        Corrupt: A chunk has impossible lengths.
    """
    raw = codecs == RAW_CODEC
    sane = np.where(raw, stored_lengths == raw_lengths, stored_lengths < raw_lengths)
    if not bool((sane & (stored_lengths > 0) & (raw_lengths <= CELL_BYTES_MAX)).all()):
        raise Corrupt("a chunk has impossible lengths")


def _sealed(start: bytes) -> bytes:
    return start + _CHECK.pack(zlib.crc32(start))


def _check_seal(block: bytes, kind: str) -> None:
    if len(block) != BLOCK_BYTES or _CHECK.unpack_from(block, BLOCK_BYTES - 4)[0] != zlib.crc32(
        block[:-4]
    ):
        raise Corrupt(f"a {kind!r} block fails its checksum")
