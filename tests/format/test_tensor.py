"""The tensor dictionary: round trips, size, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded, Unsupported
from fwstore.format.columnar import Table, Values, encode_table, parse_table
from fwstore.format.dtypes import ITEMSIZE
from fwstore.format.paths import encode_path
from fwstore.format.rows import Boxes
from fwstore.format.tensor import (
    CELL_BYTES_MAX,
    TENSOR_SCHEMA,
    TENSORS_MAX,
    TensorInfo,
    check_boxes,
    parse_tensors,
    tensor_columns,
    tensor_weight,
)
from support.samples import sample_tensors

KEYS = st.sampled_from(["model", "layers", "0", "wq", "", "é\U0001f600"]) | st.integers(
    -(2**63), 2**64 - 1
)
PATHS = st.lists(
    KEYS | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5
).map(tuple)


@st.composite
def tensor_infos(draw: st.DrawFn) -> TensorInfo:
    shape = tuple(draw(st.lists(st.integers(0, 40), max_size=4)))
    cells = tuple(
        (draw(st.integers(1, 9)), draw(st.integers(1, max(1, size))) if 0 not in shape else 0)
        for size in shape
    )
    path = draw(PATHS)
    alias = draw(st.none() | PATHS.filter(lambda other: other != path))
    return TensorInfo(path, draw(st.sampled_from(sorted(ITEMSIZE))), shape, cells, alias)


def dictionaries() -> st.SearchStrategy[list[TensorInfo]]:
    unique = st.lists(tensor_infos(), max_size=12, unique_by=lambda info: info.path)
    return unique.map(lambda infos: sorted(infos, key=lambda info: encode_path(info.path)))


def stored_form(columns: dict[str, Values]) -> bytes:
    return encode_table("test", TENSOR_SCHEMA, columns)


def parse(stored: bytes) -> tuple[TensorInfo, ...]:
    return parse_tensors(parse_table("test", TENSOR_SCHEMA, stored))


@given(dictionaries())
def test_what_is_encoded_is_parsed(infos: list[TensorInfo]) -> None:
    assert list(parse(stored_form(tensor_columns(infos)))) == infos


def test_a_mixture_of_experts_takes_a_few_bytes_per_tensor() -> None:
    infos = [
        TensorInfo(
            (part, "layers", str(layer), "experts", str(expert), name, "weight"),
            "float32",
            (64, 8),
            ((8, 8), (1, 8)),
        )
        for part in ("model", "exp_avg")
        for layer in range(20)
        for expert in range(64)
        for name in ("up", "down", "gate")
    ]
    infos.sort(key=lambda info: encode_path(info.path))
    stored = stored_form(tensor_columns(infos))
    assert len(stored) < 2 * len(infos)
    assert list(parse(stored)) == infos


def test_names_without_a_pattern_stay_within_fifteen_bytes() -> None:
    generator = np.random.default_rng(3)
    infos = [
        TensorInfo(
            ("model", f"block_{generator.integers(10**9):x}", "w"),
            "float32",
            (int(size), 8),
            ((1, 8), (1, 8)),
        )
        for size in generator.integers(8, 400, 3000)
    ]
    infos.sort(key=lambda info: encode_path(info.path))
    assert len(stored_form(tensor_columns(infos))) < 15 * len(infos)


def test_cells_are_counted_with_void_ones() -> None:
    info = TensorInfo(("w",), "int16", (10, 7), ((3, 3), (1, 4)))
    assert info.cell_count == 3 * 2 * 2
    assert info.size_bytes == 140
    assert info.cell_bytes == 3 * 4 * 2
    assert TensorInfo(("s",), "float64", (), ()).cell_count == 1
    assert TensorInfo(("e",), "float64", (0, 3), ((1, 0), (1, 3))).cell_count == 0


@pytest.mark.parametrize(
    ("shape", "cells"),
    [
        ((2**32, 2**32), ((1, 1), (1, 1))),
        ((0, 2**60, 2**60), ((1, 0), (1, 1), (1, 1))),
        ((-1,), ((1, 1),)),
        ((4,), ()),
        ((4,), ((0, 1),)),
        ((4,), ((1, 0),)),
        ((4,), ((1, 5),)),
        ((4,), ((2**63, 1),)),
        ((1 << 40,), ((1, CELL_BYTES_MAX // 4 + 1),)),
        ((2, 2), ((2**40, 1), (2**40, 1))),
        ((1,) * 65, ((1, 1),) * 65),
    ],
)
def test_impossible_tensors_are_refused(
    shape: tuple[int, ...], cells: tuple[tuple[int, int], ...]
) -> None:
    with pytest.raises(InvalidInput, match="a/b"):
        tensor_columns([TensorInfo(("a", "b"), "float32", shape, cells)])


@pytest.mark.parametrize(
    "change",
    [
        {"form_shape": np.array([2**62, 8], np.int64)},
        {"form_blocks": np.array([0, 1], np.int64)},
        {"form_rows": np.array([1, 9], np.int64)},
        {"form_rank": np.array([1], np.uint32)},
        {"form_rank": np.array([2, 0], np.uint32)},
        {"form_rank": np.array([2**32 - 1], np.uint32)},
        {"form": np.array([0, 1], np.uint32)},
        {"form": np.array([0], np.uint32)},
        {"keys": [b"\xa1a", b"\xd9\x01b"]},
        {"keys": [b"\xa1a", b"\xa1\xff"]},
        {"keys": [b"\xa1a", b"\xc3"]},
        {"keys": [b"\xa1a"]},
        {"keys": [b"\xa1a", b"\xa1a"]},
        {"keys": [b"\xa1b", b"\xa1a"]},
        {"keys": [b"\xa1a", b"\xda\x20\x00" + b"x" * 8192]},
        {"path_shared": np.array([1, 0], np.uint32)},
        {"path_shared": np.array([0], np.uint32)},
        {"path_length": np.array([0, 2], np.uint32), "path_shared": np.array([0, 0], np.uint32)},
        {"path_length": np.array([2**32 - 1, 2**32 - 1], np.uint32)},
        {"path_keys": np.array([0, 2], np.uint32)},
        {"path_keys": np.array([0], np.uint32)},
        {"aliased": np.array([0], np.uint32)},
    ],
)
def test_dictionaries_that_contradict_themselves_are_corrupt(change: dict[str, Values]) -> None:
    columns = tensor_columns([TensorInfo((key,), "int8", (4, 8), ((1, 1), (1, 8))) for key in "ab"])
    with pytest.raises(Corrupt):
        parse(stored_form(columns | change))


def test_aliases_that_contradict_themselves_are_corrupt() -> None:
    tied = TensorInfo(("b",), "int8", (4,), ((1, 4),), alias=("a",))
    columns = tensor_columns([TensorInfo(("a",), "int8", (4,), ((1, 4),)), tied])
    assert parse(stored_form(columns))[1] == tied
    for aliased in ([2], [0], [1, 1]):
        with pytest.raises(Corrupt):
            parse(stored_form(columns | {"aliased": np.array(aliased, np.uint32)}))


def test_unknown_dtypes_are_unsupported() -> None:
    columns = tensor_columns([TensorInfo(("a",), "int8", (4,), ((1, 4),))])
    with pytest.raises(Unsupported, match="float3"):
        parse(stored_form(columns | {"form_dtype": [b"float3"]}))
    with pytest.raises(Unsupported, match="float3"):
        tensor_columns([TensorInfo(("a",), "float3", (4,), ((1, 4),))])


def test_order_repeats_and_self_ties_are_refused() -> None:
    one = TensorInfo(("a",), "int8", (), ())
    two = TensorInfo(("b",), "int8", (), ())
    for infos in ([two, one], [one, one], [TensorInfo(("a",), "int8", (), (), alias=("a",))]):
        with pytest.raises(InvalidInput, match=r"tensor [ab] "):
            tensor_columns(infos)


def test_a_dictionary_that_is_too_large_says_so() -> None:
    infos = [TensorInfo((number,), "int8", (), ()) for number in range(TENSORS_MAX + 1)]
    infos.sort(key=lambda info: encode_path(info.path))
    with pytest.raises(LimitExceeded, match="split"):
        tensor_columns(infos)


def test_a_path_of_many_long_keys_is_refused_before_it_is_built() -> None:
    columns = tensor_columns([TensorInfo(("a",), "int8", (), ())])
    keys = 1 << 19
    columns |= {
        "keys": [b"\xda\x0f\x00" + b"x" * 3840],
        "path_keys": np.zeros(keys, np.uint32),
        "path_length": np.array([keys], np.uint32),
    }
    with pytest.raises(Corrupt, match="too long"):
        parse(stored_form(columns))


@given(dictionaries())
def test_tensors_whose_weights_fit_have_a_dictionary_that_fits(infos: list[TensorInfo]) -> None:
    assert sum(map(tensor_weight, infos)) < 1
    tensor_columns(infos)


def test_boxes_are_checked_against_cells() -> None:
    infos = sample_tensors()
    index = np.array([len(infos) - 1], np.int64)
    rank = len(infos[-1].shape)
    rows = [rows for _, rows in infos[-1].cells]
    check_boxes(infos, index, Boxes.of([((0,) * rank, rows)]))
    for offsets, sizes in (
        ((1,) * rank, rows),
        ((0,) * rank, [0] * rank),
        ((-1,) * rank, rows),
        ((0,) * (rank + 1), [*rows, 1]),
        ((2**63 - 1,) * rank, rows),
    ):
        if rank and math.prod(rows):
            with pytest.raises(Corrupt):
                check_boxes(infos, index, Boxes.of([(offsets, sizes)]))


def test_a_table_is_not_mistaken() -> None:
    empty = Table(
        {name: np.zeros(0, np.uint32) for name in TENSOR_SCHEMA} | {"keys": [], "form_dtype": []},
        b"",
    )
    assert parse_tensors(empty) == ()
