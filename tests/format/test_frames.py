"""Single zstd frames."""

from __future__ import annotations

import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt
from fwstore.format.frames import compress_frame, decompress_frame
from support.damage import flips, refuses, truncations


@given(st.binary(max_size=500), st.sampled_from([1, 3]))
def test_a_frame_comes_back(raw: bytes, level: int) -> None:
    frame = compress_frame(memoryview(raw), level)
    assert decompress_frame(memoryview(frame), len(raw)) == raw
    assert refuses(lambda stored: decompress_frame(stored, len(raw) + 1), frame)


def test_every_truncation_is_refused_and_no_flip_escapes_as_another_error() -> None:
    raw = b"abcabcabcabd" * 20
    frame = compress_frame(raw, 3)
    assert all(
        refuses(lambda s: decompress_frame(s, len(raw)), bad) for _, bad in truncations(frame)
    )
    assert any(refuses(lambda s: decompress_frame(s, len(raw)), bad) for _, bad in flips(frame))
    for more in (frame + b"\0", frame + frame, frame + compress_frame(b"", 1)):
        with pytest.raises(Corrupt):
            decompress_frame(more, len(raw))


def test_the_declared_length_bounds_the_memory() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 26))
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt, match="67108864"):
            decompress_frame(bomb, 4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_frames_that_need_a_dictionary_are_corrupt() -> None:
    dictionary = zstandard.ZstdCompressionDict(b"abcdefgh" * 100)
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"abcdefgh" * 50)
    assert refuses(lambda stored: decompress_frame(stored, 400), frame)
