"""Leaves: round trips, splitting, damage, bounded memory."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc

import numpy as np
import pytest

from fwstore.base.config import LEAF_BYTES_MAX
from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded
from fwstore.base.units import MIB
from fwstore.format.columnar import ROWS_MAX
from fwstore.format.leaf import Leaf, encode_leaf, encode_leaves, parse_leaf, split_leaf
from fwstore.format.paths import encode_path
from fwstore.format.rows import FragmentTable, RunTable, concat_fragments, concat_runs
from fwstore.format.tensor import TENSORS_MAX, TensorInfo
from support.damage import flips, refuses, truncations
from support.samples import number_of, sample_leaf


def assert_same(left: Leaf, right: Leaf) -> None:
    assert left.first_tensor == right.first_tensor
    assert left.tensors == right.tensors
    for mine, other in ((left.runs, right.runs), (left.fragments, right.fragments)):
        for field in dataclasses.fields(mine):
            if field.name != "boxes":
                assert getattr(mine, field.name).tolist() == getattr(other, field.name).tolist()
    for name in ("starts", "offsets", "sizes"):
        assert (
            getattr(left.fragments.boxes, name).tolist()
            == getattr(right.fragments.boxes, name).tolist()
        )


@pytest.mark.parametrize("first", [0, 1000, 2**32 - 7])
def test_a_leaf_comes_back(first: int) -> None:
    leaf = sample_leaf(first)
    stored = encode_leaf(leaf)
    assert_same(parse_leaf(stored), leaf)
    assert encode_leaf(parse_leaf(stored)) == stored


def test_an_empty_leaf_comes_back() -> None:
    empty = Leaf(0, (), RunTable.of(), FragmentTable.of())
    assert_same(parse_leaf(encode_leaf(empty)), empty)


@pytest.mark.parametrize("first", [1 << 32, 1 << 63, (1 << 64) - 1])
def test_a_first_tensor_that_no_row_can_name_is_corrupt(first: int) -> None:
    # Found by fuzzing: an OverflowError.
    stored = encode_leaf(Leaf(0x01020304, (), RunTable.of(), FragmentTable.of()))
    changed = stored.replace(struct.pack("<Q", 0x01020304), struct.pack("<Q", first))
    with pytest.raises(Corrupt, match="no row can name"):
        parse_leaf(changed)


def test_every_truncation_is_refused_and_no_flip_escapes_as_another_error() -> None:
    # The root holds the digest of a leaf, so a flip that still parses never reaches `parse_leaf`.
    stored = encode_leaf(sample_leaf())
    assert all(refuses(parse_leaf, bad) for _, bad in truncations(stored))
    assert any(refuses(parse_leaf, bad) for _, bad in flips(stored))


def test_rows_outside_the_dictionary_or_the_grid_are_refused() -> None:
    leaf = sample_leaf()
    wq = number_of("model", "wq")
    tied, empty = number_of("model", "lm_head"), number_of("model", "vide", -3)
    for run in ((7, 0, 1, 0, 0), (wq, 3, 2, 0, 0), (tied, 0, 1, 0, 0), (empty, 0, 1, 0, 0)):
        with pytest.raises(InvalidInput):
            encode_leaf(dataclasses.replace(leaf, runs=RunTable.of([run])))
    for part, box in (
        ((wq, 4, 0, 0), ((0, 0), (1, 1))),
        ((wq, 2**64 - 1, 0, 0), ((0, 0), (1, 1))),
        ((wq, 0, 0, 0), ((0, 0), (3, 1))),
        ((wq, 0, 0, 0), ((0,), (1,))),
        ((tied, 0, 0, 0), ((0, 0), (1, 1))),
    ):
        with pytest.raises(InvalidInput):
            encode_leaf(dataclasses.replace(leaf, fragments=FragmentTable.of([part], [box])))
    with pytest.raises(InvalidInput, match="tensor number"):
        encode_leaf(Leaf(2**32 - 6, leaf.tensors, RunTable.of(), FragmentTable.of()))


def test_a_leaf_is_split_by_tensors() -> None:
    leaf = sample_leaf(40)
    left, right = split_leaf(leaf)
    assert left.first_tensor + len(left.tensors) == right.first_tensor
    joined = Leaf(
        40,
        left.tensors + right.tensors,
        concat_runs([left.runs, right.runs]),
        concat_fragments([left.fragments, right.fragments]),
    )
    assert_same(joined, leaf)
    encode_leaf(left)
    encode_leaf(right)
    alone = Leaf(0, leaf.tensors[:1], RunTable.of(), FragmentTable.of())
    assert split_leaf(alone) == [alone]


def large_runs(rows: int) -> RunTable:
    number = np.arange(rows)
    return RunTable(
        np.zeros(rows, np.uint32),
        (number * 2).astype(np.uint64),
        np.ones(rows, np.uint64),
        (number % 7).astype(np.uint32),
        number.astype(np.uint32),
    )


@pytest.mark.slow
def test_a_tensor_with_too_many_rows_stands_in_several_leaves() -> None:
    info = TensorInfo(("w",), "float32", (1 << 40,), ((1, 1 << 16),))
    runs = dataclasses.replace(large_runs(ROWS_MAX + 5), tensor=np.full(ROWS_MAX + 5, 3, np.uint32))
    leaf = Leaf(3, (info,), runs, FragmentTable.of())
    with pytest.raises(LimitExceeded):
        encode_leaf(leaf)
    leaves = encode_leaves(leaf)
    assert [part.first_tensor for part, _ in leaves] == [3, 3]
    parsed = concat_runs([parse_leaf(stored).runs for _, stored in leaves])
    assert parsed.first_cell.tolist() == runs.first_cell.tolist()
    assert all(len(stored) <= LEAF_BYTES_MAX for _, stored in leaves)


def hostile_leaf() -> bytes:
    """Few bytes that claim as much as is allowed of everything."""
    infos = [
        TensorInfo(
            (f"k{number:05d}", 0, 1, 2, 3, 4),
            "int8",
            (number + 300, 1),
            ((1, number + 300), (1, 1)),
        )
        for number in range(TENSORS_MAX // 4 - 1)
    ]
    infos.sort(key=lambda info: encode_path(info.path))
    runs = large_runs(780_000)
    tall = TensorInfo(("zzzzzz", 0, 1, 2, 3, 4), "int8", (1 << 40,), ((1, 1 << 16),))
    tensor = np.full(len(runs), len(infos), np.uint32)
    return encode_leaf(
        Leaf(0, (*infos, tall), dataclasses.replace(runs, tensor=tensor), FragmentTable.of())
    )


@pytest.mark.slow
def test_parsing_a_leaf_that_claims_everything_stays_within_bounds() -> None:
    stored = hostile_leaf()
    tracemalloc.start()
    try:
        parse_leaf(stored)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 64 * MIB + 2 * len(stored)


def test_what_is_too_long_is_refused_unread() -> None:
    with pytest.raises(Corrupt, match="larger"):
        parse_leaf(bytes(LEAF_BYTES_MAX + 1))
