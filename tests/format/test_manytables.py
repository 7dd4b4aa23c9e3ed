"""Many tables read at once are what they are one by one, and so is what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, FwstoreError
from fwstore.format.columnar import FixedColumn, IntegerColumn, encode_table, parse_table
from fwstore.format.manytables import NumberSchema, parse_tables

SCHEMA: NumberSchema = {
    "small": IntegerColumn(np.uint32),
    "steps": IntegerColumn(np.uint32, delta=True),
    "large": IntegerColumn(np.uint64, delta=True),
    "signed": IntegerColumn(np.int64),
    "token": FixedColumn(3),
}
NUMBERS = {
    "small": (1 << 32) - 1,
    "steps": (1 << 32) - 1,
    "large": (1 << 63) - 1,
    "signed": (1 << 63) - 1,
}


def table(rows: dict[str, list[int]], tokens: int, meta: bytes = b"") -> bytes:
    columns = {name: np.array(values, np.uint64) for name, values in rows.items()}
    token = np.arange(3 * tokens, dtype=np.uint8).reshape(tokens, 3)
    return encode_table("test", SCHEMA, {**columns, "token": token}, meta)


def numbers(limit: int) -> st.SearchStrategy[list[int]]:
    few = st.lists(st.integers(0, limit), max_size=5)
    # Long enough to be compressed.
    return few | st.lists(st.integers(0, min(limit, 300)), min_size=200, max_size=260)


def error_of(stored: list[bytes]) -> FwstoreError | None:
    try:
        for one in stored:
            parse_table("test", SCHEMA, one)
    except FwstoreError as alone:
        with pytest.raises(type(alone)) as caught:
            parse_tables("test", SCHEMA, stored)
        return caught.value
    return None


tables = st.lists(
    st.builds(
        table,
        st.fixed_dictionaries({name: numbers(limit) for name, limit in NUMBERS.items()}),
        st.integers(0, 80),
        st.sampled_from([b"", b"", b"meta"]),
    ),
    max_size=4,
)


def assert_as_one_by_one(stored: list[bytes]) -> None:
    found = parse_tables("test", SCHEMA, stored)
    single = [parse_table("test", SCHEMA, one) for one in stored]
    for name in SCHEMA:
        expected = [one.array(name) for one in single]
        assert found.counts[name].tolist() == [len(array) for array in expected]
        assert found.array(name).tolist() == [row for array in expected for row in array.tolist()]
        assert all(found.array(name).dtype == array.dtype for array in expected)


@given(tables)
def test_tables_read_at_once_are_those_read_one_by_one(stored: list[bytes]) -> None:
    assert_as_one_by_one(stored)


@given(tables.filter(len), st.data())
def test_damage_raises_what_it_raises_in_one_table(
    stored: list[bytes], data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, len(stored) - 1))
    damaged = bytearray(stored[number])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(damaged), data.draw(st.integers(0, len(damaged)))]))
    stored[number] = bytes(damaged[:cut])
    expected = error_of(stored[number:][:1])
    if expected is None:
        assert_as_one_by_one(stored)
    else:
        assert str(error_of(stored)) == str(expected)


def test_a_number_that_does_not_fit_is_refused_in_any_table() -> None:
    wide: NumberSchema = {**SCHEMA, "small": IntegerColumn(np.uint64)}
    good = table({name: [1] for name in NUMBERS}, 1)
    bad = encode_table(
        "test",
        wide,
        {
            **{name: np.array([1 << 40], np.uint64) for name in ("small", "large", "signed")},
            "steps": np.array([1], np.uint64),
            "token": np.zeros((1, 3), np.uint8),
        },
    )
    with pytest.raises(Corrupt, match="does not fit uint32"):
        parse_tables("test", SCHEMA, [good, bad, good])
