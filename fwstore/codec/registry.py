"""Codecs of chunks, by name for users and by number on the store.

Invariant: a number means one decoder for ever; decoding yields exactly the declared length or
`Corrupt`. Codecs have no state, so any thread may use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fwstore.base.errors import Corrupt, InternalError, InvalidInput, Unsupported
from fwstore.format.frames import compress_frame, decompress_frame

_GAIN_SHIFT = 4


class Codec(Protocol):
    """A lossless encoding of the bytes of one chunk."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def number(self) -> int:
        """What chunks and footers call its decoder."""
        ...

    def encode(self, raw: memoryview) -> bytes | None:
        """Return the encoded bytes, or None when they would not be worth decoding again."""
        ...

    def decode(self, stored: memoryview, raw_length: int) -> bytes | memoryview:
        """Return the `raw_length` bytes that were encoded.

        Raises:
            Corrupt: The stored bytes do not decode to that length.
        """
        ...


@dataclass(frozen=True, slots=True)
class RawCodec:
    """No encoding."""

    name: str = "raw"
    number: int = 0

    def encode(self, raw: memoryview) -> bytes | None:
        """Return None: raw bytes are stored as they are."""
        del raw
        return None

    def decode(self, stored: memoryview, raw_length: int) -> bytes | memoryview:
        """Return the stored bytes themselves."""
        if len(stored) != raw_length:
            raise Corrupt(f"a raw chunk has {len(stored)} bytes; {raw_length} were expected")
        return stored


@dataclass(frozen=True, slots=True)
class ZstdCodec:
    """One zstd frame that states its content size; the level matters only to the encoder."""

    name: str
    level: int
    number: int = 1

    def encode(self, raw: memoryview) -> bytes | None:
        """Return a frame, or None when it saves less than 1/16."""
        frame = compress_frame(raw, self.level)
        return frame if len(frame) <= raw.nbytes - (raw.nbytes >> _GAIN_SHIFT) else None

    def decode(self, stored: memoryview, raw_length: int) -> bytes | memoryview:
        """Return the content of the frame."""
        return decompress_frame(stored, raw_length)


RAW = RawCodec()
ZSTD_1 = ZstdCodec("zstd-1", 1)
ZSTD_3 = ZstdCodec("zstd-3", 3)
_BY_NAME: dict[str, Codec] = {"raw": RAW, "zstd": ZSTD_1, "zstd-1": ZSTD_1, "zstd-3": ZSTD_3}
_BY_NUMBER: dict[int, Codec] = {RAW.number: RAW, ZSTD_1.number: ZSTD_1}


def codec_of_name(name: str) -> Codec:
    """Return the codec that a user asked for.

    Raises:
        InvalidInput: No codec has this name.
    """
    codec = _BY_NAME.get(name)
    if codec is None:
        raise InvalidInput(
            f"there is no codec {name!r}; choose one of {', '.join(_BY_NAME)} or auto"
        )
    return codec


def codec_of_number(number: int) -> Codec:
    """Return the codec that decodes a stored chunk.

    Raises:
        Unsupported: This version of fwstore has no such codec.
    """
    codec = _BY_NUMBER.get(number)
    if codec is None:
        raise Unsupported(f"a chunk needs the unknown codec {number}: use a newer fwstore")
    return codec


def encode_verified(codec: Codec, raw: memoryview) -> bytes | None:
    """Return what `encode` returns for a C-contiguous buffer, after decoding it again.

    Raises:
        InternalError: The codec does not give back what it was given; nothing was stored.
    """
    stored = codec.encode(raw)
    if stored is not None and not _same(codec.decode(memoryview(stored), raw.nbytes), raw):
        raise InternalError(
            f"codec {codec.name} does not give back the bytes it was given; use raw"
        )
    return stored


def _same(left: bytes | memoryview, right: memoryview) -> bool:
    # Memoryviews compare one element at a time and by value; numpy compares bytes, 25 times as fast.
    return np.array_equal(np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8))
