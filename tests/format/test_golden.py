"""Golden files: what older versions of fwstore stored is read, and written the same.

The bytes of zstd frames may differ between versions of zstd, so files with compressed columns must be
read but need not be written alike; the small samples hold none.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fwstore.codec.hashing import ContentHash, xxh3_128
from fwstore.codec.registry import codec_of_number
from fwstore.format.footer import encode_footer, parse_footer
from fwstore.format.leaf import Leaf, encode_leaf, parse_leaf
from fwstore.format.pack import footer_of_suffix
from fwstore.format.packtable import encode_pack_table, parse_pack_table
from fwstore.format.root import encode_root, parse_root
from fwstore.format.rows import run_columns
from support.samples import (
    IDENTITY,
    large_leaf,
    sample_leaf,
    sample_pack,
    sample_packs,
    sample_root,
)

pytestmark = pytest.mark.format
FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
FOLDER = Path(__file__).parent.parent / "formats"


def golden(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def assert_holds(leaf: Leaf, expected: Leaf) -> None:
    assert (leaf.first_tensor, leaf.tensors) == (expected.first_tensor, expected.tensors)
    found, wanted = run_columns(leaf.runs), run_columns(expected.runs)
    assert all(list(found[name]) == list(wanted[name]) for name in wanted)
    rows = range(len(expected.fragments))
    assert [leaf.fragments.boxes.row(row) for row in rows] == [
        expected.fragments.boxes.row(row) for row in rows
    ]
    assert leaf.fragments.cell.tolist() == expected.fragments.cell.tolist()


def test_leaf() -> None:
    stored = golden("leaf-1.bin")
    assert_holds(parse_leaf(stored), sample_leaf())
    assert encode_leaf(parse_leaf(stored)) == stored == encode_leaf(sample_leaf())


def test_leaf_with_compressed_columns() -> None:
    stored = golden("leaf-compressed-1.bin")
    assert FRAME_MAGIC in stored
    assert_holds(parse_leaf(stored), large_leaf())


def test_pack_table() -> None:
    stored = golden("packs-1.bin")
    first, packs = parse_pack_table(stored)
    assert (first, packs) == (4096, sample_packs())
    assert encode_pack_table(first, packs) == stored


def test_root() -> None:
    stored = golden("root-1.bin")
    assert parse_root(stored) == sample_root()
    assert encode_root(parse_root(stored)) == stored


def test_pack() -> None:
    stored = golden("pack-1.bin")
    trailer, footer_bytes = footer_of_suffix(stored, len(stored))
    assert footer_bytes is not None
    footer = parse_footer(footer_bytes, trailer.footer_offset)
    assert footer.identity == IDENTITY
    assert encode_footer(footer) == footer_bytes
    assert FRAME_MAGIC not in footer_bytes
    assert set(footer.codecs.tolist()) == {0, 1}
    for number, raw in enumerate(sample_pack().chunks):
        start = int(footer.offsets[number])
        chunk = memoryview(stored)[start : start + int(footer.stored_lengths[number])]
        assert codec_of_number(int(footer.codecs[number])).decode(chunk, len(raw)) == raw
        assert xxh3_128(chunk) == footer.digests[number].tobytes()
        assert ContentHash().digest(raw) == footer.ids[number].tobytes()
