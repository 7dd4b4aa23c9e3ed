"""Packs and footers: layout, footer, scan, damage."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, InternalError, InvalidInput, Unsupported
from fwstore.codec.hashing import ContentHash, xxh3_128
from fwstore.codec.registry import codec_of_number
from fwstore.format.blocks import ALIGNMENT, BLOCK_BYTES, CHUNKS_MAX, parse_header
from fwstore.format.footer import Footer, chunk_offsets, encode_footer, parse_chunks, parse_footer
from fwstore.format.pack import (
    FOOTER_READ_BYTES,
    ChunkEntry,
    ChunkPlace,
    PackLayout,
    footer_of_suffix,
    scan_chunks,
)
from fwstore.format.paths import encode_path
from fwstore.format.tensor import TensorInfo
from support.damage import flips, refuses, truncations
from support.samples import IDENTITY, sample_pack, sample_tensors

DIGEST = ContentHash().digest


def read_chunks(stored: bytes) -> list[bytes]:
    """Read a pack as a reader without a pack table does: trailer, footer, chunks, all verified."""
    trailer, footer_bytes = footer_of_suffix(stored[-FOOTER_READ_BYTES:], len(stored))
    if footer_bytes is None or DIGEST(footer_bytes) != trailer.footer_digest:
        raise Corrupt("footer")
    footer = parse_footer(footer_bytes, trailer.footer_offset)
    chunks = []
    for number in range(len(footer)):
        offset, length = int(footer.offsets[number]), int(footer.stored_lengths[number])
        found = stored[offset : offset + length]
        if xxh3_128(found) != footer.digests[number].tobytes():
            raise Corrupt("chunk")
        codec = codec_of_number(int(footer.codecs[number]))
        raw = bytes(codec.decode(memoryview(found), int(footer.raw_lengths[number])))
        assert DIGEST(raw) == footer.ids[number].tobytes()
        chunks.append(raw)
    return chunks


def footer_of(stored: bytes) -> tuple[Footer, bytes, int]:
    trailer, footer_bytes = footer_of_suffix(stored, len(stored))
    assert footer_bytes is not None
    return parse_footer(footer_bytes, trailer.footer_offset), footer_bytes, trailer.footer_offset


def test_a_pack_is_read_back() -> None:
    pack = sample_pack()
    assert read_chunks(pack.stored) == list(pack.chunks)
    footer, footer_bytes, offset = footer_of(pack.stored)
    assert offset == pack.footer_offset
    assert footer.identity == IDENTITY == parse_header(pack.stored[:BLOCK_BYTES])
    assert encode_footer(footer) == footer_bytes
    assert set(footer.dictionary) < set(sample_tensors())
    assert footer.fragment_box(1) == ((0, 1), (2, 5))
    assert [footer.fragment_box(number) for number in (0, 2, 5)] == [None] * 3
    assert not footer.offsets.astype(np.int64).__mod__(ALIGNMENT).any()


def test_a_pack_is_scanned_without_its_footer() -> None:
    pack = sample_pack()
    footer, _, _ = footer_of(pack.stored)

    def scan(stored: bytes) -> list[int]:
        found = scan_chunks(lambda offset, length: stored[offset : offset + length], len(stored))
        places = []
        for number, (offset, header) in enumerate(found):
            assert offset == footer.offsets[number]
            assert header.raw_length == footer.raw_lengths[number]
            assert header.stored_length == footer.stored_lengths[number]
            assert header.codec == footer.codecs[number]
            assert header.digest == footer.digests[number].tobytes()
            assert header.id_prefix == footer.ids[number].tobytes()[:16]
            places.append(offset)
        return places

    assert scan(pack.stored) == footer.offsets.tolist()
    assert scan(pack.stored[: pack.footer_offset]) == footer.offsets.tolist()
    end = int(footer.offsets[2]) + int(footer.stored_lengths[2])
    assert len(scan(pack.stored[:end])) == 3
    assert len(scan(pack.stored[: end - 1])) == 2
    assert scan(pack.stored[:BLOCK_BYTES]) == []


def test_a_scan_stops_at_damage() -> None:
    pack = sample_pack()
    footer, _, _ = footer_of(pack.stored)
    place = int(footer.offsets[1]) - 1
    bad = pack.stored[:place] + b"\xff" + pack.stored[place + 1 :]
    scan = scan_chunks(lambda offset, length: bad[offset : offset + length], len(bad))
    next(scan)
    with pytest.raises(Corrupt, match=f"byte {place + 1 - BLOCK_BYTES} "):
        next(scan)


@pytest.mark.slow
def test_every_flip_of_a_pack_is_found_or_harmless() -> None:
    pack = sample_pack()
    for _, bad in flips(pack.stored):
        try:
            found = read_chunks(bad)
        except (Corrupt, Unsupported):
            continue
        assert found == list(pack.chunks)


def test_every_truncation_of_a_pack_is_found() -> None:
    assert all(refuses(read_chunks, bad) for _, bad in truncations(sample_pack().stored))


def test_the_chunks_of_a_footer_are_parsed_alike_without_its_tensors() -> None:
    footer, stored, offset = footer_of(sample_pack().stored)
    chunks = parse_chunks(stored, offset)
    assert len(chunks) == len(footer) > 0
    for name in ("ids", "digests", "codecs", "raw_lengths", "stored_lengths", "offsets"):
        np.testing.assert_array_equal(getattr(chunks, name), getattr(footer, name))


def test_damaged_footers_raise_nothing_else() -> None:
    # Trailer and pack table hold the digest of a footer, so a flip that still parses is never parsed.
    _, stored, offset = footer_of(sample_pack().stored)
    assert any(refuses(lambda s: parse_footer(s, offset), bad) for _, bad in flips(stored))
    assert all(refuses(lambda s: parse_footer(s, offset), bad) for _, bad in truncations(stored))
    assert all(refuses(lambda s: parse_chunks(s, offset), bad) for _, bad in truncations(stored))
    for wrong in (0, offset - ALIGNMENT, offset + ALIGNMENT):
        for parse in (parse_footer, parse_chunks):
            with pytest.raises(Corrupt, match="footer begins"):
                parse(stored, wrong)


def test_a_short_suffix_says_where_the_footer_is() -> None:
    pack = sample_pack()
    trailer, footer = footer_of_suffix(pack.stored[-BLOCK_BYTES:], len(pack.stored))
    assert footer is None
    assert trailer.footer_offset == pack.footer_offset
    exact = pack.stored[pack.footer_offset :]
    assert footer_of_suffix(exact, len(pack.stored))[1] == exact[:-BLOCK_BYTES]
    with pytest.raises(Corrupt):
        footer_of_suffix(b"", len(pack.stored))


def changed(footer: Footer, **columns: object) -> Footer:
    return dataclasses.replace(footer, **columns)  # type: ignore[arg-type]


def test_impossible_footers_are_refused() -> None:
    footer, _, _ = footer_of(sample_pack().stored)
    beyond = footer.cells.copy()
    beyond[0] = 10**6
    longer = footer.raw_lengths.copy()
    longer[0] += 1
    fragment = footer.raw_lengths.copy()
    fragment[1] -= 4
    stored = footer.stored_lengths.copy()
    stored[1] = fragment[1]
    for bad in (
        changed(footer, cells=beyond),
        changed(footer, raw_lengths=longer, stored_lengths=longer),
        changed(footer, raw_lengths=fragment, stored_lengths=stored),
        changed(footer, tensors=footer.tensors + np.uint32(9)),
        changed(footer, fragments=np.array([99], np.uint32)),
        changed(footer, codecs=footer.codecs + np.uint8(1)),
    ):
        with pytest.raises(InvalidInput):
            encode_footer(bad)


@st.composite
def entries(draw: st.DrawFn) -> tuple[list[TensorInfo], list[ChunkEntry]]:
    infos = [
        TensorInfo((key,), "int32", (rows, 4), ((1, draw(st.integers(1, rows))), (1, 4)))
        for key, rows in draw(
            st.dictionaries(st.integers(0, 99), st.integers(1, 50), min_size=1)
        ).items()
    ]
    infos.sort(key=lambda info: encode_path(info.path))
    chunks = []
    for _ in range(draw(st.integers(0, 12))):
        number = draw(st.integers(0, len(infos) - 1))
        info = infos[number]
        rows = info.cells[0][1]
        size = draw(st.integers(1, rows))
        box = draw(st.sampled_from([None, ((rows - size, 1), (size, 3))]))
        raw = rows * 16 if box is None else size * 12
        codec = draw(st.integers(0, 1))
        stored = raw if codec == 0 else draw(st.integers(1, raw - 1))
        chunks.append(
            ChunkEntry(
                draw(st.binary(min_size=32, max_size=32)),
                draw(st.binary(min_size=16, max_size=16)),
                codec,
                raw,
                stored,
                number,
                draw(st.integers(0, info.cell_count - 1)),
                box,
            )
        )
    return infos, chunks


@settings(max_examples=60)
@given(entries())
def test_any_layout_is_found_again(made: tuple[list[TensorInfo], list[ChunkEntry]]) -> None:
    infos, chunks = made
    layout = PackLayout(IDENTITY, infos, DIGEST)
    stored = layout.header
    places = []
    for chunk in chunks:
        assert layout.size == len(stored)
        place = layout.append(chunk)
        stored += place.header
        assert place.offset == len(stored)
        stored += b"s" * chunk.stored_length + place.padding
        places.append(place.offset)
    end = layout.finish()
    stored += end.footer + end.trailer
    assert end.size == len(stored)
    assert end.chunks == len(chunks)
    assert end.footer_digest == DIGEST(end.footer)
    footer, _, _ = footer_of(stored)
    assert footer.offsets.tolist() == places
    for number, chunk in enumerate(chunks):
        assert footer.dictionary[int(footer.tensors[number])] == infos[chunk.tensor]
        assert footer.cells[number] == chunk.cell
        assert footer.fragment_box(number) == chunk.box
        assert footer.ids[number].tobytes() == chunk.id


@settings(max_examples=60)
@given(entries(), st.integers(0, 4000))
def test_chunks_placed_together_lie_as_if_placed_one_by_one(
    made: tuple[list[TensorInfo], list[ChunkEntry]], pack_bytes: int
) -> None:
    infos, chunks = made
    together, single = (PackLayout(IDENTITY, infos, DIGEST) for _ in range(2))
    places = together.extend(chunks, pack_bytes)
    expected: list[ChunkPlace] = []
    for chunk in chunks:
        if expected and single.size + chunk.stored_length > pack_bytes:
            break
        expected.append(single.append(chunk))
    assert places == expected
    assert together.finish() == single.finish()


def entry_of(
    tensor: int, cell: int = 0, box: tuple[tuple[int, ...], tuple[int, ...]] | None = None
) -> ChunkEntry:
    return ChunkEntry(bytes(32), bytes(16), 0, 1, 1, tensor, cell, box)


@pytest.mark.slow
def test_a_pack_is_full_before_its_footer_cannot_be_stored() -> None:
    rows = [TensorInfo(("w",), "int8", (CHUNKS_MAX + 1,), ((1, 1),))]
    deep = [
        TensorInfo((number, *["x"] * 60), "int8", (1,) * 60, ((1, 1),) * 60)
        for number in range(4000)
    ]
    deep.sort(key=lambda info: encode_path(info.path))
    long = [TensorInfo((f"{number:04d}" + "é" * 2000,), "int8", (), ()) for number in range(1000)]
    boxed = [TensorInfo((0,), "int8", (2,) * 14 + (1,) * 50, ((1, 1),) * 64)]
    for infos, box in ((rows, None), (deep, None), (long, None), (boxed, ((0,) * 64, (1,) * 64))):
        layout = PackLayout(IDENTITY, infos, DIGEST)
        count = 0
        while not layout.full:
            layout.append(entry_of(count % len(infos), count // len(infos), box))
            count += 1
        with pytest.raises(InternalError, match="full"):
            layout.append(entry_of(0))
        end = layout.finish()
        assert len(parse_footer(end.footer, layout.size)) == count


def test_offsets_follow_from_lengths() -> None:
    offsets, end = chunk_offsets(np.array([1, 64, 65], np.uint64))
    assert offsets.tolist() == [128, 256, 384]
    assert end == 384 + 128
    assert chunk_offsets(np.zeros(0, np.uint64))[1] == BLOCK_BYTES
