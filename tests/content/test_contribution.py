from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, Unsupported
from fwstore.content.contribution import (
    Contribution,
    Dictionaries,
    encode_contribution,
    parse_contribution,
)
from fwstore.format.rows import FragmentTable, RunTable
from support.samples import sample_leaf, sample_packs, sample_root


def sample() -> Contribution:
    leaf = sample_leaf()
    return Contribution(
        rank=5,
        tensors=leaf.tensors,
        lineages=sample_root().lineages,
        packs=sample_packs(),
        runs=leaf.runs,
        fragments=leaf.fragments,
        bytes_written=1000,
        bytes_reused=20,
    )


def assert_same(one: Any, other: Any) -> None:
    for name in ("rank", "tensors", "lineages", "packs", "bytes_written", "bytes_reused"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("tensor", "first_cell", "count", "pack", "first_chunk"):
        np.testing.assert_array_equal(getattr(one.runs, name), getattr(other.runs, name))
    np.testing.assert_array_equal(one.fragments.boxes.sizes, other.fragments.boxes.sizes)
    np.testing.assert_array_equal(one.fragments.cell, other.fragments.cell)


def test_what_is_sent_arrives() -> None:
    assert_same(parse_contribution(encode_contribution(sample()), {}), sample())


def test_a_rank_without_tensors_may_contribute() -> None:
    nothing = Contribution(rank=0, tensors=(), runs=RunTable.of(), fragments=FragmentTable.of())
    parsed = parse_contribution(encode_contribution(nothing), {})
    assert (parsed.tensors, len(parsed.runs), len(parsed.fragments)) == ((), 0, 0)


def test_equal_dictionaries_are_parsed_once() -> None:
    known: Dictionaries = {}
    stored = encode_contribution(sample())
    first, second = parse_contribution(stored, known), parse_contribution(stored, known)
    assert first.tensors is second.tensors


def test_references_to_what_is_not_listed_are_refused() -> None:
    whole = sample()
    for change in (
        {"packs": whole.packs[:1]},
        {"lineages": whole.lineages[:1]},
        {"tensors": whole.tensors[:2]},
        {"rank": -1},
    ):
        fields = {name: getattr(whole, name) for name in Contribution.__slots__}
        stored = encode_contribution(Contribution(**(fields | change)))
        with pytest.raises(Corrupt):
            parse_contribution(stored, {})


@given(st.data())
def test_damaged_messages_raise_nothing_else(data: st.DataObject) -> None:
    stored = bytearray(encode_contribution(sample()))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(stored)))
    try:
        parse_contribution(bytes(stored[:cut]), {})
    except (Corrupt, Unsupported):
        return
