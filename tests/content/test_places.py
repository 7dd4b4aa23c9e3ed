from __future__ import annotations

from typing import Any

import numpy as np

from fwstore.content.places import Places, concat_places, no_places
from fwstore.plan.box import Box
from fwstore.store.memory import MemoryStore
from support.snapshots import Held, Site, make_runtime

CELLS = ((1, 4), (1, 3))
ARRAY = np.random.default_rng(11).standard_normal((12, 6))
BOXES = [Box((0, 0), (5, 6)), Box((5, 0), (7, 6))]


def written() -> list[Places]:
    site = Site(MemoryStore(make_runtime()))
    held: list[dict[Any, Held]] = [{("w",): Held(ARRAY, [box], CELLS)} for box in BOXES]
    return [site.write(part, rank=rank)[1].places for rank, part in enumerate(held)]


def test_rows_keep_their_order_and_packs_stand_once() -> None:
    left, right = written()
    joined = concat_places([right, left, left.take(np.array([0]))])
    assert joined.cell.tolist() == [*right.cell.tolist(), *left.cell.tolist(), left.cell[0]]
    assert [pack.rank for pack in joined.packs] == [1, 0]
    named = [joined.packs[number].rank for number in joined.pack.tolist()]
    assert named == [1] * len(right) + [0] * (len(left) + 1)
    assert joined.boxes.row(0) == right.boxes.row(0)
    np.testing.assert_array_equal(joined.ids[: len(right)], right.ids)
    assert len(concat_places([])) == len(no_places()) == 0


def test_only_packs_that_rows_name_are_kept() -> None:
    left, right = written()
    joined = concat_places([left, right])
    rest = joined.take(np.arange(len(left), len(joined)))
    for kept in (
        rest.used(),
        concat_places([rest]),
        concat_places([left.take(np.array([], np.int64)), rest]),
    ):
        assert [pack.rank for pack in kept.packs] == [1]
        assert set(kept.pack.tolist()) == {0}


def test_whole_cells_become_runs_and_the_rest_fragments() -> None:
    left, right = written()
    runs, fragments = concat_places([right, left]).tables()
    assert runs.first_cell.tolist() == [0, 4]
    assert runs.count.tolist() == [2, 2]
    assert fragments.cell.tolist() == [2, 2, 3, 3]
    volume = int(runs.count.sum()) * 12 + int(fragments.boxes.volumes().sum())
    assert volume == ARRAY.size
