"""Contributions that are parsed together say what they say one by one, and are refused as strictly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from fwstore.base.errors import Corrupt
from fwstore.content import build, gather
from fwstore.content.contribution import Contribution, encode_contribution, parse_contribution
from fwstore.content.gather import Gathering
from fwstore.content.union import unite
from fwstore.format.columnar import encode_table
from fwstore.format.packtable import PACK_SCHEMA, PackInfo, pack_columns
from fwstore.format.root import LineageRef
from fwstore.format.rows import (
    FRAGMENT_SCHEMA,
    RUN_SCHEMA,
    FragmentTable,
    RunTable,
    fragment_columns,
    run_columns,
)
from fwstore.format.tensor import TensorInfo

RANKS = 7
LINEAGE = LineageRef("run@1", "ab" * 16)
TENSORS = tuple(
    TensorInfo((name,), "float32", (4 * RANKS, 8), ((1, 4), (1, 8))) for name in ("a", "b", "c")
)


def pack(rank: int, number: int = 0) -> PackInfo:
    return PackInfo(
        lineage=0,
        spread=3,
        term=1,
        save=2,
        rank=rank,
        number=number,
        token=f"{rank:08x}{number:08x}",
        size=100_000,
        footer_length=500,
        footer_digest=bytes([rank]) * 32,
        chunks=9,
    )


def part(rank: int, **changes: Any) -> Contribution:
    """What one rank brings: a cell of each tensor, that of the last in two parts, in two packs."""
    fields: dict[str, Any] = {
        "rank": rank,
        "tensors": TENSORS,
        "lineages": (LINEAGE,),
        "packs": (pack(rank), pack(rank, 1)),
        "runs": RunTable.of([(0, rank, 1, 0, 0), (1, rank, 1, 1, 0)]),
        "fragments": FragmentTable.of(
            [(2, rank, 0, 1), (2, rank, 1, 1)], [((0, 0), (1, 8)), ((1, 0), (3, 8))]
        ),
        "bytes_written": 10 + rank,
        "bytes_reused": rank,
    }
    return Contribution(**(fields | changes))


def gathered(parts: list[Contribution]) -> list[Contribution]:
    return gathered_messages(encode_contribution(one) for one in parts)


def gathered_messages(messages: Iterable[bytes]) -> list[Contribution]:
    gathering = Gathering()
    for message in messages:
        gathering.add(message)
    return gathering.finish()


def assert_same_union(parts: list[Contribution]) -> None:
    known: dict[Any, Any] = {}
    apart = unite(LINEAGE, [parse_contribution(encode_contribution(one), known) for one in parts])
    together = unite(LINEAGE, gathered(parts))
    assert together.tensors == apart.tensors
    assert together.packs == apart.packs
    assert together.lineages == apart.lineages
    for name in ("tensor", "first_cell", "count", "pack", "first_chunk"):
        np.testing.assert_array_equal(getattr(together.runs, name), getattr(apart.runs, name))
    for name in ("tensor", "cell", "pack", "chunk"):
        found, expected = getattr(together.fragments, name), getattr(apart.fragments, name)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(together.fragments.boxes.sizes, apart.fragments.boxes.sizes)


def test_ranks_that_are_alike_become_one_contribution() -> None:
    (one,) = gathered([part(rank) for rank in range(RANKS)])
    assert len(one.packs) == 2 * RANKS
    assert (one.bytes_written, one.bytes_reused) == (10 * RANKS + 21, 21)
    assert one.runs.pack.tolist() == list(range(2 * RANKS))
    assert_same_union([part(rank) for rank in range(RANKS)])


def test_ranks_without_rows_and_with_other_tensors_keep_apart() -> None:
    other = (TensorInfo(("own",), "float32", (4, 8), ((1, 4), (1, 8))),)
    alone = part(
        3, tensors=other, runs=RunTable.of([(0, 0, 1, 0, 0)]), fragments=FragmentTable.of()
    )
    empty = part(4, runs=RunTable.of(), fragments=FragmentTable.of(), packs=())
    parts = [part(0), empty, alone, part(1), empty, part(2)]
    assert len(gathered(parts)) == 2
    assert_same_union(parts)


def test_batches_end_where_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_MESSAGES_PER_BATCH", 3)
    parts = [part(rank) for rank in range(RANKS)]
    assert len(gathered(parts)) == 3
    assert_same_union(parts)


def with_rows(one: Contribution, **columns: Any) -> bytes:
    """A message with columns that no honest encoder writes."""
    honest = pack_columns(one.packs) | run_columns(one.runs) | fragment_columns(one.fragments)
    schema = {**PACK_SCHEMA, **RUN_SCHEMA, **FRAGMENT_SCHEMA}
    stored = encode_contribution(one)
    message = msgspec.msgpack.decode(stored[12:])
    message[5] = encode_table("rows", schema, {**honest, **columns})
    return stored[:12] + msgspec.msgpack.encode(message)


def bad(rank: int) -> list[bytes]:
    return [
        encode_contribution(part(rank, packs=(pack(rank),))),
        encode_contribution(replace(part(rank), rank=-1)),
        encode_contribution(part(rank, bytes_reused=-1)),
        with_rows(part(rank), run_tensor=np.array([1, 0])),
        with_rows(part(rank), run_tensor=np.array([0, 9])),
        with_rows(part(rank), run_count=np.array([1])),
        with_rows(part(rank), run_count=np.array([0, 1])),
        with_rows(part(rank), pack_rank=np.array([1])),
        with_rows(part(rank), fragment_chunk=np.array([1])),
        with_rows(part(rank), fragment_pack=np.array([1, 0])),
        with_rows(part(rank), fragment_sizes=np.array([1, 8, 3])),
        with_rows(part(rank), fragment_offsets=np.array([0, 0, 1])),
    ]


@pytest.mark.parametrize("number", range(len(bad(0))))
def test_what_one_message_may_not_say_is_refused_among_others(number: int) -> None:
    with pytest.raises(Corrupt):
        parse_contribution(bad(3)[number], {})
    others = [encode_contribution(part(2)), encode_contribution(part(4))]
    with pytest.raises(Corrupt):
        gathered_messages([others[0], bad(3)[number], others[1]])


@pytest.mark.parametrize("column", ["run_count", "pack_rank", "fragment_chunk", "fragment_sizes"])
def test_columns_of_two_ranks_do_not_make_up_for_each_other(column: str) -> None:
    rows = {
        "run_count": ([1], [1, 1, 1]),
        "pack_rank": ([1], [1, 2, 3]),
        "fragment_chunk": ([1], [1, 1, 1]),
        "fragment_sizes": ([1, 8], [1, 8, 3, 8, 3, 8]),
    }[column]
    messages = [
        with_rows(part(rank), **{column: np.array(values)}) for rank, values in enumerate(rows)
    ]
    with pytest.raises(Corrupt):
        gathered_messages(messages)


def test_a_pack_of_the_next_rank_cannot_be_meant() -> None:
    few = part(0, packs=(pack(0),), runs=RunTable.of([(0, 0, 1, 1, 0)]))
    few = replace(few, fragments=FragmentTable.of())
    with pytest.raises(Corrupt, match="pack that it does not list"):
        gathered([few, part(1)])


@pytest.mark.parametrize(
    ("packs", "parts", "longest"),
    [(1, 1, 1), (1024, 1, 1024), (1025, 2, 1024), (100_000, 96, 1042), (500_000, 123, 4096)],
)
def test_a_rank_reads_few_packs_and_a_record_names_few_parts(
    monkeypatch: pytest.MonkeyPatch, packs: int, parts: int, longest: int
) -> None:
    monkeypatch.setattr(build, "encode_pack_table", lambda first, part: b"")
    found = list(build._encode_parts([pack(0)] * packs))
    assert (len(found), max(count for _, count, _ in found)) == (parts, longest)
    assert sum(count for _, count, _ in found) == packs
