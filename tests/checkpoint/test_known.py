"""What a rank knows of stored chunks is right or nothing: after a save, a change of plan, a resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import Box, Layout, Piece, Shard, Split
from fwstore.checkpoint.catalogue import make_catalogue
from fwstore.checkpoint.known import Known, carry_over, chunk_keys, known_from
from fwstore.checkpoint.saveplan import SavePlan, make_plan, structure_of
from fwstore.codec.hashing import ContentHash, xxh3_128
from fwstore.format.paths import TensorPath
from fwstore.format.tensor import TensorInfo

RNG = np.random.default_rng(9)


def plan_of(
    arrays: dict[str, Any], grids: dict[Any, TensorInfo] | None = None, rank: int = 0
) -> SavePlan:
    shards: dict[TensorPath, Shard] = {(name,): as_shard(value) for name, value in arrays.items()}
    catalogue = make_catalogue(shards, {})
    return make_plan(catalogue, grids or {}, rank, structure_of(catalogue))


def as_shard(value: Any) -> Shard:
    if isinstance(value, Shard):
        return value
    return Shard(value.dtype.name, value.shape, (Piece(Box.whole(value.shape), value),))


def save(run: fwstore.Run, *states: Any, **options: Any) -> fwstore.Checkpoint:
    checkpoint = None
    with run.writer(**options) as writer:
        for step, state in enumerate(states):
            checkpoint = writer.save(step, state).result(60)
    assert checkpoint is not None
    return checkpoint


def known_of(checkpoints: Sequence[fwstore.Checkpoint], plan: SavePlan) -> Known:
    access = checkpoints[0].access
    return known_from([c.manifest for c in checkpoints], access.footers, plan)


def grids_of(checkpoint: fwstore.Checkpoint) -> dict[Any, TensorInfo]:
    return {info.path: info for info in checkpoint.manifest.tensors()}


def check(known: Known, plan: SavePlan, arrays: dict[str, np.ndarray[Any, Any]]) -> int:
    """Compare every known row with the bytes that it stands for; return how many there are."""
    digest = ContentHash().digest
    count = 0
    for planned in plan.segments:
        array = arrays[str(plan.paths[planned.segment.chunks.tensor][0])]
        for row in range(len(planned.segment.chunks)):
            where = known.row[planned.first + row]
            if where < 0:
                continue
            content = array[planned.segment.chunks.box(row).slices()].tobytes()
            assert known.places.ids[where].tobytes() == digest(content)
            assert known.places.digests[where].tobytes() in (xxh3_128(content), bytes(16))
            assert known.places.tensor[where] == plan.tensor_of_chunk[planned.first + row]
            count += 1
    return count


def test_a_resumed_rank_finds_all_whole_cells(run: fwstore.Run) -> None:
    arrays = {"a": RNG.random((900, 300)), "b": RNG.random(7), "c": np.zeros((0, 3))}
    checkpoint = save(run, arrays)
    plan = plan_of(arrays, grids_of(checkpoint))
    known = known_of([checkpoint], plan)
    assert check(known, plan, arrays) == plan.chunks == 5


def test_other_dtypes_shapes_and_grids_are_not_found(run: fwstore.Run) -> None:
    arrays = {"a": RNG.random((900, 300)), "b": RNG.random(8)}
    checkpoint = save(run, arrays)
    changed = {"a": arrays["a"][:899], "b": arrays["b"].view(np.int64), "new": RNG.random(3)}
    plan = plan_of(changed, grids_of(checkpoint))
    assert check(known_of([checkpoint], plan), plan, changed) == 0
    other = TensorInfo(("a",), "float64", (900, 300), ((1, 7), (1, 300)))
    plan = plan_of({"a": arrays["a"]}, {("a",): other})
    assert check(known_of([checkpoint], plan), plan, arrays) == 0


def test_of_several_snapshots_the_last_one_wins(run: fwstore.Run, repo: fwstore.Repository) -> None:
    first = {"a": RNG.random((900, 300)), "b": RNG.random(8)}
    second = {"a": RNG.random((900, 300))}
    parent, base = save(run, second), save(repo.run("base"), first)
    arrays = {"a": second["a"], "b": first["b"]}
    plan = plan_of(arrays, grids_of(parent))
    known = known_of([base, parent], plan)
    assert check(known, plan, arrays) == plan.chunks
    labels = {found.label for found in known.places.lineages}
    assert labels == {"run@1", "base@1"}


def test_fragments_are_found_where_they_were_cut_alike(run: fwstore.Run) -> None:
    array = RNG.random((24, 4))
    info = TensorInfo(("w",), "float64", (24, 4), ((1, 5), (1, 4)))
    cuts = [Box((0, 0), (7, 4)), Box((7, 0), (17, 4))]
    pieces = tuple(Piece(box, array[box.slices()]) for box in cuts)
    shard = Shard("float64", (24, 4), pieces)
    run_with_grid(run, {"w": array}, info)
    checkpoint = save(run, {"w": shard})
    assert checkpoint.describe().fragments == 2
    plan = plan_of({"w": shard}, grids_of(checkpoint))
    assert check(known_of([checkpoint], plan), plan, {"w": array}) == plan.chunks == 6
    other = [Box((0, 0), (8, 4)), Box((8, 0), (16, 4))]
    moved = Shard("float64", (24, 4), tuple(Piece(b, array[b.slices()]) for b in other))
    plan = plan_of({"w": moved}, grids_of(checkpoint))
    assert check(known_of([checkpoint], plan), plan, {"w": array}) == 4


def run_with_grid(run: fwstore.Run, state: Any, info: TensorInfo) -> None:
    """Begin a run whose lineage has a grid of our choice."""
    with run.writer() as writer:
        writer._engine._grids = {info.path: info}
        writer.save(0, state).result(60)


def test_knowledge_survives_a_change_of_the_plan() -> None:
    arrays = {"a": RNG.random((900, 300)), "b": RNG.random(8), "c": RNG.random((3, 2))}
    before = plan_of(arrays)
    known = Known(fake_places(before), np.arange(before.chunks, dtype=np.int64))
    after = plan_of({"b": arrays["b"], "a": np.asfortranarray(arrays["a"]), "d": RNG.random(4)})
    carried = carry_over(known, before, after)
    where = dict(zip(chunk_keys(before), known.row.tolist(), strict=True))
    for key, row in zip(chunk_keys(after), carried.row.tolist(), strict=True):
        assert row == where.get(key, -1)
    assert (carried.row >= 0).sum() == 5
    shorter = plan_of({"a": arrays["a"][:800], "b": arrays["b"].astype(np.float32)})
    assert (carry_over(known, before, shorter).row == -1).all()


def fake_places(plan: SavePlan) -> Any:
    class Rows:
        digests = np.ones((plan.chunks, 16), np.uint8)

    return Rows()


def test_digests_are_zero_where_none_is_known() -> None:
    plan = plan_of({"a": RNG.random((900, 300))})
    nothing = Known.nothing(plan)
    assert nothing.digests(slice(0, 8)) is None
    places = fake_places(plan)
    some = Known(places, np.array([-1, 3, -1, 0, *[-1] * (plan.chunks - 4)], np.int64))
    found = some.digests(slice(0, 4))
    assert found is not None
    assert found.any(axis=1).tolist() == [False, True, False, True]
    assert places.digests.all()
    places.digests = np.zeros((plan.chunks, 16), np.uint8)
    assert some.digests(slice(0, 4)) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_looks_only_for_what_it_brings(run: fwstore.Run, rank: int) -> None:
    array = RNG.random((900, 300))
    checkpoint = save(run, {"a": array})
    halves = Layout((2,), (Split(0),), (0, 1))
    (box,) = halves.boxes(array.shape, rank)
    part = Shard("float64", array.shape, (Piece(box, array[box.slices()]),), halves)
    plan = plan_of({"a": part}, grids_of(checkpoint), rank)
    assert check(known_of([checkpoint], plan), plan, {"a": array}) == plan.chunks == 2
