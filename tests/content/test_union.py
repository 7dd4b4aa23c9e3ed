from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fwstore.base.errors import Corrupt, InvalidInput
from fwstore.codec.hashing import ContentHash
from fwstore.content.build import build_snapshot
from fwstore.content.contribution import Contribution
from fwstore.content.union import unite
from fwstore.format.packtable import PackInfo
from fwstore.format.root import LineageRef
from fwstore.format.rows import FragmentTable, RunTable
from fwstore.format.tensor import TensorInfo
from fwstore.store.memory import MemoryStore
from support.snapshots import LINEAGE, Site, make_runtime

DONOR = LineageRef("donor@1", "ff112233445566778899aabbccddeeff")
CELLS = ((1, 1), (1, 4))


def tensor(name: str = "w", rows: int = 4, **changes: Any) -> TensorInfo:
    info = TensorInfo((name,), "float32", (rows, 4), CELLS)
    return dataclasses.replace(info, **changes)


def pack(rank: int, **changes: Any) -> PackInfo:
    info = PackInfo(
        lineage=0,
        spread=0,
        term=1,
        save=0,
        rank=rank,
        number=0,
        token=f"{rank:016x}",
        size=4096,
        footer_length=100,
        footer_digest=bytes(32),
        chunks=1000,
    )
    return dataclasses.replace(info, **changes)


def part(rank: int, rows: Any, **changes: Any) -> Contribution:
    """A rank that brings runs (tensor, first cell, count, pack, first chunk)."""
    contribution = Contribution(
        rank=rank,
        tensors=(tensor(),),
        lineages=(LINEAGE,),
        packs=(pack(rank),),
        runs=RunTable.of(rows),
        fragments=FragmentTable.of(),
    )
    return dataclasses.replace(contribution, **changes)


def rows_of(table: RunTable) -> list[tuple[int, ...]]:
    columns = (table.tensor, table.first_cell, table.count, table.pack, table.first_chunk)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_rows_of_all_ranks_are_renumbered_sorted_and_merged() -> None:
    tensors = (tensor("a"), tensor("b"))
    parts = [
        part(3, [(0, 2, 2, 0, 5)], tensors=tensors[1:]),
        part(1, [(0, 0, 1, 0, 0), (0, 1, 3, 0, 1), (1, 0, 2, 0, 9)], tensors=tensors),
    ]
    union = unite(LINEAGE, parts)
    assert [info.path for info in union.tensors] == [("a",), ("b",)]
    assert [info.rank for info in union.packs] == [1, 3]
    assert rows_of(union.runs) == [(0, 0, 4, 0, 0), (1, 0, 2, 0, 9), (1, 2, 2, 1, 5)]


def test_a_pack_that_two_ranks_reuse_stands_once_and_unused_ones_not_at_all() -> None:
    shared = pack(9, lineage=1)
    mirrored = dataclasses.replace(shared, lineage=0)
    parts = [
        part(0, [(0, 0, 2, 1, 0)], lineages=(LINEAGE, DONOR), packs=(pack(0), shared)),
        part(1, [(0, 2, 2, 0, 2)], lineages=(DONOR,), packs=(mirrored,)),
    ]
    union = unite(LINEAGE, parts)
    assert union.lineages == (LINEAGE, DONOR)
    assert union.packs == (shared,)
    assert rows_of(union.runs) == [(0, 0, 4, 0, 0)]


def test_lineages_whose_packs_are_no_longer_used_are_forgotten() -> None:
    other = LineageRef("other@1", "ee112233445566778899aabbccddeeff")
    lineages, packs = (LINEAGE, DONOR, other), (pack(0, lineage=1), pack(1, lineage=2), pack(2))
    union = unite(
        LINEAGE, [part(0, [(0, 0, 2, 1, 0), (0, 2, 2, 2, 2)], lineages=lineages, packs=packs)]
    )
    assert union.lineages == (LINEAGE, other)
    assert union.packs == (pack(2), pack(1, lineage=1))
    assert rows_of(union.runs) == [(0, 0, 2, 1, 0), (0, 2, 2, 0, 2)]
    assert unite(LINEAGE, [part(0, [], lineages=lineages, packs=packs)]).lineages == (LINEAGE,)


def test_ranks_that_disagree_on_a_pack_are_refused() -> None:
    parts = [
        part(0, [(0, 0, 2, 0, 0)], packs=(pack(7),)),
        part(1, [(0, 2, 2, 0, 2)], packs=(pack(7, size=5000),)),
    ]
    with pytest.raises(Corrupt, match="disagree on the size"):
        unite(LINEAGE, parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int32"}, "tensor w has dtype float32 on rank 4 but int32 on rank 6"),
        ({"shape": (8, 4)}, r"tensor w has shape \(4, 4\) on rank 4 but \(8, 4\) on rank 6"),
        ({"cells": ((1, 2), (1, 4))}, "tensor w has cells"),
    ],
)
def test_ranks_that_disagree_on_a_tensor_are_named(change: Any, message: str) -> None:
    parts = [part(4, []), part(6, [], tensors=(tensor(**change),))]
    with pytest.raises(InvalidInput, match=message):
        unite(LINEAGE, parts)


def test_a_tie_that_one_rank_knows_holds_for_all() -> None:
    free = (tensor("a"), tensor("b"))
    tied = (tensor("a"), tensor("b", alias=("a",)))
    parts = [
        part(0, [(0, 0, 4, 0, 0)], tensors=tied),
        part(1, [(1, 0, 4, 0, 0)], tensors=free),
    ]
    union = unite(LINEAGE, parts)
    assert [info.alias for info in union.tensors] == [None, ("a",)]
    assert rows_of(union.runs) == [(0, 0, 4, 0, 0)]
    assert [info.rank for info in union.packs] == [0]


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (
            (tensor("a", alias=("b",)), tensor("b")),
            (tensor("a"), tensor("b", alias=("a",))),
            "itself tied",
        ),
        (
            (tensor("a", alias=("c",)),),
            (tensor("a", alias=("d",)),),
            "different tensors on ranks 0 and 1",
        ),
        ((tensor("a", alias=("c",)),), (tensor("b"),), "which no rank has"),
        ((tensor("a", alias=("b",)),), (tensor("b", rows=5),), "another dtype or shape"),
    ],
)
def test_impossible_ties_are_refused(ours: Any, theirs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        unite(LINEAGE, [part(0, [], tensors=ours), part(1, [], tensors=theirs)])


@pytest.mark.parametrize(
    "rows", [[(0, 0, 3, 0, 0)], [(0, 0, 4, 0, 0), (0, 3, 1, 0, 9)], [(0, 0, 5, 0, 0)]]
)
def test_a_snapshot_with_a_gap_or_an_overlap_is_not_built(rows: Any) -> None:
    draft = Site(MemoryStore(make_runtime())).draft()
    with pytest.raises(Corrupt, match="tensor w"):
        build_snapshot(draft, [part(0, rows)], ContentHash())


def test_groups_are_those_of_the_packs_by_lineage() -> None:
    packs = (pack(0), pack(1, save=4), pack(2, lineage=1, term=8))
    rows = [(0, 0, 1, 0, 0), (0, 1, 1, 1, 0), (0, 2, 2, 2, 0)]
    draft = Site(MemoryStore(make_runtime())).draft()
    contribution = part(0, rows, lineages=(LINEAGE, DONOR), packs=packs)
    built = build_snapshot(draft, [contribution], ContentHash())
    assert built.groups(LINEAGE) == {(1, 0), (1, 4)}
    assert built.groups(DONOR) == {(8, 0)}
    assert built.root.totals.chunks == 4
    assert built.root.totals.bytes_logical == 64


@pytest.mark.slow
def test_many_ranks_are_united_without_a_loop_over_rows() -> None:
    ranks, names = 400, 60
    tensors = tuple(
        TensorInfo(("layer", number, "w"), "float32", (ranks * 4, 4), CELLS)
        for number in range(names)
    )
    parts = [
        part(
            rank, [(number, rank * 4, 4, 0, number * 4) for number in range(names)], tensors=tensors
        )
        for rank in range(ranks)
    ]
    built = build_snapshot(Site(MemoryStore(make_runtime())).draft(), parts, ContentHash())
    assert built.root.totals.chunks == ranks * names * 4
    assert len(built.packs) == ranks
    assert sum(len(stored.content) for stored in built.objects) < 200_000
    assert np.array_equal([info.rank for info in built.packs], np.arange(ranks))
