"""Roots: canonical, bounded, checked."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwstore.base.config import ROOT_BYTES_MAX
from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded, Unsupported
from fwstore.format.root import (
    LeafRef,
    LineageRef,
    PackTableRef,
    Root,
    SnapshotRef,
    Totals,
    encode_root,
    parse_root,
)
from support.damage import flips, refuses, truncations
from support.samples import sample_root

DIGEST = bytes(range(32))


def changed(**fields: Any) -> Root:
    return msgspec.structs.replace(sample_root(), **fields)


def test_a_root_comes_back() -> None:
    root = sample_root()
    assert parse_root(encode_root(root)) == root
    small = Root(
        lineage=root.lineage, snapshot="000000000000-t1-s0-0000000000000000", step=0, term=1, save=0
    )
    assert parse_root(encode_root(small)) == small


@settings(max_examples=60)
@given(
    metrics=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.floats(), max_size=5
    ),
    state=st.none() | st.binary(max_size=200),
    position=st.none() | st.binary(max_size=60),
    wall_time=st.floats(allow_nan=False),
)
def test_what_users_give_comes_back(
    metrics: dict[str, float], state: bytes | None, position: bytes | None, wall_time: float
) -> None:
    root = changed(metrics=metrics, state=state, position=position, wall_time=wall_time)
    stored = encode_root(root)
    found = parse_root(stored)
    assert encode_root(found) == stored
    assert (found.state, found.position, found.wall_time) == (state, position, wall_time)
    assert found.metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        assert found.metrics[name] == value or math.isnan(value)


def test_whole_numbers_among_the_metrics_become_floats() -> None:
    assert parse_root(encode_root(changed(metrics={"loss": 2}))).metrics == {"loss": 2.0}


def test_every_truncation_and_extension_is_refused_and_no_flip_escapes_as_another_error() -> None:
    # The log record holds the digest of a root, so a flip that still parses never reaches the parser.
    stored = encode_root(sample_root())
    assert all(refuses(parse_root, bad) for _, bad in truncations(stored))
    assert refuses(parse_root, stored + b"\xc0")
    assert any(refuses(parse_root, bad) for _, bad in flips(stored))


def envelope(body: bytes) -> bytes:
    return struct.pack("<8sII", b"fw1root\n", 0, len(body)) + body


def test_other_spellings_are_corrupt() -> None:
    stored = encode_root(sample_root())
    fields = msgspec.msgpack.decode(stored[16:])
    assert parse_root(envelope(msgspec.msgpack.encode(fields, order="sorted"))) == sample_root()
    unsorted = dict(reversed(fields.items()))
    for bad in (unsorted, fields | {"extra": 1}, fields | {"metrics": {"loss": 2}}):
        with pytest.raises(Corrupt):
            parse_root(envelope(msgspec.msgpack.encode(bad)))
    body = bytearray(stored[16:])
    body[0] += 1
    with pytest.raises(Corrupt):
        parse_root(envelope(bytes(body) + msgspec.msgpack.encode("step") + b"\x05"))
    for bad_body in (b"", b"\x93" * 5000, b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        with pytest.raises(Corrupt):
            parse_root(envelope(bad_body))


def leaf(first: int, count: int, low: str = "a", high: str = "b", **other: Any) -> LeafRef:
    return msgspec.structs.replace(LeafRef(first, count, (low,), (high,), 10, DIGEST), **other)


OWN = sample_root().lineage


@pytest.mark.parametrize(
    "fields",
    [
        {"step": 1},
        {"term": -1},
        {"save": 2**63},
        {"snapshot": "nonsense"},
        {"lineage": LineageRef("x@1", "00")},
        {"lineage": LineageRef("../x", OWN.uuid)},
        {"lineages": (LineageRef("x@0", OWN.uuid),)},
        {"parent": SnapshotRef(OWN, "1-t1-s1-0000000000000000")},
        {"totals": Totals(chunks=-1)},
        {"leaves": (leaf(1, 1),)},
        {"leaves": (leaf(0, 0),)},
        {"leaves": (leaf(0, 2, "b", "a"),)},
        {"leaves": (leaf(0, 2), leaf(2, 1, "b", "c"))},
        {"leaves": (leaf(0, 2), leaf(3, 1, "c", "c"))},
        {"leaves": (leaf(0, 2), leaf(1, 1, "c", "c"))},
        {"leaves": (leaf(0, 2, size=2**40),)},
        {"leaves": (leaf(0, 2, digest=b"x"),)},
        {"leaves": (leaf(0, 2, first_path=()),)},
        {"pack_tables": (PackTableRef(1, 1, 10, DIGEST),)},
        {"pack_tables": (PackTableRef(0, 5000, 10, DIGEST),)},
        {"pack_tables": (PackTableRef(0, 1, 0, DIGEST),)},
        {"pack_tables": (PackTableRef(0, 1, 10, b""),)},
    ],
)
def test_impossible_roots_are_refused(fields: dict[str, Any]) -> None:
    bad = changed(**fields)
    with pytest.raises(InvalidInput):
        encode_root(bad)
    try:
        body = msgspec.msgpack.encode(bad, order="sorted")
    except OverflowError:
        return
    with pytest.raises(Corrupt):
        parse_root(envelope(body))


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": {"loss": "low"}},
        {"metrics": {"\ud800": 1.0}},
        {"software": {"a": 1}},
        {"state": 5},
    ],
)
def test_fields_of_another_type_are_invalid(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        encode_root(changed(**fields))


def test_a_root_that_is_too_large_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="262144"):
        encode_root(changed(state=bytes(ROOT_BYTES_MAX)))
    with pytest.raises(Corrupt, match="too large"):
        parse_root(envelope(bytes(ROOT_BYTES_MAX)))


def test_later_versions_are_named() -> None:
    stored = encode_root(sample_root())
    with pytest.raises(Unsupported, match="version 2"):
        parse_root(b"fw2" + stored[3:])
    with pytest.raises(Unsupported, match="features 1"):
        parse_root(stored[:8] + b"\2" + stored[9:])
