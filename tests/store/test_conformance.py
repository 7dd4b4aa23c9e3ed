"""What every store must do, run against every store."""

from __future__ import annotations

import array
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwstore.base.errors import AlreadyExists, Corrupt, InvalidInput, LimitExceeded, NotFound
from fwstore.sched.runtime import Runtime
from fwstore.store.base import ReadInto, Store
from fwstore.store.create import create_once

MIB = 1 << 20
LIMIT = 64 * MIB


def put(store: Store, key: str, content: bytes = b"x") -> None:
    store.put(key, [content], mode="overwrite")


def keys(
    store: Store, prefix: str = "", start_after: str = "", limit: int | None = None
) -> list[str]:
    return [info.key for info in store.list(prefix, start_after=start_after, limit=limit)]


def test_an_object_reads_back_whole(store: Store) -> None:
    store.put(
        "a/b", [b"one", memoryview(b"two"), np.arange(3, dtype=np.uint16).data], mode="create"
    )
    assert store.get("a/b", limit_bytes=100) == b"onetwo\0\0\1\0\2\0"


def test_buffers_of_every_shape_are_taken(store: Store) -> None:
    pieces: list[memoryview | bytes | array.array[int]] = [
        np.zeros((0, 3)).data,
        np.array(1.5).data,
        np.ones((2, 2), np.int8).data,
        array.array("I", [7]),
        b"",
    ]
    store.put("a", pieces, mode="create")
    assert store.get("a", limit_bytes=100) == b"".join(bytes(memoryview(piece)) for piece in pieces)


def test_a_buffer_with_gaps_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="contiguous"):
        store.put("a", [memoryview(bytes(8))[::2]], mode="create")
    with pytest.raises(NotFound):
        store.head("a")


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", [], mode="create")
    assert store.get("empty", limit_bytes=0) == b""
    assert store.head("empty").size == 0
    assert keys(store) == ["empty"]


def test_create_refuses_a_taken_key_and_leaves_it(store: Store) -> None:
    store.put("a", [b"first"], mode="create")
    with pytest.raises(AlreadyExists, match="a"):
        store.put("a", [b"second"], mode="create")
    assert store.get("a", limit_bytes=10) == b"first"


def test_overwrite_makes_and_replaces(store: Store) -> None:
    store.put("a", [b"first, longer"], mode="overwrite")
    store.put("a", [b"second"], mode="overwrite")
    assert store.get("a", limit_bytes=20) == b"second"


def test_a_deleted_key_can_be_created_again(store: Store) -> None:
    store.put("d/a", [b"1"], mode="create")
    store.delete(["d/a"])
    store.put("d/a", [b"2"], mode="create")
    assert store.get("d/a", limit_bytes=1) == b"2"


def test_what_is_absent_is_not_found(store: Store) -> None:
    put(store, "there/too")
    for key in ("absent", "there/absent", "absent/absent", "there/too/absent", "there"):
        with pytest.raises(NotFound, match=key):
            store.get(key, limit_bytes=1)
        with pytest.raises(NotFound, match=key):
            store.get_range(key, 0, 1)
        with pytest.raises(NotFound, match=key):
            store.get_range(key, -1, 1)
        with pytest.raises(NotFound, match=key):
            store.read_into(key, [ReadInto(0, [memoryview(bytearray(1))])])
        with pytest.raises(NotFound, match=key):
            store.head(key)


def test_get_stops_at_the_limit(store: Store) -> None:
    put(store, "a", b"12345")
    assert store.get("a", limit_bytes=5) == b"12345"
    with pytest.raises(LimitExceeded, match="4"):
        store.get("a", limit_bytes=4)


def test_head_tells_size_and_write_id(store: Store) -> None:
    store.put("a/b", [b"123"], mode="create", write_id="00ff")
    info = store.head("a/b")
    assert (info.key, info.size) == ("a/b", 3)
    assert info.modified > 1.5e9
    assert info.write_id == ("00ff" if store.capabilities.keeps_metadata else None)
    put(store, "plain")
    assert store.head("plain").write_id is None


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 3, b"012"),
        (7, 3, b"789"),
        (0, 10, b"0123456789"),
        (-4, 4, b"6789"),
        (-4, 2, b"67"),
        (-10, 10, b"0123456789"),
    ],
)
def test_ranges(store: Store, offset: int, length: int, expected: bytes) -> None:
    put(store, "a", b"0123456789")
    assert store.get_range("a", offset, length) == expected


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 11), (9, 2), (10, 1), (50, 1), (-11, 11), (-11, 2)]
)
def test_a_range_outside_the_object_is_corrupt(store: Store, offset: int, length: int) -> None:
    put(store, "a", b"0123456789")
    with pytest.raises(Corrupt, match="a"):
        store.get_range("a", offset, length)


@pytest.mark.parametrize(("offset", "length"), [(0, -1), (-2, 3)])
def test_a_range_that_no_object_has_is_refused(store: Store, offset: int, length: int) -> None:
    put(store, "a", b"0123456789")
    with pytest.raises(InvalidInput):
        store.get_range("a", offset, length)


def test_read_into_scatters_ranges_into_buffers(store: Store) -> None:
    content = bytes(range(256)) * 64
    put(store, "a", content)
    pieces = [bytearray(100), bytearray(1), bytearray(0), bytearray(5000), bytearray(16)]
    store.read_into(
        "a",
        [
            ReadInto(3000, [memoryview(piece) for piece in pieces[:4]]),
            ReadInto(0, [memoryview(pieces[4])]),
        ],
    )
    assert b"".join(pieces[:4]) == content[3000:8101]
    assert pieces[4] == content[:16]


def test_read_into_fills_an_array_in_place(store: Store) -> None:
    wanted = np.arange(1000, dtype=np.float32).reshape(10, 100)
    store.put("a", [b"head", wanted.data], mode="create")
    found = np.zeros_like(wanted)
    store.read_into("a", [ReadInto(4, [found.data])])
    np.testing.assert_array_equal(found, wanted)


def test_read_into_past_the_end_is_corrupt(store: Store) -> None:
    put(store, "a", b"0123456789")
    for offset, size in ((0, 11), (10, 1), (100, 1), (9, 2)):
        with pytest.raises(Corrupt, match="a"):
            store.read_into("a", [ReadInto(offset, [memoryview(bytearray(size))])])


def test_read_into_more_pieces_than_one_system_call_takes(store: Store) -> None:
    content = np.random.default_rng(1).bytes(30_000)
    put(store, "a", content)
    found = bytearray(30_000)
    view = memoryview(found)
    store.read_into(
        "a", [ReadInto(0, [view[start : start + 10] for start in range(0, 30_000, 10)])]
    )
    assert found == content


def test_a_put_of_more_pieces_than_one_system_call_takes(store: Store) -> None:
    content = np.random.default_rng(1).bytes(30_000)
    store.put("a", [content[start : start + 10] for start in range(0, 30_000, 10)], mode="create")
    assert store.get("a", limit_bytes=LIMIT) == content


LISTED = ["a", "a-b", "a.b/c", "a0", "b/a", "b/a-b/c", "b/a/c", "b/a0", "b/é", "c/d/e/f/g", "é/z"]


def put_listed(store: Store) -> list[str]:
    for key in reversed(LISTED):
        if not any(other.startswith(key + "/") for other in LISTED):
            put(store, key, key.encode())
    return sorted(
        (key for key in LISTED if not any(other.startswith(key + "/") for other in LISTED)),
        key=str.encode,
    )


def test_list_is_in_byte_order(store: Store) -> None:
    expected = put_listed(store)
    assert keys(store) == expected
    assert [info.size for info in store.list("")] == [len(key.encode()) for key in expected]


def test_list_by_prefix_start_and_limit(store: Store) -> None:
    expected = put_listed(store)
    for prefix in ("", "a", "a-", "a.b/", "b", "b/", "b/a", "b/a/", "c/d", "x", "a/none", "é"):
        under = [key for key in expected if key.startswith(prefix)]
        assert keys(store, prefix) == under
        assert keys(store, prefix, limit=2) == under[:2]
        assert keys(store, prefix, limit=0) == []
        for start in (*expected, "a/", "b/a", "b/a/zzz", "c/d/e", "zzz"):
            assert keys(store, prefix, start) == [key for key in under if key > start]


def test_list_of_nothing(store: Store) -> None:
    assert keys(store) == []
    assert keys(store, "none/") == []


def test_list_is_complete_beyond_one_page(store: Store) -> None:
    expected = [f"p/{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: put(store, key), expected))
    assert keys(store, "p/") == expected
    assert keys(store, "p/", "p/0998", 3) == ["p/0999", "p/1000", "p/1001"]
    store.delete(expected)
    assert keys(store) == []


def test_listings_at_the_same_time_are_complete(store: Store) -> None:
    expected = [f"p/{number:03d}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: put(store, key), expected))
        listed = pool.map(lambda _: keys(store, "p/"), range(32))
        assert all(found == expected for found in listed)


def test_delete_is_idempotent(store: Store) -> None:
    put(store, "a/b")
    put(store, "a/c")
    store.delete(["a/b", "a/absent", "absent/absent", "a/c/absent"])
    store.delete(["a/b"])
    store.delete([])
    assert keys(store) == ["a/c"]


BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    ".tmp/a",
    "a/.hidden",
    "a\\b",
    "a\0b",
    "a\nb",
    "x" * 256,
    "\ud800",
    "/".join(["x" * 99] * 11),
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_some_store_could_not_hold_are_refused(store: Store, key: str) -> None:
    with pytest.raises(InvalidInput):
        store.put(key, [b""], mode="create")
    with pytest.raises(InvalidInput):
        store.get(key, limit_bytes=1)
    with pytest.raises(InvalidInput):
        store.get_range(key, 0, 1)
    with pytest.raises(InvalidInput):
        store.read_into(key, [])
    with pytest.raises(InvalidInput):
        store.head(key)
    with pytest.raises(InvalidInput):
        store.delete([key])
    with pytest.raises(InvalidInput):
        store.upload(key)
    assert keys(store) == []


@pytest.mark.parametrize("prefix", ["/", "a//", "../", "..", "a/..", "a\0", "a\\"])
def test_prefixes_that_no_key_has_are_refused(store: Store, prefix: str) -> None:
    with pytest.raises(InvalidInput):
        list(store.list(prefix))


@pytest.mark.parametrize(
    "key",
    [
        "x" * 255,
        "/".join(["y" * 99] * 8),
        "a b+c=d&e?f#g%2e%2E",
        "meta/x@1/_log/000000/000",
        "ü/日本",
    ],
)
def test_unusual_keys_are_held(store: Store, key: str) -> None:
    store.put(key, [b"1"], mode="create")
    with pytest.raises(AlreadyExists):
        store.put(key, [b"2"], mode="create")
    assert store.get(key, limit_bytes=1) == b"1"
    assert keys(store) == [key]
    assert keys(store, key[:-1]) == [key]
    store.delete([key])
    assert keys(store) == []


def test_an_upload_appears_whole_at_commit(store: Store) -> None:
    piece = bytearray(b"first")
    upload = store.upload("d/big")
    upload.write([piece, b"-"])
    piece[:] = b"other"
    upload.write([])
    upload.write([piece])
    assert keys(store) == []
    with pytest.raises(NotFound):
        store.head("d/big")
    upload.commit()
    assert store.get("d/big", limit_bytes=100) == b"first-other"
    assert keys(store) == ["d/big"]


def test_an_aborted_upload_leaves_nothing(store: Store) -> None:
    upload = store.upload("d/big")
    upload.write([b"x" * 100])
    upload.abort()
    upload.abort()
    assert keys(store) == []


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_an_upload_ends_once(store: Store, end: str) -> None:
    upload = store.upload("a")
    upload.write([b"1"])
    getattr(upload, end)()
    with pytest.raises(InvalidInput, match="before"):
        upload.write([b"2"])
    with pytest.raises(InvalidInput, match="before"):
        upload.commit()
    upload.abort()
    assert keys(store) == (["a"] if end == "commit" else [])


def test_an_upload_of_several_parts(store: Store) -> None:
    content = np.random.default_rng(2).bytes(17 * MIB + 3)
    upload = store.upload("big")
    for start in range(0, len(content), 3 * MIB + 1):
        upload.write([content[start : start + 3 * MIB + 1]])
    upload.commit()
    assert store.head("big").size == len(content)
    assert store.get("big", limit_bytes=LIMIT) == content
    found = bytearray(len(content))
    view = memoryview(found)
    middle = 7 * MIB + 5
    store.read_into("big", [ReadInto(0, [view[:middle]]), ReadInto(middle, [view[middle:]])])
    assert found == content


def test_an_empty_upload_is_an_empty_object(store: Store) -> None:
    store.upload("nothing").commit()
    assert store.get("nothing", limit_bytes=0) == b""


def test_create_once_tells_ours_from_theirs(store: Store, runtime: Runtime) -> None:
    assert create_once(store, "slot", [b"ours"], runtime)
    assert create_once(store, "slot", [b"ou", b"rs"], runtime)
    assert not create_once(store, "slot", [b"them"], runtime)
    assert not create_once(store, "slot", [b"longer than ours"], runtime)
    assert not create_once(store, "slot", [b"o"], runtime)
    assert store.get("slot", limit_bytes=4) == b"ours"


def test_close_twice(store: Store) -> None:
    put(store, "a")
    store.close()
    store.close()


def test_the_url_names_the_store(store: Store) -> None:
    assert store.url in repr(store)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.lists(st.sampled_from(["a", "a-", "a.b", "b", "b0", "é"]), min_size=1, max_size=4),
        max_size=12,
    ),
    prefix=st.sampled_from(["", "a", "a/", "a-", "b/a", "a/b/"]),
    start=st.sampled_from(["", "a", "a/", "a/b", "b", "é/a"]),
)
def test_list_is_what_was_put(
    store: Store, names: list[list[str]], prefix: str, start: str
) -> None:
    # A leaf mark keeps a key from being a prefix of another one.
    made = {"/".join([*name, "leaf"]) for name in names}
    store.delete([info.key for info in store.list("")])
    for key in made:
        put(store, key)
    expected = sorted(
        (key for key in made if key.startswith(prefix) and key > start), key=str.encode
    )
    assert keys(store, prefix, start) == expected
