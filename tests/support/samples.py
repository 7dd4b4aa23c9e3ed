"""One small object of every kind in a snapshot, the same at every call.

They are what the golden files hold and what the damage tests damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fwstore.codec.hashing import ContentHash, xxh3_128
from fwstore.codec.registry import ZSTD_1
from fwstore.format.blocks import PackIdentity
from fwstore.format.leaf import Leaf
from fwstore.format.pack import ChunkEntry, PackLayout
from fwstore.format.packtable import PackInfo
from fwstore.format.paths import encode_path
from fwstore.format.root import (
    LeafRef,
    LineageRef,
    PackTableRef,
    Root,
    SnapshotRef,
    Totals,
)
from fwstore.format.rows import FragmentTable, RunTable
from fwstore.format.tensor import TensorInfo

IDENTITY = PackIdentity(
    lineage="00112233445566778899aabbccddeeff",
    term=3,
    save=41,
    rank=5,
    number=1,
    token="0123456789abcdef",
)


def sample_tensors() -> tuple[TensorInfo, ...]:
    """Return tensors with every feature of a dictionary."""
    tensors = [
        TensorInfo(("model", "wq"), "bfloat16", (8, 6), ((2, 2), (1, 6))),
        TensorInfo(("model", "wk"), "float32", (5, 6), ((1, 2), (1, 6))),
        TensorInfo(("model", "layers", 0, "b"), "float8_e4m3fn", (7,), ((1, 7),)),
        TensorInfo(("model", "layers", "0", "b"), "int64", (7,), ((1, 7),)),
        TensorInfo(("model", "lm_head"), "bfloat16", (8, 6), ((2, 2), (1, 6)), ("model", "wq")),
        TensorInfo(("model.wq",), "complex128", (), ()),
        TensorInfo(("model", "vide", -3), "bool", (0, 4), ((1, 0), (1, 4))),
    ]
    return tuple(sorted(tensors, key=lambda info: encode_path(info.path)))


def number_of(*path: str | int) -> int:
    """Return the number of a sample tensor."""
    return [info.path for info in sample_tensors()].index(path)


def sample_leaf(first_tensor: int = 0) -> Leaf:
    """Return a leaf with runs, fragments and a tied tensor."""
    wq, wk = number_of("model", "wq"), number_of("model", "wk")
    runs = [
        (number_of("model", "layers", 0, "b"), 0, 1, 0, 9),
        (number_of("model", "layers", "0", "b"), 0, 1, 1, 0),
        (number_of("model.wq"), 0, 1, 0, 7),
        (wq, 0, 2, 0, 2),
        (wq, 3, 1, 1, 2),
        (wk, 0, 1, 0, 0),
        (wk, 2, 1, 1, 1),
    ]
    fragments = [(wk, 1, 0, 1), (wq, 2, 0, 4), (wq, 2, 1, 3)]
    boxes = [((0, 1), (2, 5)), ((0, 0), (1, 6)), ((1, 0), (1, 6))]
    return Leaf(
        first_tensor,
        sample_tensors(),
        RunTable.of([(run[0] + first_tensor, *run[1:]) for run in sorted(runs)]),
        FragmentTable.of([(row[0] + first_tensor, *row[1:]) for row in fragments], boxes),
    )


def sample_packs() -> tuple[PackInfo, ...]:
    """Return two packs, one of them of another lineage and copied anew after a condemn."""
    digest = bytes(range(32))
    return (
        PackInfo(
            lineage=0,
            spread=0x2A,
            term=3,
            save=41,
            rank=5,
            number=1,
            token="0123456789abcdef",
            size=1 << 28,
            footer_length=61_234,
            footer_digest=digest,
            chunks=1024,
        ),
        PackInfo(
            lineage=1,
            spread=0xFF,
            term=1,
            save=0,
            rank=123_456,
            number=7,
            token="fedcba9876543210",
            incarnation=2,
            size=4096,
            footer_length=512,
            footer_digest=digest[::-1],
            chunks=3,
        ),
    )


def sample_root() -> Root:
    """Return a root that uses every field."""
    own = LineageRef("gpt/large@2", "00112233445566778899aabbccddeeff")
    donor = LineageRef("base@1", "ffeeddccbbaa99887766554433221100")
    digest = bytes(range(32))
    return Root(
        lineage=own,
        snapshot="000000001200-t3-s41-0123456789abcdef",
        step=1200,
        term=3,
        save=41,
        parent=SnapshotRef(donor, "000000001100-t2-s39-fedcba9876543210"),
        wall_time=1_780_000_000.25,
        leaves=(
            LeafRef(0, 7, ("a",), ("m", 3, "w"), 4000, digest),
            LeafRef(6, 2, ("m", 3, "w"), ("z", -1, ""), 9000, digest[::-1]),
        ),
        pack_tables=(PackTableRef(0, 4096, 200_000, digest), PackTableRef(4096, 2, 300, digest)),
        lineages=(own, donor),
        state=b"\x81\xa4step\xcd\x04\xb0",
        position=b"shard 7, sample 12",
        metrics={"loss": 2.125, "accuracy": float("inf")},
        software={"fwstore": "0.1.0", "torch": "2.13.0"},
        totals=Totals(
            tensors=8, packs=4098, chunks=90, fragments=2, bytes_logical=1 << 40, bytes_written=77
        ),
    )


@dataclass(frozen=True)
class SamplePack:
    """A whole pack: its bytes, and the decoded bytes of its chunks."""

    stored: bytes
    chunks: tuple[bytes, ...]
    footer_offset: int


def sample_pack() -> SamplePack:
    """Return a pack with raw, encoded and fragment chunks."""
    layout = PackLayout(IDENTITY, sample_tensors(), ContentHash().digest)
    parts = [layout.header]
    chunks = []
    for entry, raw, stored in _sample_chunks():
        place = layout.append(entry)
        parts += [place.header, stored, place.padding]
        chunks.append(raw)
    end = layout.finish()
    return SamplePack(b"".join([*parts, end.footer, end.trailer]), tuple(chunks), layout.size)


def _sample_chunks() -> Iterator[tuple[ChunkEntry, bytes, bytes]]:
    wq, wk = number_of("model", "wq"), number_of("model", "wk")
    rows = [
        (wk, 0, bytes(range(48)), None),
        (wk, 1, bytes(range(40)), ((0, 1), (2, 5))),
        (wk, 2, b"\1" * 24, None),
        (wq, 1, b"\3\4" * 12, None),
        (number_of("model.wq"), 0, bytes(range(16)), None),
        (number_of("model", "layers", "0", "b"), 0, bytes(56), None),
    ]
    for tensor, cell, raw, box in rows:
        encoded = ZSTD_1.encode(memoryview(raw))
        stored = raw if encoded is None else encoded
        codec = 0 if encoded is None else ZSTD_1.number
        content_id = ContentHash().digest(raw)
        yield (
            ChunkEntry(
                content_id, xxh3_128(stored), codec, len(raw), len(stored), tensor, cell, box
            ),
            raw,
            stored,
        )


def large_leaf() -> Leaf:
    """Return a leaf whose columns are worth compressing."""
    tensors = tuple(
        TensorInfo(("layers", number, "w"), "float32", (4096, 64), ((1, 16), (1, 64)))
        for number in range(100)
    )
    runs = [
        (tensor, part * 64, 64, part, tensor * 64) for tensor in range(100) for part in range(4)
    ]
    return Leaf(0, tensors, RunTable.of(runs), FragmentTable.of())
