"""The plain state comes back as it went in, or is refused by name; foreign bytes never do harm."""

from __future__ import annotations

import enum
import math
import random
import struct
import sys
from collections import OrderedDict, defaultdict
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, LimitExceeded, Unsupported, UnsupportedValue
from fwstore.format.state import (
    STATE_DEPTH_MAX,
    EnumName,
    ForeignValue,
    TensorSlot,
    decode_state,
    encode_state,
)

GOLDEN = Path(__file__).parent.parent / "formats" / "state-1.bin"


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - an alias of RED
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: int


class Mode(enum.Flag):
    FAST = 1
    SAFE = 2


def same(left: Any, right: Any) -> Any:
    """Equality that also compares types, order of keys, NaN and the sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, np.ndarray | np.generic):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, datetime):
        return left == right and left.fold == right.fold and left.tzname() == right.tzname()
    return bool(left == right)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.complex_numbers()
    | text
    | st.binary(max_size=8)
    | st.dates()
    | st.datetimes(
        timezones=st.none()
        | st.just(UTC)
        | st.just(timezone(timedelta(hours=5, minutes=30), "IST"))
    )
    | st.timedeltas()
    | st.sampled_from([Color.RED, Color.BLUE, Mode.SAFE])
    | st.builds(np.float32, st.floats(width=32))
    | st.builds(np.int64, st.integers(-(2**63), 2**63 - 1))
    | st.builds(np.bool_, st.booleans())
    | st.builds(np.datetime64, st.dates())
)
# 0.0 and False are one key; keys of a single type keep generated dicts unambiguous.
keys = text | st.integers() | st.tuples(text, st.integers()) | st.dates() | st.binary(max_size=4)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.binary(max_size=4).map(bytearray)
        | st.lists(st.floats(width=16), max_size=4).map(lambda values: np.array(values, ">f2"))
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=150)
@given(trees)
def test_a_plain_state_comes_back_with_types_and_order(tree: Any) -> None:
    encoded = encode_state(tree)
    assert same(decode_state(encoded), tree)
    assert encode_state(decode_state(encoded)) == encoded


@settings(deadline=None, max_examples=150)
@given(trees, st.data())
def test_damaged_bytes_raise_corrupt_or_decode(tree: Any, draw: st.DataObject) -> None:
    encoded = bytearray(encode_state(tree))
    for _ in range(draw.draw(st.integers(1, 3))):
        encoded[draw.draw(st.integers(0, len(encoded) - 1))] = draw.draw(st.integers(0, 255))
    del encoded[draw.draw(st.integers(1, len(encoded))) :]
    try:
        decode_state(bytes(encoded))
    except (Corrupt, Unsupported):
        return


@settings(deadline=None, max_examples=300)
@given(
    st.recursive(
        st.none() | st.integers(-1, 20) | st.text(max_size=3) | st.binary(max_size=9) | st.floats(),
        lambda inner: st.lists(inner, max_size=5),
        max_leaves=12,
    )
)
def test_any_msgpack_value_raises_corrupt_or_decodes(value: Any) -> None:
    try:
        decode_state(msgspec.msgpack.encode([1, value]))
    except Corrupt:
        return


def test_special_floats_and_random_states() -> None:
    state = random.Random(3).getstate()
    legacy = np.random.RandomState(5).get_state()
    tree = {"nan": math.nan, "inf": -math.inf, "zero": -0.0, "random": state, "numpy": legacy}
    assert same(decode_state(encode_state(tree)), tree)


def test_arrays_of_text_dates_and_foreign_byte_order() -> None:
    for array in (
        np.array([["a", "bc"], ["", "d\u00e9"]]),
        np.array([b"x", b"yz"]),
        np.array(["2024-01-01", "NaT"], "M8[ns]"),
        np.array(7, ">i4"),
        np.zeros((0, 3), "<f8"),
        np.arange(12, dtype=np.int16).reshape(3, 4).T,
        np.array([], "m8[25s]"),
    ):
        loaded = decode_state(encode_state([array]))[0]
        assert same(loaded, array)
        assert loaded.flags.writeable


def test_slots_and_foreign_values_come_back() -> None:
    tree = {
        "first": TensorSlot("torch"),
        "tied": TensorSlot("torch", ("model", 0, "w")),
        "dtype": ForeignValue("torch", "dtype", ("bfloat16",)),
        "size": ForeignValue("torch", "size", (2, 3, None)),
    }
    assert decode_state(encode_state(tree)) == tree


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (
            {"optimizer": {"param_groups": [{"lr_lambda": len}]}},
            "optimizer/param_groups/0/lr_lambda",
        ),
        ({"a/b": {"c": object()}}, "a\\/b/c"),
        ({"a": [1, {2: {3: print}}]}, "a/1/2/3"),
        ([{"x": "\ud800"}], "0/x"),
        ({"\ud800": 1}, "<key>"),
        ({"d": defaultdict(int)}, "d"),
        ({"p": Point(1, 2)}, "p"),
        ({"m": Mode.FAST | Mode.SAFE}, "m"),
        ({"t": datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))}, "t"),
        ({"o": np.array([object()])}, "o"),
        ({"v": np.zeros(2, [("a", "i4")])}, "v"),
        ({"l": np.longdouble(1)}, "l"),
        ({"r": range(3)}, "r"),
        ({"s": {("a", len)}}, "s"),
        ({"g": iter(())}, "g"),
        ({"c": Color}, "c"),
    ],
)
def test_unsupported_values_are_named_by_path(tree: Any, path: str) -> None:
    with pytest.raises(UnsupportedValue) as caught:
        encode_state(tree)
    assert path in str(caught.value)


def test_cycles_and_depth_are_refused_and_sharing_is_not() -> None:
    shared = [1]
    assert decode_state(encode_state([shared, shared])) == [[1], [1]]
    loop: dict[str, Any] = {}
    loop["again"] = [loop]
    with pytest.raises(UnsupportedValue, match="contains itself"):
        encode_state(loop)
    deep: Any = 1
    for _ in range(STATE_DEPTH_MAX):
        deep = [deep]
    assert same(decode_state(encode_state(deep)), deep)
    with pytest.raises(UnsupportedValue, match="deeper"):
        encode_state([deep])
    nested = deep
    for _ in range(STATE_DEPTH_MAX + 1):
        nested = [1, nested]
    with pytest.raises(Corrupt):
        decode_state(b"\x92\x01" + b"\x92\x01" * 5000 + b"\xc0")


def test_size_is_bounded_both_ways() -> None:
    encoded = encode_state(b"x" * 1000)
    with pytest.raises(LimitExceeded):
        encode_state(b"x" * 1000, limit_bytes=1000)
    with pytest.raises(Corrupt):
        decode_state(encoded, limit_bytes=1000)


def test_claimed_lengths_allocate_nothing() -> None:
    for claim in (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        with pytest.raises(Corrupt):
            decode_state(b"\x92\x01" + claim)
    huge = msgspec.msgpack.encode([1, [10, "<f4", b"", 1 << 60, 1 << 60]])
    with pytest.raises(Corrupt):
        decode_state(huge)
    empty = msgspec.msgpack.encode([1, [10, "<U0", b"", 1 << 40]])
    with pytest.raises(Corrupt):
        decode_state(empty)


def test_an_enum_is_restored_only_from_an_imported_class() -> None:
    assert decode_state(encode_state(Color.CRIMSON)) is Color.RED
    stranger = EnumName("antigravity", "Color", "RED")
    assert decode_state(encode_state(stranger)) == stranger
    assert "antigravity" not in sys.modules
    assert decode_state(encode_state(EnumName("os", "system", "RED"))) == EnumName(
        "os", "system", "RED"
    )
    renamed = EnumName(Color.__module__, "Color", "GREEN")
    assert decode_state(encode_state(renamed)) == renamed


def test_equal_sets_have_equal_bytes() -> None:
    words = [f"word{number}" for number in range(50)]
    assert encode_state({*words}) == encode_state({*words[::-1]})


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        [99],
        [True],
        ["x"],
        [-1],
        [2, "key"],
        [2, "a", 1, "a", 2],
        [2, [1, "list"], 1],
        [4, 1, 1],
        [6, b"\x01"],
        [6, b""],
        [7, "x", 1.0],
        [7, 1.0],
        [8, 3],
        [9, "O", b"12345678"],
        [9, "<f4", b"123"],
        [9, "<U1", b"\xff\xff\xff\xff"],
        [9, "|b1", b"\x02"],
        [10, "<f4", b"1234", -1, -1],
        [11, 2024, 13, 1, 0, 0, 0, 0, 0],
        [11, 2024],
        [12, "2024", 1, 1],
        [13, 10**12, 0, 0],
        [14, "enum"],
        [14, 1, 2, 3],
        [15, "torch", "dtype", b"x"],
        [15, 1, 2],
        [16, "torch", b"\xc1"],
        [16],
    ],
)
def test_malformed_values_are_corrupt(value: Any) -> None:
    with pytest.raises(Corrupt):
        decode_state(msgspec.msgpack.encode([1, value]))


def test_unknown_version_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        decode_state(msgspec.msgpack.encode([2, 1]))
    for malformed in ([], [1], [1, 2, 3], {"a": 1}, ["1", 2]):
        with pytest.raises(Corrupt):
            decode_state(msgspec.msgpack.encode(malformed))


def golden_tree() -> dict[Any, Any]:
    """One of everything the format can hold."""
    return {
        "none": None,
        "flags": [True, False],
        "numbers": (0, -1, 2**63, 10**30, -(10**30), 1.5, -0.0, 1 + 2j),
        "text": "d\u00e9j\u00e0 vu",
        "bytes": b"\x00\xff",
        "buffer": bytearray(b"abc"),
        "set": {3, 1, 2},
        "frozen": frozenset({"b", "a"}),
        "ordered": OrderedDict([("z", 1), ("a", 2)]),
        ("tuple", 7): {1: "int key", None: "none key", b"k": "bytes key"},
        "scalar": np.float16(0.5),
        "array": np.array([[1, 2], [3, 4]], ">u2"),
        "words": np.array(["to", "be"]),
        "when": datetime(2024, 2, 29, 12, 30, 15, 999, tzinfo=timezone(timedelta(hours=-3), "BRT")),
        "day": date(1999, 12, 31),
        "span": timedelta(days=-1, microseconds=5),
        "enum": EnumName("nowhere", "Color", "RED"),
        "dtype": ForeignValue("torch", "dtype", ("bfloat16",)),
        "tensor": TensorSlot("torch"),
        "tied": TensorSlot("numpy", ("layers", 0, "w")),
    }


@pytest.mark.format
def test_golden_file_still_decodes_and_encodes_the_same() -> None:
    assert same(decode_state(GOLDEN.read_bytes()), golden_tree())
    assert encode_state(golden_tree()) == GOLDEN.read_bytes()
