from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwstore.base.units import MIB
from fwstore.codec.hashing import ContentHash, Hashes, hash_chunks
from fwstore.sched import Hasher, Stretch, find_shared, map_shared, waits_for_lock

HASH = ContentHash()
SIZE = 4 * MIB


@pytest.fixture(scope="module")
def memory() -> memoryview:
    found = map_shared(SIZE)
    found[:] = os.urandom(SIZE)
    return found


@pytest.fixture
def hasher() -> Iterator[Hasher]:
    made = Hasher(2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def kept() -> Iterator[Hasher]:
    made = Hasher(1)
    yield made
    made.close()


def stretch_of(memory: memoryview, start: int, lengths: Sequence[int]) -> Stretch:
    part = memory[start : start + sum(lengths)]
    place = find_shared(part)
    assert place is not None
    return Stretch(place, part, lengths)


def expected(content_hash: ContentHash, stretches: Sequence[Stretch]) -> list[Hashes]:
    chunks = []
    for stretch in stretches:
        start = 0
        for length in stretch.lengths:
            chunks.append(stretch.memory[start : start + length])
            start += length
    return hash_chunks(content_hash, chunks)


def process_of(hasher: Hasher) -> int:
    running = hasher._running
    assert running is not None
    return running._process.pid


lengths = st.lists(st.integers(1, 70_000), min_size=1, max_size=8)
stretches = st.lists(st.tuples(st.integers(0, SIZE - 8 * 70_000), lengths), min_size=1, max_size=6)


@settings(max_examples=40)
@given(wanted=stretches, key=st.none() | st.binary(min_size=32, max_size=32))
def test_what_the_process_hashes_is_what_this_one_would(
    kept: Hasher, memory: memoryview, wanted: list[tuple[int, list[int]]], key: bytes | None
) -> None:
    content_hash = ContentHash(key)
    asked = [stretch_of(memory, start, sizes) for start, sizes in wanted]
    assert kept.hash(content_hash, asked) == expected(content_hash, asked)


def test_bytes_that_change_are_hashed_as_they_are(hasher: Hasher) -> None:
    memory = map_shared(MIB)
    asked = [stretch_of(memory, 0, [1000, 24])]
    before = hasher.hash(HASH, asked)
    memory[1000] = 7
    after = hasher.hash(HASH, asked)
    assert before is not None
    assert after == expected(HASH, asked)
    assert (after[0], after[1] != before[1]) == (before[0], True)


def test_memory_that_was_freed_is_not_taken_for_new_memory(hasher: Hasher) -> None:
    for number in range(5):
        memory = map_shared(MIB)
        memory[:] = bytes([number]) * MIB
        asked = [stretch_of(memory, 0, [MIB])]
        assert hasher.hash(HASH, asked) == expected(HASH, asked)
        del memory, asked


def test_many_threads_share_few_connections(hasher: Hasher, memory: memoryview) -> None:
    asked = [[stretch_of(memory, 1000 * number, [3000] * 50)] for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: hasher.hash(HASH, one), asked))
    assert found == [expected(HASH, one) for one in asked]


def test_a_request_may_be_larger_than_what_a_socket_holds(
    hasher: Hasher, memory: memoryview
) -> None:
    asked = [stretch_of(memory, 0, [7] * 40_000)]
    assert hasher.hash(HASH, asked) == expected(HASH, asked)


def test_a_process_that_was_killed_is_told_of_once_and_missed_by_nobody(
    hasher: Hasher, memory: memoryview, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [stretch_of(memory, 0, [1000])]
    assert hasher.hash(HASH, asked) is not None
    os.kill(process_of(hasher), signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        assert [hasher.hash(HASH, asked) for _ in range(3)] == [None] * 3
    assert [record.message.split("(")[0] for record in caplog.records] == [
        "the process that hashes is lost "
    ]


def test_a_process_that_cannot_be_started_is_done_without(
    memory: memoryview, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    hasher = Hasher(1)
    asked = [stretch_of(memory, 0, [1000])]
    with caplog.at_level(logging.WARNING):
        assert hasher.hash(HASH, asked) is None
        assert hasher.hash(HASH, asked) is None
    assert len(caplog.records) == 1
    hasher.close()


def test_a_process_that_sees_other_bytes_is_not_believed(
    hasher: Hasher, memory: memoryview, caplog: pytest.LogCaptureFixture
) -> None:
    good = stretch_of(memory, 0, [1000])
    wrong = Stretch(good.place, memory[1000:2000], [1000])
    with caplog.at_level(logging.WARNING):
        assert hasher.hash(HASH, [wrong]) is None
    assert "it does not see the bytes that are there" in caplog.text
    assert hasher.hash(HASH, [good]) is None


def test_signals_for_a_whole_group_do_not_end_it(hasher: Hasher, memory: memoryview) -> None:
    asked = [stretch_of(memory, 0, [1000])]
    assert hasher.hash(HASH, asked) is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(process_of(hasher), number)
    assert hasher.hash(HASH, asked) == expected(HASH, asked)


def test_closing_ends_the_process_and_asking_starts_another(
    hasher: Hasher, memory: memoryview
) -> None:
    asked = [stretch_of(memory, 0, [1000])]
    assert hasher.hash(HASH, asked) is not None
    first = process_of(hasher)
    hasher.close()
    hasher.close()
    assert not Path(f"/proc/{first}").exists()
    assert hasher.hash(HASH, asked) is not None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_keeps_neither_the_process_nor_its_end(
    hasher: Hasher, memory: memoryview
) -> None:
    asked = [stretch_of(memory, 0, [1000])]
    assert hasher.hash(HASH, asked) is not None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # One of its own answers here; the parent's is left alone, and ends although this child lives on.
        right = hasher.hash(HASH, asked) == expected(HASH, asked)
        hasher.close()
        os.close(writer)
        os.read(reader, 1)
        os._exit(0 if right else 1)
    assert hasher.hash(HASH, asked) == expected(HASH, asked)
    first = process_of(hasher)
    hasher.close()
    assert not Path(f"/proc/{first}").exists()
    os.close(writer)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_that_wait_for_the_lock_at_every_hash_are_told_from_slow_ones() -> None:
    chunks, size = 26, 8 * MIB
    assert waits_for_lock(size, chunks, chunks * 2 * 0.005)
    assert waits_for_lock(size, 2, 2 * 2 * 0.005 + size / (2000 * MIB))
    assert not waits_for_lock(size, chunks, size / (1000 * MIB))
    assert not waits_for_lock(size, chunks, size / (100 * MIB))
