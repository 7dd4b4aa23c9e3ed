from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwstore.base.errors import InvalidInput
from fwstore.plan.box import Box
from fwstore.plan.grid import grid_of_layout
from fwstore.plan.layout import Layout, Placement, Split
from support.planning import layout, layouts

shapes = st.lists(st.integers(0, 13), min_size=1, max_size=3).map(tuple)


def coordinates(division: Layout) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(size) for size in division.mesh)))


def torch_placements(placements: tuple[Placement, ...]) -> list[Any]:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    return [
        Replicate()
        if split is None
        else Shard(split.dim)
        if split.factor == 1
        else _StridedShard(split.dim, split_factor=split.factor)
        for split in placements
    ]


def torch_elements(shape: tuple[int, ...], division: Layout, coordinate: tuple[int, ...]) -> Any:
    """Return the local tensor that torch's own placements cut from the numbered elements."""
    import torch

    local = torch.arange(math.prod(shape)).reshape(shape)
    places = zip(torch_placements(division.placements), division.mesh, coordinate, strict=True)
    for placement, size, here in places:
        if not placement.is_replicate():
            parts, _ = placement._split_tensor(local, size, with_padding=False)
            local = parts[here]
    return local.numpy()


def elements(shape: tuple[int, ...], division: Layout, rank: int) -> Any:
    """Return the local array that our boxes cut and lay side by side."""
    whole = np.arange(math.prod(shape)).reshape(shape)
    boxes, local = division.boxes(shape, rank), division.local_boxes(shape, rank)
    extent = [max((box.stops[axis] for box in local), default=0) for axis in range(len(shape))]
    target = np.full(extent, -1)
    for box, place in zip(boxes, local, strict=True):
        target[place.slices()] = whole[box.slices()]
    assert not (target == -1).any()
    return target


def check_against_torch(shape: tuple[int, ...], division: Layout) -> None:
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

    placements = torch_placements(division.placements)
    for rank, coordinate in zip(division.ranks, coordinates(division), strict=True):
        ours = elements(shape, division, rank)
        theirs = torch_elements(shape, division, coordinate)
        sizes, offsets = _compute_local_shape_and_global_offset(
            shape, division.mesh, list(coordinate), placements
        )
        assert theirs.shape == sizes
        if theirs.size:
            assert np.array_equal(ours, theirs)
            assert division.boxes(shape, rank)[0].offsets == tuple(offsets)
        else:
            assert ours.size == 0


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_boxes_are_what_torch_puts_on_every_rank(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    check_against_torch(shape, data.draw(layouts(len(shape))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "division"),
    [
        ((16, 6), layout((2, Split(0, factor=2)), (2, Split(0)))),
        ((17, 6), layout((2, Split(0, factor=2)), (2, Split(0)))),
        ((7, 3), layout((3, Split(0, factor=2)), (2, Split(0)))),
        ((24, 4), layout((2, None), (3, Split(0, factor=4)), (4, Split(0)))),
        ((5, 9), layout((2, Split(1)), (2, Split(0)), (2, Split(1)))),
        ((3,), layout((8, Split(0)))),
        ((0, 4), layout((2, Split(0)), (2, Split(1)))),
        ((26, 5), layout((2, Split(0, factor=4)), (2, Split(0, factor=2)), (2, Split(0)))),
    ],
)
def test_known_meshes_agree_with_torch(shape: tuple[int, ...], division: Layout) -> None:
    check_against_torch(shape, division)


@given(st.data())
def test_ranks_that_are_no_replicas_divide_the_tensor(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    division = data.draw(layouts(len(shape)))
    times = np.zeros(shape, int)
    for rank in division.ranks:
        for box in division.boxes(shape, rank):
            times[box.slices()] += 1
    copies = math.prod(
        size
        for size, split in zip(division.mesh, division.placements, strict=True)
        if split is None
    )
    assert (times == copies).all()


@given(st.data())
def test_replicas_are_the_ranks_with_the_same_coordinates_of_splits(data: st.DataObject) -> None:
    division = data.draw(layouts(2))
    held = {rank: division.boxes((60, 60), rank) for rank in division.ranks}
    for rank in division.ranks:
        replicas = division.replicas(rank)
        assert rank in replicas
        assert list(replicas) == sorted(set(replicas))
        assert all(division.replicas(other) == replicas for other in replicas)
        assert all(held[other] == held[rank] for other in replicas)


def test_replicated_layout_gives_everyone_the_whole() -> None:
    division = Layout.replicated((3, 5, 9))
    assert division.boxes((4, 2), 5) == (Box.whole((4, 2)),)
    assert division.replicas(9) == (3, 5, 9)


def test_a_rank_outside_the_mesh_holds_nothing() -> None:
    division = layout((2, Split(0)), first_rank=4)
    assert division.boxes((8,), 0) == ()
    assert division.local_boxes((8,), 0) == ()
    assert division.replicas(0) == ()


def test_ranks_stand_in_mesh_order() -> None:
    division = Layout((2, 2), (Split(0), Split(1)), (7, 3, 1, 0))
    assert division.boxes((4, 4), 3) == (Box((0, 2), (2, 2)),)
    assert division.boxes((4, 4), 1) == (Box((2, 0), (2, 2)),)


def test_a_scalar_is_replicated() -> None:
    assert layout((4, None)).boxes((), 2) == (Box((), ()),)


def test_strided_shards_have_several_boxes() -> None:
    division = layout((2, Split(0, factor=2)))
    assert division.boxes((8, 3), 1) == (Box((2, 0), (2, 3)), Box((6, 0), (2, 3)))
    assert division.local_boxes((8, 3), 1) == (Box((0, 0), (2, 3)), Box((2, 0), (2, 3)))


@pytest.mark.parametrize(
    ("mesh", "placements", "ranks"),
    [
        ((2,), (None, None), (0, 1)),
        ((2, 2), (None, None), (0, 1)),
        ((2,), (Split(-1),), (0, 1)),
        ((2,), (Split(0, factor=0),), (0, 1)),
    ],
)
def test_impossible_layouts_are_refused(
    mesh: tuple[int, ...], placements: tuple[Placement, ...], ranks: tuple[int, ...]
) -> None:
    with pytest.raises(InvalidInput):
        Layout(mesh, placements, ranks)


def test_a_split_of_a_missing_dimension_is_refused() -> None:
    with pytest.raises(InvalidInput, match="lacks"):
        layout((2, Split(2))).boxes((4, 4), 0)
    with pytest.raises(InvalidInput, match="lacks"):
        grid_of_layout((4, 4), 4, layout((2, Split(2))))
