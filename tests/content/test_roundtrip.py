from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt, InvalidInput, NotFound
from fwstore.codec.hashing import ContentHash
from fwstore.codec.registry import ZSTD_1
from fwstore.plan.box import Box
from fwstore.sched import ThreadScheduler
from fwstore.store.directory import DirectoryStore
from fwstore.store.memory import MemoryStore
from support.snapshots import Held, Piece, Site, make_runtime, raw, read_pieces, whole

RNG = np.random.default_rng(7)


def sample_arrays() -> dict[tuple[str | int, ...], NDArray[Any]]:
    return {
        ("model", "w"): RNG.standard_normal((13, 5)),
        ("model", 0, "half"): RNG.standard_normal((7, 3, 2)).astype(np.float16),
        ("model", "zeros"): np.zeros((64, 4), np.float32),
        ("scalar",): np.array(7, np.int64),
        ("flags",): RNG.integers(0, 2, 17).astype(np.bool_),
        ("empty",): np.zeros((0, 4), np.int32),
    }


CELLS = {
    ("model", "w"): ((2, 3), (1, 2)),
    ("model", 0, "half"): ((1, 2), (1, 1), (1, 2)),
    ("model", "zeros"): ((1, 1), (1, 4)),
    ("flags",): ((1, 4),),
}


def check_equal(site: Site, built: Any, arrays: Any) -> None:
    loaded = site.load(built)
    assert loaded.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(loaded[path], raw(array), err_msg=str(path))


@pytest.mark.parametrize("codec", [None, ZSTD_1], ids=["raw", "zstd"])
@pytest.mark.parametrize("key", [None, b"k" * 32], ids=["unkeyed", "keyed"])
def test_what_was_saved_is_loaded(codec: Any, key: bytes | None) -> None:
    runtime = make_runtime()
    site = Site(MemoryStore(runtime), runtime, ContentHash(key), codec)
    arrays = sample_arrays()
    check_equal(site, site.save(arrays, CELLS), arrays)


def test_on_threads_in_a_directory_with_small_packs(tmp_path: Path) -> None:
    scheduler = ThreadScheduler(3)
    runtime = make_runtime(scheduler, pack_bytes=2000, read_request_bytes=300, read_gap_bytes=0)
    site = Site(DirectoryStore(tmp_path, runtime), runtime)
    arrays = sample_arrays()
    built = site.save(arrays, CELLS)
    assert len(built.packs) > 1
    check_equal(site, built, arrays)
    scheduler.close()


def test_repeated_bytes_are_stored_once() -> None:
    site = Site(MemoryStore(make_runtime()))
    zeros = {("z",): Held(np.zeros((64, 4), np.float32), None, ((1, 1), (1, 4)))}
    _, written = site.write(zeros)
    assert (written.tally.chunks, written.tally.chunks_written) == (64, 1)
    assert written.tally.bytes_repeated == 63 * 16
    assert set(written.places.chunk.tolist()) == {0}


def test_known_bytes_are_not_written_again() -> None:
    site = Site(MemoryStore(make_runtime()))
    array = RNG.standard_normal((20, 4))
    _, first = site.write({("w",): Held(array, None, ((1, 2), (1, 4)))})
    changed = array.copy()
    changed[5] += 1
    site.saves += 1
    tensors, second = site.write(
        {("w",): Held(changed, None, ((1, 2), (1, 4)))}, known=first.places
    )
    assert second.tally.chunks_written == 1
    assert second.tally.bytes_reused == 9 * 64
    assert [pack.save for pack in second.places.packs] == [1, 0]
    assert second.places.pack.tolist() == [1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
    assert second.packs == second.places.packs[:1]
    third = site.write({("w",): Held(changed, None, ((1, 2), (1, 4)))}, known=second.places)[1]
    assert third.packs == ()
    assert third.places.packs == second.places.packs
    np.testing.assert_array_equal(third.places.ids, second.places.ids)
    assert tensors[0].path == ("w",)


def test_places_come_in_the_order_of_the_sources() -> None:
    scheduler = ThreadScheduler(4)
    runtime = make_runtime(scheduler, pack_bytes=900)
    site = Site(MemoryStore(runtime), runtime)
    array = RNG.standard_normal((200, 4))
    _, written = site.write({("w",): Held(array, None, ((1, 1), (1, 4)))}, chunks_per_batch=1)
    scheduler.close()
    assert written.places.cell.tolist() == list(range(200))
    digest = ContentHash().digest
    assert [row.tobytes() for row in written.places.ids] == [
        digest(array[row].tobytes()) for row in range(200)
    ]
    assert sorted(site.released) == list(range(200))


def test_several_ranks_with_fragments_and_another_reader_layout() -> None:
    site = Site(MemoryStore(make_runtime()))
    array = RNG.standard_normal((12, 6))
    cells = ((1, 4), (1, 3))
    boxes = [Box((0, 0), (5, 6)), Box((5, 0), (2, 6)), Box((7, 0), (5, 6))]
    parts = [
        site.contribution({("w",): Held(array, [box], cells)}, rank)
        for rank, box in enumerate(boxes)
    ]
    built = site.commit(parts)
    assert built.root.totals.fragments == 6
    assert built.root.totals.bytes_logical == array.nbytes
    assert len(built.packs) == 3
    check_equal(site, built, {("w",): array})
    manifest = site.open(built)
    left, right = np.zeros((12, 2), np.uint64), np.zeros((4, 12), np.uint64, order="F").T
    pieces = [Piece(Box((0, 0), (12, 2)), left), Piece(Box((0, 2), (12, 4)), right)]
    read_pieces(site.origin, manifest, {("w",): pieces})
    np.testing.assert_array_equal(left, raw(array)[:, :2])
    np.testing.assert_array_equal(right, raw(array)[:, 2:])


def test_only_what_is_wanted_is_read() -> None:
    runtime = make_runtime(read_gap_bytes=0)
    site = Site(MemoryStore(runtime), runtime)
    array = RNG.standard_normal((100, 8))
    built = site.save({("w",): array}, {("w",): ((1, 1), (1, 8))})
    target = np.zeros((3, 8), np.uint64)
    statistics = read_pieces(
        site.origin, site.open(built), {("w",): [Piece(Box((50, 0), (3, 8)), target)]}
    )
    np.testing.assert_array_equal(target, raw(array)[50:53])
    assert (statistics.chunks, statistics.requests, statistics.packs) == (3, 1, 1)
    assert statistics.bytes_read == 3 * (64 + 64)


class DeviceMemory:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.hidden = np.zeros(shape, np.uint64)
        self.dtype = self.hidden.dtype
        self.calls = 0

    def copy_from_host(self, slices: tuple[slice, ...], source: NDArray[Any]) -> None:
        self.hidden[slices] = source
        self.calls += 1


def test_memory_of_a_device_is_filled_by_copies() -> None:
    site = Site(MemoryStore(make_runtime()))
    array = RNG.standard_normal((6, 4))
    built = site.save({("w",): array}, {("w",): ((1, 2), (1, 4))})
    device = DeviceMemory((5, 4))
    piece: Any = Piece(Box((1, 0), (5, 4)), device)  # type: ignore[arg-type]
    read_pieces(site.origin, site.open(built), {("w",): [piece]})
    np.testing.assert_array_equal(device.hidden, raw(array)[1:])
    assert device.calls == 3


def test_a_destination_of_another_item_size_is_refused() -> None:
    site = Site(MemoryStore(make_runtime()))
    built = site.save({("w",): np.zeros(4)})
    with pytest.raises(InvalidInput, match="w has elements of 8 bytes"):
        read_pieces(site.origin, site.open(built), {("w",): [whole(np.zeros(4, np.uint32))]})
    with pytest.raises(NotFound, match="no tensor v"):
        read_pieces(site.origin, site.open(built), {("v",): [whole(np.zeros(4, np.uint64))]})


def test_a_missing_pack_is_not_found() -> None:
    site = Site(MemoryStore(make_runtime()))
    built = site.save({("w",): np.ones(4)})
    site.store.delete([pack.key for pack in site.open(built).all_packs()])
    with pytest.raises(NotFound):
        site.load(built)


def test_a_snapshot_that_contradicts_its_pack_is_refused() -> None:
    site = Site(MemoryStore(make_runtime()))
    held = {("w",): Held(np.ones((4, 2)), None, ((1, 2), (1, 2)))}
    tensors, written = site.write(held)
    other = {("w",): Held(np.ones((4, 2)), None, ((1, 1), (1, 2)))}
    _, wrong = site.write(other)
    del tensors
    part = site.contribution(other)
    shifted = type(part)(
        rank=0,
        tensors=part.tensors,
        lineages=part.lineages,
        packs=written.places.packs,
        runs=type(part.runs).of([(0, n, 1, 0, 0) for n in range(4)]),
        fragments=part.fragments,
    )
    assert wrong.packs
    with pytest.raises(Corrupt, match="expects 16 bytes"):
        site.load(site.commit([shifted]))


@st.composite
def tilings(draw: st.DrawFn) -> tuple[NDArray[Any], tuple[tuple[int, int], ...], list[Box], Box]:
    """An array, a grid, the boxes of its ranks (cut along dimension 0), and what a reader wants."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.float32, np.float64]))
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    cells = tuple((draw(st.integers(1, 3)), draw(st.integers(1, max(1, size)))) for size in shape)
    cells = tuple(
        (blocks, min(rows, -(-size // blocks)))
        for (blocks, rows), size in zip(cells, shape, strict=True)
    )
    cuts = sorted(draw(st.sets(st.integers(1, max(1, shape[0] - 1)), max_size=3)) | {0, shape[0]})
    boxes = [
        Box((low, *(0 for _ in shape[1:])), (high - low, *shape[1:]))
        for low, high in pairwise(cuts)
    ]
    offsets = tuple(draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(
        draw(st.integers(1, size - offset)) for size, offset in zip(shape, offsets, strict=True)
    )
    return array, cells, boxes, Box(offsets, sizes)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(tilings(), st.sampled_from([None, ZSTD_1]), st.sampled_from([64, 500, 1 << 20]))
def test_any_layout_is_read_into_any_other(case: Any, codec: Any, request_bytes: int) -> None:
    array, cells, boxes, wanted = case
    runtime = make_runtime(read_request_bytes=request_bytes, pack_bytes=700)
    site = Site(MemoryStore(runtime), runtime, codec=codec)
    held = [{("w",): Held(array, [box], cells)} for box in boxes]
    built = site.commit([site.contribution(part, rank) for rank, part in enumerate(held)])
    target = np.zeros(wanted.sizes, f"u{array.dtype.itemsize}")
    read_pieces(site.origin, site.open(built), {("w",): [Piece(wanted, target)]})
    np.testing.assert_array_equal(target, raw(array)[wanted.slices()])
