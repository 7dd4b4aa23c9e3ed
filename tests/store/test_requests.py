"""The plans of reads and listings of object stores."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fwstore.store.base import ReadInto
from fwstore.store.requests import plan_batches, start_before
from fwstore.store.views import copy_into

SIZES = st.lists(st.integers(0, 40), max_size=6)


@given(st.lists(st.tuples(st.integers(0, 500), SIZES), max_size=8), st.integers(1, 60))
def test_every_byte_is_asked_for_once_and_lands_in_its_place(
    wanted: list[tuple[int, list[int]]], request_bytes: int
) -> None:
    content = bytes(number % 251 for number in range(1000))
    buffers = [[bytearray(size) for size in sizes] for _, sizes in wanted]
    reads = [
        ReadInto(offset, [memoryview(buffer) for buffer in group])
        for (offset, _), group in zip(wanted, buffers, strict=True)
    ]
    batches = plan_batches(reads, request_bytes)
    for batch in batches:
        assert batch
        assert sum(part.length for part in batch) <= request_bytes
        for part in batch:
            assert part.length > 0
            copy_into(part.views, content[part.offset : part.offset + part.length])
    for (offset, sizes), group in zip(wanted, buffers, strict=True):
        assert b"".join(group) == content[offset : offset + sum(sizes)]
    total = sum(sum(sizes) for _, sizes in wanted)
    assert sum(part.length for batch in batches for part in batch) == total


@given(st.integers(1, 3000), st.integers(1, 100))
def test_a_long_read_is_cut_at_the_size_of_a_request(size: int, request_bytes: int) -> None:
    batches = plan_batches([ReadInto(7, [memoryview(bytearray(size))])], request_bytes)
    assert [len(batch) for batch in batches] == [1] * -(-size // request_bytes)
    assert {batch[0].length for batch in batches[:-1]} <= {request_bytes}


KEYS = st.text("az09AZ-._/@~{é", min_size=1, max_size=6)


@given(KEYS, KEYS, st.sampled_from(["", "a", "m/", "zz"]))
def test_a_listing_starts_before_all_it_should_find(
    prefix: str, rest: str, start_after: str
) -> None:
    key = prefix + rest
    start = start_before(prefix, start_after)
    assert start >= start_after
    if key > start_after:
        assert key > start
    if prefix > start_after:
        assert prefix > start
