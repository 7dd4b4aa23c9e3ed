from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwstore.base.units import MIB
from fwstore.codec.hashing import ContentHash, hash_chunks
from fwstore.content.packing import PackNaming
from fwstore.content.places import Places
from fwstore.content.sources import ChunkSource, SourceBatch
from fwstore.content.write import WriteRequest, Written, write_chunks
from fwstore.format.tensor import TensorInfo
from fwstore.sched import Hasher, map_shared
from fwstore.store.memory import MemoryStore
from support.snapshots import LINEAGE, make_runtime

CHUNKS = 200
# More than what begins a process beside.
PRETENDED = 100 * MIB
HASH = ContentHash(bytes(range(32)))
TENSOR = TensorInfo(("w",), "uint8", (CHUNKS, 4 * MIB), ((1, 1), (1, 4 * MIB)))


@pytest.fixture(scope="module")
def hasher() -> Iterator[Hasher]:
    made = Hasher(2)
    made.want()
    yield made
    made.close()


def batches(memory: memoryview, lengths: Sequence[int], shown: Sequence[bool]) -> Any:
    """Yield batches of three chunks; only of some the memory may be shown."""
    start = 0
    for first in range(0, len(lengths), 3):
        begin, chunks = start, []
        for number, length in enumerate(lengths[first : first + 3], first):
            chunks.append(ChunkSource(0, number, None, memory[start : start + length]))
            start += length
        yield SourceBatch(chunks, None, memory[begin:start] if shown[first // 3] else None)


def write(
    memory: memoryview,
    lengths: Sequence[int],
    *,
    hasher: Hasher | None = None,
    shown: Sequence[bool] = (True,) * CHUNKS,
    pack_bytes: int = MIB,
) -> tuple[MemoryStore, Written]:
    runtime = replace(make_runtime(pack_bytes=pack_bytes), hasher=hasher)
    store = MemoryStore(runtime)
    request = WriteRequest(
        batches=batches(memory, lengths, shown),
        total_bytes=PRETENDED,
        tensors=[TENSOR],
        naming=PackNaming(lineage=LINEAGE, term=1, save=0, rank=0),
        content_hash=HASH,
    )
    return store, write_chunks(store, runtime, request)


def contents(store: MemoryStore) -> dict[str, bytes]:
    return {found.key: store.get(found.key, limit_bytes=1 << 30) for found in store.list("")}


def columns(places: Places) -> list[Any]:
    names = ("tensor", "cell", "pack", "chunk", "ids", "digests")
    return [getattr(places, name).tolist() for name in names]


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=CHUNKS),
    shown=st.lists(st.booleans(), min_size=CHUNKS, max_size=CHUNKS),
    pack_bytes=st.integers(1, 100_000),
    colours=st.integers(1, 4),
)
def test_who_hashes_changes_nothing_in_what_is_written(
    hasher: Hasher, lengths: list[int], shown: list[bool], pack_bytes: int, colours: int
) -> None:
    memory = map_shared(sum(lengths))
    # Few values, so that some chunks repeat others.
    memory[:] = (
        np.random.default_rng(len(lengths)).integers(0, colours, sum(lengths), np.uint8).data
    )
    one, here = write(memory, lengths, pack_bytes=pack_bytes)
    other, beside = write(memory, lengths, hasher=hasher, shown=shown, pack_bytes=pack_bytes)
    assert contents(one) == contents(other)
    assert columns(here.places) == columns(beside.places)
    assert here.tally == beside.tally


def test_every_chunk_is_where_its_row_says() -> None:
    lengths = [1 + number % 7 for number in range(CHUNKS)]
    memory = map_shared(sum(lengths))
    memory[:] = bytes(number % 3 for number in range(sum(lengths)))
    _, written = write(memory, lengths, pack_bytes=700)
    chunks = [
        chunk for batch in batches(memory, lengths, [True] * CHUNKS) for chunk in batch.chunks
    ]
    expected = hash_chunks(HASH, [chunk.buffer for chunk in chunks])
    assert [row.tobytes() for row in written.places.ids] == [found.id for found in expected]
    assert [row.tobytes() for row in written.places.digests] == [found.digest for found in expected]
    # A chunk that repeats another lies where that one lies.
    places = list(zip(written.places.pack.tolist(), written.places.chunk.tolist(), strict=True))
    first: dict[bytes, tuple[int, int]] = {}
    for found, place in zip(expected, places, strict=True):
        assert first.setdefault(found.id, place) == place
    assert len(set(places)) == len(first) == written.tally.chunks_written
    assert written.tally.bytes_repeated + written.tally.bytes_written_raw == sum(lengths)


def test_a_write_survives_the_process_beside(caplog: pytest.LogCaptureFixture) -> None:
    memory = map_shared(40 * MIB)
    memory[:] = np.random.default_rng(1).integers(0, 256, memory.nbytes, np.uint8).data
    expected, _ = write(memory, [4 * MIB] * 10, pack_bytes=256 * MIB)

    class Killing(Hasher):
        asked = 0

        def hash(self, content_hash: ContentHash, stretches: Any) -> Any:
            self.asked += 1
            if self.asked == 2:
                assert self._running is not None
                os.kill(self._running._process.pid, signal.SIGKILL)
            return super().hash(content_hash, stretches)

    killing = Killing(1)
    killing.want()
    store, _ = write(memory, [4 * MIB] * 10, hasher=killing, pack_bytes=256 * MIB)
    assert killing.asked == 2
    assert contents(store) == contents(expected)
    assert "the process that hashes is lost" in caplog.text
    killing.close()
