"""Reads by runs: few requests, the same bytes, and whatever does not fit them is read chunk by chunk."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt
from fwstore.codec.registry import ZSTD_1
from fwstore.content import flat
from fwstore.content.build import BuiltSnapshot
from fwstore.content.chunks import ChunkReader
from fwstore.content.manifest import TensorRows
from fwstore.format.blocks import ChunkHeader, encode_chunk_header, encode_chunk_headers
from fwstore.format.rows import FragmentTable, RunTable
from fwstore.format.tensor import TensorInfo
from fwstore.plan.box import Box
from fwstore.store.memory import MemoryStore
from support.snapshots import Piece, Site, make_runtime, raw, read_pieces, whole

RNG = np.random.default_rng(7)
CELLS = ((1, 2), (1, 8))


@pytest.fixture
def chunkwise(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was read chunk by chunk, by tensor."""
    seen: list[Any] = []
    read = ChunkReader.read

    def noted(self: ChunkReader, manifest: Any, tensors: Any) -> Any:
        seen.extend(tensor.path for tensor in tensors)
        return read(self, manifest, tensors)

    monkeypatch.setattr(ChunkReader, "read", noted)
    return seen


def make_site(arrays: dict[Any, NDArray[Any]], **options: Any) -> tuple[Site, BuiltSnapshot]:
    site = Site(MemoryStore(make_runtime()), make_runtime(), **options)
    return site, site.save(arrays, dict.fromkeys(arrays, CELLS))


def load(site: Site, built: BuiltSnapshot, arrays: dict[Any, NDArray[Any]]) -> None:
    loaded = site.load(built)
    for path, array in arrays.items():
        np.testing.assert_array_equal(loaded[path], raw(array))


def test_whole_tensors_are_read_by_runs_alone(chunkwise: list[Any]) -> None:
    arrays = {("a",): RNG.standard_normal((7, 8)), ("b",): RNG.standard_normal((4, 8))}
    site, built = make_site(arrays)
    load(site, built, arrays)
    assert chunkwise == []


def test_encoded_chunks_are_read_one_by_one(chunkwise: list[Any]) -> None:
    arrays: dict[Any, NDArray[Any]] = {
        ("a",): np.zeros((64, 8)),
        ("b",): RNG.integers(0, 255, (64, 64)).astype(np.uint8),
    }
    site = Site(MemoryStore(make_runtime()), make_runtime(), codec=ZSTD_1)
    built = site.save(arrays)
    load(site, built, arrays)
    assert ("a",) in chunkwise


def test_a_chunk_that_two_tensors_share_is_read_once_for_the_second(chunkwise: list[Any]) -> None:
    array = RNG.standard_normal((4, 8))
    site, built = make_site({("a",): array})
    left, right = np.zeros((4, 8), np.uint64), np.zeros((4, 8), np.uint64)
    read_pieces(site.origin, site.open(built), {("a",): [whole(left), whole(right)]})
    np.testing.assert_array_equal(left, raw(array))
    np.testing.assert_array_equal(right, raw(array))
    assert chunkwise == [("a",)]


@pytest.mark.parametrize("rows", [(0, 7), (0, 3), (1, 6), (3, 4), (3, 7), (2, 6)])
def test_whole_cells_come_by_runs_and_edges_one_by_one(
    chunkwise: list[Any], rows: tuple[int, int]
) -> None:
    array = RNG.standard_normal((7, 8))
    site, built = make_site({("a",): array})
    target = np.zeros((rows[1] - rows[0], 8), np.uint64)
    piece = Piece(Box((rows[0], 0), (rows[1] - rows[0], 8)), target)
    read_pieces(site.origin, site.open(built), {("a",): [piece]})
    np.testing.assert_array_equal(target, raw(array)[rows[0] : rows[1]])
    whole_cells = rows[0] % 2 == 0 and (rows[1] % 2 == 0 or rows[1] == 7)
    assert (chunkwise == []) is whole_cells


@pytest.mark.parametrize("what", ["header", "content"])
def test_damage_in_a_run_is_named_by_tensor_and_chunk(what: str) -> None:
    arrays = {("a",): RNG.standard_normal((7, 8))}
    site, built = make_site(arrays)
    (pack,) = site.open(built).all_packs()
    content = bytearray(site.store.get(pack.key, limit_bytes=1 << 20))
    # The first block is the header of the pack; the header and the content of chunk 0 follow.
    content[64 + (70 if what == "content" else 10)] ^= 1
    site.store.put(pack.key, [bytes(content)], mode="overwrite")
    with pytest.raises(Corrupt, match=r"tensor a\[0:2, 0:8\], which is chunk 0 of .* is damaged"):
        site.load(built)


def test_bytes_between_wanted_chunks_are_read_through_and_ignored() -> None:
    arrays = {(name,): RNG.integers(0, 255, (7, 8)).astype(np.uint8) for name in "abc"}
    site, built = make_site(arrays)
    targets = {path: np.zeros((7, 8), np.uint8) for path in (("a",), ("c",))}
    statistics = read_pieces(
        site.origin, site.open(built), {path: [whole(t)] for path, t in targets.items()}
    )
    for path, target in targets.items():
        np.testing.assert_array_equal(target, arrays[path])
    assert (statistics.requests, statistics.chunks) == (1, 8)
    assert statistics.bytes_wanted == 2 * 56


def test_headers_by_columns_are_those_made_one_by_one() -> None:
    count = 5
    lengths = RNG.integers(1, 1 << 20, count).astype(np.uint64)
    digests = RNG.integers(0, 256, (count, 16)).astype(np.uint8)
    ids = RNG.integers(0, 256, (count, 32)).astype(np.uint8)
    codecs = RNG.integers(0, 3, count).astype(np.uint8)
    expected = [
        encode_chunk_header(
            ChunkHeader(
                int(codecs[n]),
                int(lengths[n]) + 1,
                int(lengths[n]),
                digests[n].tobytes(),
                ids[n, :16].tobytes(),
            )
        )
        for n in range(count)
    ]
    found = encode_chunk_headers(codecs, lengths + np.uint64(1), lengths, digests, ids)
    assert [row.tobytes() for row in found] == expected
    assert (
        len(encode_chunk_headers(codecs[:0], lengths[:0], lengths[:0], digests[:0], ids[:0])) == 0
    )


@given(st.data())
def test_runs_of_many_pieces_are_those_of_every_piece_alone(data: st.DataObject) -> None:
    rows_of = data.draw(st.lists(run_tables(), min_size=1, max_size=4))
    wanted = []
    for number, rows in enumerate(rows_of):
        low, high = sorted(data.draw(st.tuples(*[st.integers(0, rows.info.shape[0])] * 2)))
        box = Box((low, 0), (high - low, 3))
        wanted.append((number, rows, Piece(box, np.zeros(box.sizes, np.uint16))))
    found = flat.plan_flat_runs(wanted)
    assert [tuple(run[:4]) for run in found] == [
        tuple(run[:4]) for want in wanted for run in flat.plan_flat_runs([want])
    ]
    for number, rows, piece in wanted:
        low, high = piece.box.offsets[0], piece.box.offsets[0] + piece.box.sizes[0]
        cells = [cell for cell in range(-(-low // 2), 8) if min(2 * cell + 2, 15) <= high]
        if low == high:
            cells = []
        expected = [chunk_of(rows, cell) for cell in cells]
        mine = [run for run in found if run.want == number]
        chunks = [(run.pack, run.first + n) for run in mine for n in range(len(run.lengths))]
        assert chunks == ([] if None in expected else expected)
        for run in mine:
            run.memory[:] = bytes([number + 1]) * run.memory.nbytes
            assert run.memory.nbytes == sum(run.lengths)
        if mine:
            filled = piece.array[2 * cells[0] - low : 2 * cells[-1] + 2 - low]
            assert bool((filled == (number + 1) * 0x101).all())
            assert np.count_nonzero(piece.array) == filled.size


@st.composite
def run_tables(draw: st.DrawFn) -> TensorRows:
    """Draw where the 8 cells of a tensor of 15 rows lie: in some runs, with or without a hole."""
    borders = [0, *sorted(draw(st.sets(st.integers(1, 7)))), 8]
    rows = [
        (0, low, high - low, draw(st.integers(0, 3)), draw(st.integers(0, 9)))
        for low, high in itertools.pairwise(borders)
        if draw(st.integers(0, 5))
    ]
    info = TensorInfo(("a",), "uint16", (15, 3), ((1, 2), (1, 3)))
    return TensorRows(info, RunTable.of(rows), FragmentTable.of())


def chunk_of(rows: TensorRows, cell: int) -> tuple[int, int] | None:
    runs = rows.runs
    columns = (runs.first_cell, runs.count, runs.pack, runs.first_chunk)
    for first, count, pack, chunk in zip(*(column.tolist() for column in columns), strict=True):
        if first <= cell < first + count:
            return pack, chunk + cell - first
    return None


def test_a_run_table_with_a_hole_is_no_run() -> None:
    arrays = {("a",): RNG.standard_normal((8, 8))}
    site, built = make_site(arrays)
    rows = site.open(built).rows(("a",))
    target = whole(np.zeros((8, 8), np.uint64))
    assert [len(run.lengths) for run in flat.plan_flat_runs([(0, rows, target)])] == [4]
    holed = type(rows)(rows.info, rows.runs.take(np.array([], np.int64)), rows.fragments)
    assert flat.plan_flat_runs([(0, holed, target)]) == []
