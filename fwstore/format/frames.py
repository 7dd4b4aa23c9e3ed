"""Single zstd frames, read strictly.

Invariant: a frame yields exactly the length that its referrer declared, or `Corrupt`; that length is
compared with the frame before anything is allocated, and nothing may follow the frame.
"""

from __future__ import annotations

import zstandard

from fwstore.base.errors import Corrupt

Bytes = bytes | bytearray | memoryview


def compress_frame(raw: Bytes, level: int) -> bytes:
    """Return one zstd frame that states its content size."""
    # A compressor per call costs about 10 us and is safe in every thread and forked child.
    return zstandard.ZstdCompressor(level=level).compress(raw)


class FrameDecompressor:
    """Reads many frames, one after another, in one thread: to make one costs more than a small frame."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def frame(self, stored: Bytes, raw_length: int) -> bytes:
        """Return the content of a frame that must have `raw_length` bytes.

        Raises:
            Corrupt: The frame is malformed, is followed by more bytes, or has another length.
        """
        try:
            parameters = zstandard.get_frame_parameters(stored)
            if parameters.content_size != raw_length:
                raise Corrupt(
                    f"a zstd frame declares {parameters.content_size} bytes; {raw_length} were expected"
                )
            raw = self._decompressor.decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Corrupt(f"a zstd frame is malformed: {error}") from error
        if len(raw) != raw_length:
            raise Corrupt(f"a zstd frame holds {len(raw)} bytes; {raw_length} were expected")
        return raw


def decompress_frame(stored: Bytes, raw_length: int) -> bytes:
    """Return the content of one frame that must have `raw_length` bytes.

    Raises:
        Corrupt: The frame is malformed, is followed by more bytes, or has another length.
    """
    return FrameDecompressor().frame(stored, raw_length)
