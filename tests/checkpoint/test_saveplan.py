"""A plan covers what the rank must bring, once and in order, and is equal for equal states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwstore import Box, Layout, Piece, Shard, Split
from fwstore.checkpoint.catalogue import Catalogue, make_catalogue
from fwstore.checkpoint.saveplan import SEGMENT_BYTES, SavePlan, make_plan, structure_of
from fwstore.format.paths import TensorPath, encode_path
from fwstore.format.tensor import TensorInfo

EVERYONE = Layout.replicated((0, 1, 2))


def shard(array: np.ndarray[Any, Any], layout: Layout | None = None, rank: int = 0) -> Shard:
    boxes = [Box.whole(array.shape)] if layout is None else layout.boxes(array.shape, rank)
    pieces = tuple(Piece(box, np.asarray(array[box.slices()])) for box in boxes)
    return Shard(array.dtype.name, array.shape, pieces, layout)


def catalogue_of(aliases: Any = None, **shards: Shard) -> Catalogue:
    tensors: dict[TensorPath, Shard] = {(name,): found for name, found in shards.items()}
    return make_catalogue(tensors, aliases or {})


def plan_of(catalogue: Catalogue, rank: int = 0, **grids: TensorInfo) -> SavePlan:
    kept = {info.path: info for info in grids.values()}
    return make_plan(catalogue, kept, rank, structure_of(catalogue))


def content(plan: SavePlan, catalogue: Catalogue) -> bytes:
    """All bytes of a plan, chunk after chunk."""
    out = b""
    for planned, piece in plan.live(catalogue):
        for row in range(len(planned.segment.chunks)):
            box = planned.segment.chunks.box(row).relative_to(piece.box)
            out += np.asarray(piece.array)[box.slices()].tobytes()
    return out


def test_chunks_are_numbered_through_and_named() -> None:
    arrays = {"b": np.random.default_rng(1).random((300, 400)), "a": np.ones(5), "c": np.ones(())}
    catalogue = catalogue_of(**{name: shard(array) for name, array in arrays.items()})
    plan = plan_of(catalogue)
    assert [info.path for info in plan.tensors] == [("a",), ("b",), ("c",)]
    assert plan.paths == (("a",), ("b",), ("c",))
    assert plan.numbers == (0, 1, 2)
    assert [planned.first for planned in plan.segments] == [0, 1, 1 + len(plan.segments[1].boxes)]
    assert plan.chunks == sum(len(planned.segment.chunks) for planned in plan.segments)
    assert plan.chunks == len(plan.tensor_of_chunk)
    assert plan.size_bytes == sum(array.nbytes for array in arrays.values())
    assert content(plan, catalogue) == b"".join(arrays[name].tobytes() for name in "abc")
    assert all(box is None for planned in plan.segments for box in planned.boxes)


def test_aliases_stand_in_the_dictionary_and_have_no_chunks() -> None:
    catalogue = catalogue_of(
        {("a",): ("m",), ("z",): ("m",)}, m=shard(np.ones(4)), n=shard(np.ones(2))
    )
    plan = plan_of(catalogue)
    assert [(info.path, info.alias) for info in plan.tensors] == [
        (("a",), ("m",)),
        (("m",), None),
        (("n",), None),
        (("z",), ("m",)),
    ]
    assert plan.numbers == (1, 2)
    assert plan.tensor_of_chunk.tolist() == [1, 2]


def test_paths_are_sorted_as_they_are_stored() -> None:
    paths: list[TensorPath] = [
        ("layers", 10),
        ("layers", 9),
        ("layers", "9"),
        ("a" * 40,),
        ("zz", "a"),
    ]
    tensors = {path: shard(np.ones(1)) for path in paths}
    plan = plan_of(make_catalogue(tensors, {}))
    assert list(plan.paths) == sorted(paths, key=encode_path)


def test_replicas_divide_the_chunks_among_them() -> None:
    arrays = {f"t{n}": np.random.default_rng(n).random((n + 1, 30_000)) for n in range(5)}
    parts = []
    for rank in range(3):
        catalogue = catalogue_of(**{n: shard(a, EVERYONE, rank) for n, a in arrays.items()})
        parts.append(plan_of(catalogue, rank))
    total = sum(array.nbytes for array in arrays.values())
    assert sum(plan.size_bytes for plan in parts) == total
    seen = [
        (plan.paths[s.segment.chunks.tensor], cell)
        for plan in parts
        for s in plan.segments
        for cell in s.segment.chunks.cells.tolist()
    ]
    assert len(seen) == len(set(seen))


def test_a_kept_grid_is_used_while_dtype_and_shape_are_the_same() -> None:
    array = np.random.default_rng(1).random((64, 64))
    kept = TensorInfo(("w",), "float64", (64, 64), ((1, 10), (1, 64)))
    plan = plan_of(catalogue_of(w=shard(array)), w=kept)
    assert plan.tensors[0].cells == kept.cells
    assert plan.chunks == 7
    for other in (array[:50], array.astype(np.float32)):
        assert plan_of(catalogue_of(w=shard(other)), w=kept).chunks == 1


def test_a_grid_of_another_layout_cuts_fragments() -> None:
    array = np.random.default_rng(1).random((12, 4))
    kept = TensorInfo(("w",), "float64", (12, 4), ((1, 5), (1, 4)))
    halves = Layout((2,), (Split(0),), (0, 1))
    plans = [plan_of(catalogue_of(w=shard(array, halves, rank)), rank, w=kept) for rank in range(2)]
    boxes = [[box for planned in plan.segments for box in planned.boxes] for plan in plans]
    assert boxes == [
        [None, Box((0, 0), (1, 4))],
        [Box((1, 0), (4, 4)), None],
    ]


def test_long_pieces_are_cut_into_segments() -> None:
    array = np.zeros(3 * SEGMENT_BYTES + 8, np.uint8)
    plan = plan_of(catalogue_of(w=shard(array)))
    sizes = [planned.segment.size_bytes for planned in plan.segments]
    assert sum(sizes) == array.nbytes
    assert len(sizes) == 4
    assert max(sizes) <= SEGMENT_BYTES


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        ("000000", [range(6)]),
        ("111111", []),
        ("100000", [range(1, 6)]),
        ("000001", [range(5)]),
        ("010110", [range(1), range(2, 3), range(5, 6)]),
    ],
)
def test_unchanged_chunks_are_left_out(skip: str, kept: list[range]) -> None:
    array = np.arange(12.0)
    info = TensorInfo(("w",), "float64", (12,), ((1, 2),))
    catalogue = catalogue_of(a=shard(np.ones(3)), w=shard(array))
    (_, planned) = plan_of(catalogue, w=info).segments
    found = list(planned.without(np.array([flag == "1" for flag in skip])))
    assert [list(range(part.rows.start - 1, part.rows.stop - 1)) for part in found] == [
        list(rows) for rows in kept
    ]
    for part, rows in zip(found, kept, strict=True):
        assert part.segment.chunks.cells.tolist() == list(rows)
        assert part.segment.start == rows.start * 16
        assert len(part.boxes) == len(rows)


def test_a_structure_is_what_decides_a_plan() -> None:
    array = np.ones((4, 6))

    def structure(**shards: Shard) -> Any:
        return structure_of(catalogue_of(**shards))

    same = structure(w=shard(array))
    assert structure(w=shard(array + 1)) == same
    others = [
        structure(w=shard(array.T.copy())),
        structure(w=shard(np.asfortranarray(array))),
        structure(w=shard(array.astype(np.float32))),
        structure(w=shard(array), v=shard(array)),
        structure(w=shard(array, EVERYONE)),
        structure_of(catalogue_of({("v",): ("w",)}, w=shard(array))),
    ]
    assert all(other != same for other in others)


def test_tensors_of_one_form_are_split_once_and_keep_their_bytes() -> None:
    rng = np.random.default_rng(3)
    arrays = {name: rng.random((700, 900)) for name in "abcd"}
    arrays["c"] = np.asfortranarray(arrays["c"])
    catalogue = catalogue_of(**{name: shard(array) for name, array in arrays.items()})
    plan = plan_of(catalogue)
    assert content(plan, catalogue) == b"".join(arrays[name].tobytes() for name in "abcd")
    segments = [planned.segment for planned in plan.segments]
    of_a, _, of_c, of_d = ([s for s in segments if s.chunks.tensor == n] for n in range(4))
    assert all(s.chunks.cells is t.chunks.cells for s, t in zip(of_a, of_d, strict=True))
    assert all(segment.start >= 0 for segment in of_a)
    assert all(segment.start < 0 for segment in of_c)


def test_a_structure_sees_dtype_shape_memory_layout_and_names() -> None:
    array = np.ones((4, 6), np.float32)
    base = structure_of(catalogue_of(a=shard(array)))
    assert base == structure_of(catalogue_of(a=shard(array.copy())))
    for other in (
        catalogue_of(b=shard(array)),
        catalogue_of(a=shard(array.view(np.int32))),
        catalogue_of(a=shard(array.reshape(6, 4))),
        catalogue_of(a=shard(np.asfortranarray(array))),
        catalogue_of(a=shard(array, EVERYONE)),
        catalogue_of({("z",): ("a",)}, a=shard(array)),
    ):
        assert structure_of(other) != base
