"""Checking one pack: bounded requests, a second look, and digests that were written wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fwstore.base.errors import Unavailable
from fwstore.care.packcheck import Level, PackChecker
from fwstore.codec.hashing import ContentHash, xxh3_128
from fwstore.codec.registry import RAW, ZSTD_1
from fwstore.content.footers import Pack, fetch_footer
from fwstore.content.verified import Origin
from fwstore.format.blocks import BLOCK_BYTES, PackIdentity
from fwstore.format.footer import parse_footer
from fwstore.format.pack import ChunkEntry, PackLayout
from fwstore.format.packtable import PackInfo
from fwstore.format.tensor import TensorInfo
from fwstore.sched import InlineScheduler, Scheduler, ThreadScheduler
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore
from support.snapshots import make_runtime

KEY = "packs/run@1/00/t1-s1-r000000-0-00112233445566ff"
CHUNK = 1024
HASH = ContentHash()


def make_pack(store: Store, *, chunks: int = 8, wrong: int | None = None) -> Pack:
    """Write a pack of chunks of 1 KiB, every other one encoded; one may have been hashed wrong."""
    layout = PackLayout(
        PackIdentity(lineage="1" * 32, term=1, save=1, rank=0, number=0, token="00112233445566ff"),
        [TensorInfo(("w",), "uint8", (CHUNK * chunks,), ((1, CHUNK),))],
        HASH.digest,
    )
    parts = [layout.header]
    for number in range(chunks):
        raw = bytes([number]) * CHUNK
        codec = ZSTD_1 if number % 2 else RAW
        stored = codec.encode(memoryview(raw)) or raw
        content_id = bytes(32) if number == wrong else HASH.digest(raw)
        entry = ChunkEntry(
            content_id, xxh3_128(stored), codec.number, CHUNK, len(stored), 0, number
        )
        place = layout.append(entry)
        parts += [place.header, stored, place.padding]
    end = layout.finish()
    store.put(KEY, [*parts, end.footer, end.trailer], mode="create")
    info = PackInfo(
        lineage=0,
        spread=0,
        term=1,
        save=1,
        rank=0,
        number=0,
        token="00112233445566ff",
        size=end.size,
        footer_length=len(end.footer),
        footer_digest=end.footer_digest,
        chunks=chunks,
    )
    return Pack(KEY, info)


def checker(
    store: Store, level: Level = "data", scheduler: Scheduler | None = None, **limits: int
) -> PackChecker:
    runtime = make_runtime(scheduler or InlineScheduler(), **limits)
    return PackChecker(Origin(stores=(store,), runtime=runtime), level, 0.5, seed=7)


class Answering(FaultyStore):
    """A store whose answers to ranged reads pass through a function of their offset."""

    def __init__(self, inner: Store, answer: Callable[[int, bytes], bytes]) -> None:
        super().__init__(inner)
        self._answer = answer

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self._answer(offset, super().get_range(key, offset, length))


def make_store() -> MemoryStore:
    return MemoryStore(make_runtime())


def test_every_byte_is_read_exactly_once_in_bounded_requests() -> None:
    store = make_store()
    pack = make_pack(store)
    read: list[tuple[int, int]] = []

    def note(offset: int, answer: bytes) -> bytes:
        read.append((offset, len(answer)))
        return answer

    found = checker(Answering(store, note), read_request_bytes=2048).check(pack)
    assert (found.damage, found.chunks, found.bytes_read) == ((), 8, pack.info.size)
    ends = 0
    for offset, length in sorted(read):
        assert offset == ends
        assert length <= 2048
        ends = offset + length
    assert ends == pack.info.size


def test_threads_find_the_same() -> None:
    store = make_store()
    pack = make_pack(store, wrong=3)
    scheduler = ThreadScheduler(4)
    found = checker(store, scheduler=scheduler, read_request_bytes=600, read_bytes=1500).check(pack)
    scheduler.close()
    assert found == checker(store).check(pack)
    (damage,) = found.damage
    assert (damage.chunks, damage.code) == ((3,), "corrupt")


@pytest.mark.parametrize("number", [2, 3])
def test_a_chunk_that_is_not_what_its_id_says_is_damage_although_its_checksum_fits(
    number: int,
) -> None:
    store = make_store()
    (damage,) = checker(store).check(make_pack(store, wrong=number)).damage
    assert damage.chunks == (number,)
    assert f"chunk {number} of {KEY}: it does not decode to the bytes that were saved" in (
        damage.message
    )


def test_a_bad_answer_is_not_yet_damage() -> None:
    store = make_store()
    pack = make_pack(store)
    # The first answer is the footer, the second all of the rest.
    lies = iter([False, True])
    lying = Answering(store, lambda _, read: bytes(len(read)) if next(lies, False) else read)
    assert checker(lying).check(pack).damage == ()


def test_damaged_chunks_are_counted_and_the_blocks_are_told_apart() -> None:
    store = make_store()
    pack = make_pack(store)
    content = bytearray(store.get(KEY, limit_bytes=1 << 20))
    for place in (3, BLOCK_BYTES + 70, len(content) - 1):
        content[place] ^= 1
    whole = content.index(bytes([4]) * CHUNK)
    content[whole] ^= 1
    store.put(KEY, [content], mode="overwrite")
    chunks, *blocks = checker(store).check(pack).damage
    assert chunks.chunks == (0, 4)
    assert "and 1 more chunks of it are damaged" in chunks.message
    assert sorted(damage.message.partition(" of ")[0] for damage in blocks) == [
        "the header",
        "the trailer",
    ]
    assert checker(store, "quick").check(pack).damage == ()


def test_zeros_between_chunks_belong_to_what_was_written() -> None:
    store = make_store()
    pack = make_pack(store)
    content = bytearray(store.get(KEY, limit_bytes=1 << 20))
    frame = memoryview(ZSTD_1.encode(memoryview(bytes([1]) * CHUNK)) or b"").tobytes()
    content[content.index(frame) + len(frame)] = 1
    store.put(KEY, [content], mode="overwrite")
    (damage,) = checker(store).check(pack).damage
    assert "not zeros" in damage.message


def test_a_sample_depends_on_the_seed_alone() -> None:
    store = make_store()
    pack = make_pack(store, chunks=64)
    made = checker(store, "sample")
    chosen = {
        tuple(made._sample(fetch_footer(made._origin, pack, parse_footer)).tolist())
        for _ in range(3)
    }
    assert len(chosen) == 1
    assert 16 < len(chosen.pop()) < 48
    made._seed = np.uint64(8)
    assert (
        tuple(made._sample(fetch_footer(made._origin, pack, parse_footer)).tolist()) not in chosen
    )


def test_an_answer_that_never_comes_names_every_chunk_that_it_keeps_back() -> None:
    store = make_store()
    pack = make_pack(store)

    def keep_back(offset: int, answer: bytes) -> bytes:
        if BLOCK_BYTES * 20 <= offset < pack.info.footer_offset:
            raise Unavailable("no answer")
        return answer

    (damage,) = checker(Answering(store, keep_back), read_request_bytes=1).check(pack).damage
    assert damage.code == "unavailable"
    assert damage.chunks == (2, 3, 4, 5, 6, 7)
