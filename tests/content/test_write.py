from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwstore.base.errors import Conflict, InternalError, PermissionDenied, Unavailable
from fwstore.codec.hashing import ContentHash
from fwstore.codec.registry import ZSTD_1
from fwstore.content.footers import Pack, fetch_footer
from fwstore.content.packing import PackNaming
from fwstore.content.sources import ChunkSource, SourceBatch
from fwstore.content.verified import Origin
from fwstore.content.write import WriteRequest, write_chunks
from fwstore.format.footer import parse_footer
from fwstore.format.keys import parse_pack_key
from fwstore.format.pack import footer_of_suffix
from fwstore.format.tensor import TensorInfo
from fwstore.sched import ThreadScheduler
from fwstore.store.directory import DirectoryStore
from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore, Operation, fail_at
from support.snapshots import LINEAGE, Held, Site, make_runtime

ROWS = ((1, 1), (1, 64))


def big(rows: int = 40) -> dict[Any, Held]:
    return {("w",): Held(np.random.default_rng(3).standard_normal((rows, 64)), None, ROWS)}


def keys_in(store: Any) -> list[str]:
    return [found.key for found in store.list("")]


def test_packs_are_named_and_end_with_their_footer() -> None:
    runtime = make_runtime(pack_bytes=4096)
    site = Site(MemoryStore(runtime), runtime)
    _, written = site.write(big(), rank=6)
    keys = keys_in(site.store)
    assert len(keys) == len(written.packs) > 3
    names = sorted((parse_pack_key(key) for key in keys), key=lambda name: name.number)
    assert [name.number for name in names] == list(range(len(names)))
    assert [name.spread for name in names] == [(6 + n) % 4 for n in range(len(names))]
    assert {(name.name, name.generation, name.term, name.rank) for name in names} == {
        ("test/run", 1, 1, 6)
    }
    for pack in written.packs:
        key = next(key for key in keys if pack.token in key)
        stored = site.store.get(key, limit_bytes=1 << 20)
        assert len(stored) == pack.size
        trailer, footer = footer_of_suffix(stored, len(stored))
        assert footer is not None
        assert ContentHash().digest(footer) == pack.footer_digest == trailer.footer_digest
        assert trailer.chunks == pack.chunks


def test_nothing_is_written_for_nothing() -> None:
    site = Site(MemoryStore(make_runtime()))
    _, written = site.write({})
    assert (len(written.places), written.packs, keys_in(site.store)) == (0, (), [])


def test_a_codec_is_used_only_where_it_pays() -> None:
    site = Site(MemoryStore(make_runtime()), codec=ZSTD_1)
    array = np.zeros((2, 4096))
    array[1] = np.random.default_rng(1).standard_normal(4096)
    _, written = site.write({("w",): Held(array, None, ((1, 1), (1, 4096)))})
    assert 32768 < written.tally.bytes_stored < 32768 + 100
    assert written.tally.bytes_written_raw == 65536


class LossyCodec:
    name, number = "lossy", 1

    def encode(self, raw: memoryview) -> bytes | None:
        return bytes(raw[: raw.nbytes // 2])

    def decode(self, stored: memoryview, raw_length: int) -> bytes:
        return bytes(stored) + bytes(raw_length - len(stored))


def test_a_broken_codec_loses_nothing() -> None:
    site = Site(MemoryStore(make_runtime()), codec=LossyCodec())
    with pytest.raises(InternalError, match="lossy"):
        site.write(big())
    assert keys_in(site.store) == []


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_every_failure_leaves_nothing_visible_and_releases_what_was_drawn(
    tmp_path: Path, threads: int
) -> None:
    scheduler = ThreadScheduler(threads)
    runtime = make_runtime(scheduler, pack_bytes=5000)
    writes = frozenset({"begin", "write", "commit"})
    clean = FaultyStore(DirectoryStore(tmp_path / "clean", runtime), counted=writes)
    Site(clean, runtime).write(big())
    total = sum(clean.counts[name] for name in writes)
    assert total > 9
    for number in range(1, total + 1):
        inner = DirectoryStore(tmp_path / str(number), runtime)
        store = FaultyStore(inner, fail_at(number), counted=writes)
        site = Site(store, runtime)
        with pytest.raises(Unavailable):
            site.write(big())
        assert keys_in(inner) == []
        assert not list(tmp_path.joinpath(str(number)).glob(".tmp/*"))
        assert site.released == sorted(set(site.released))
        assert site.released
    scheduler.close()


def test_a_writer_that_may_not_delete_reports_the_first_error() -> None:
    def plan(operation: Operation) -> Any:
        return "fail" if operation.name == "commit" and operation.number > 1 else None

    class NoDelete(FaultyStore):
        def delete(self, keys: Any) -> None:
            raise PermissionDenied("no delete")

    runtime = make_runtime(pack_bytes=5000)
    inner = MemoryStore(runtime)
    site = Site(NoDelete(inner, plan, counted=frozenset({"commit"})), runtime)
    with pytest.raises(Unavailable):
        site.write(big())
    assert len(keys_in(inner)) == 1


def test_a_save_can_be_abandoned_between_batches() -> None:
    site = Site(MemoryStore(make_runtime()))
    array = np.random.default_rng(3).standard_normal((64, 1 << 16))
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Conflict("abandoned")

    with pytest.raises(Conflict, match="abandoned"):
        site.write({("w",): Held(array, None, ((1, 1), (1, 1 << 16)))}, check=check)
    assert calls == 3
    assert keys_in(site.store) == []
    # Two groups of 16 chunks, in batches of three, were drawn and given back.
    assert site.released == list(range(0, 36, 3))


def test_an_error_of_the_batches_is_raised_and_drawn_ones_are_released() -> None:
    released: list[int] = []

    def batches() -> Iterator[SourceBatch]:
        for number in range(2):
            content = memoryview(bytes([number]) * 64)
            chunk = ChunkSource(0, number, None, content)
            yield SourceBatch([chunk], lambda n=number: released.append(n))  # type: ignore[misc]
        raise OSError("the device is gone")

    runtime = make_runtime()
    store = MemoryStore(runtime)
    request = WriteRequest(
        batches=batches(),
        total_bytes=0,
        tensors=[TensorInfo(("w",), "uint8", (4, 64), ((1, 1), (1, 64)))],
        naming=PackNaming(lineage=LINEAGE, term=1, save=0, rank=0),
    )
    with pytest.raises(OSError, match="the device is gone"):
        write_chunks(store, runtime, request)
    assert released == [0, 1]
    assert keys_in(store) == []


def test_lanes_work_side_by_side_and_number_their_packs_apart() -> None:
    scheduler = ThreadScheduler(4)
    runtime = make_runtime(scheduler)
    meeting = threading.Barrier(3, timeout=20)
    begun: set[str] = set()

    class Meeting(FaultyStore):
        def upload(self, key: str) -> Any:
            begun.add(threading.current_thread().name)
            meeting.wait()
            return super().upload(key)

    inner = MemoryStore(runtime)
    array = np.random.default_rng(3).standard_normal((6, 1 << 19))
    held = Held(array, None, ((1, 1), (1, 1 << 19)))
    sources = [ChunkSource(0, row, None, memoryview(array[row].tobytes())) for row in range(6)]
    request = WriteRequest(
        batches=[SourceBatch(sources[n : n + 2]) for n in (0, 2, 4)],
        total_bytes=3 << 27,
        tensors=[TensorInfo(("w",), "float64", array.shape, held.grid.cells)],
        naming=PackNaming(lineage=LINEAGE, term=1, save=0, rank=0),
    )
    written = write_chunks(Meeting(inner), runtime, request)
    scheduler.close()
    assert len(begun) == 3
    assert sorted(pack.number for pack in written.packs) == [0, 1, 2]
    assert [pack.number for pack in written.places.packs] == [0, 1, 2]
    assert sorted(pack.chunks for pack in written.packs) == [2, 2, 2]


def test_tensors_may_come_in_any_order() -> None:
    runtime = make_runtime()
    store = MemoryStore(runtime)
    tensors = [TensorInfo((name,), "uint8", (64,), ((1, 64),)) for name in "cab"]
    chunks = [ChunkSource(number, 0, None, memoryview(bytes([number]) * 64)) for number in range(3)]
    request = WriteRequest(
        batches=[SourceBatch(chunks)],
        total_bytes=192,
        tensors=tensors,
        naming=PackNaming(lineage=LINEAGE, term=1, save=0, rank=0),
    )
    written = write_chunks(store, runtime, request)
    assert written.places.tensor.tolist() == [0, 1, 2]
    (pack,) = written.packs
    (key,) = keys_in(store)
    origin = Origin(stores=(store,), runtime=runtime)
    footer = fetch_footer(origin, Pack(key, pack), parse_footer)
    assert [footer.dictionary[n].path for n in footer.tensors.tolist()] == [("c",), ("a",), ("b",)]
