"""Saving in three phases: a ticket travels, parts are written anywhere, one commit makes them count."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import (
    AlreadyExists,
    Box,
    Fenced,
    InvalidInput,
    Piece,
    SaveTicket,
    Shard,
    TensorSlot,
)
from fwstore.format.paths import TensorPath

ARRAY = np.random.default_rng(2).random((6, 4))
Tensors = dict[TensorPath, Shard]


def rows(low: int, high: int, array: Any = ARRAY) -> Shard:
    box = Box((low, 0), (high - low, 4))
    return Shard("float64", (6, 4), (Piece(box, array[box.slices()]),))


def save(run: fwstore.Run, step: int | None = None, array: Any = ARRAY, **options: Any) -> Any:
    ticket = run.begin_save(step, **options)
    parts = [
        run.write_part(ticket, {("w",): rows(0, 2, array)}, rank=0),
        run.write_part(ticket, {("w",): rows(2, 6, array)}, rank=1),
    ]
    return run.commit_save(ticket, parts, {"w": TensorSlot("numpy"), "note": 1}, metrics={"m": 2})


def test_parts_of_several_processes_become_one_checkpoint(url: str) -> None:
    with fwstore.open(url) as repo:
        ticket = repo.run("run").begin_save(7)
    stored = pickle.dumps(ticket)
    parts = []
    for rank, part in enumerate((rows(0, 2), rows(2, 6))):
        with fwstore.open(url) as repo:
            again: SaveTicket = pickle.loads(stored)
            parts.append(repo.run("run").write_part(again, {("w",): part}, rank=rank))
    with fwstore.open(url) as repo:
        state = {"w": TensorSlot("numpy"), "note": "x"}
        checkpoint = repo.run("run").commit_save(
            ticket, parts, state, metrics={"m": np.nan, "n": 2}
        )
        assert checkpoint == repo.run("run").latest()
        assert (checkpoint.step, checkpoint.term, checkpoint.metrics) == (7, 1, {"n": 2})
        found = checkpoint.load()
        assert np.array_equal(found["w"], ARRAY)
        assert found["note"] == "x"
        assert {pack.rank for pack in checkpoint.packs()} == {0, 1}


def test_steps_follow_each_other_unless_given(run: fwstore.Run) -> None:
    assert [save(run).step for _ in range(3)] == [0, 1, 2]
    assert save(run, 40).step == 40
    assert save(run).step == 41
    assert run.latest().parent == run[40].id


def test_saving_a_step_again_replaces_it(run: fwstore.Run, repo: fwstore.Repository) -> None:
    first = save(run, 5)
    with pytest.raises(AlreadyExists, match="step 5"):
        run.begin_save(5, replace=False)
    second = save(run, 5, ARRAY + 1)
    assert run.checkpoints() == [second]
    assert np.array_equal(run[5].load()["w"], ARRAY + 1)
    third = save(run, 5, ARRAY + 2)
    repo.gc()
    with pytest.raises(fwstore.Expired):
        first.load()
    assert run.checkpoints() == [third]
    assert np.array_equal(run[5].load()["w"], ARRAY + 2)
    assert run.begin_save(6, replace=False).replaces == ()


def test_an_interrupted_replacement_leaves_the_old_one(run: fwstore.Run) -> None:
    save(run, 5)
    ticket = run.begin_save(5)
    run.write_part(ticket, {("w",): rows(0, 6, ARRAY + 1)}, rank=0)
    assert np.array_equal(run[5].load()["w"], ARRAY)
    with run.writer() as writer:
        assert writer.base == run[5]


def test_unchanged_parts_are_not_written_again(run: fwstore.Run) -> None:
    save(run, 0)
    again = save(run, 1)
    assert again.describe().bytes_reused == ARRAY.nbytes
    assert {pack.term for pack in again.packs()} == {1}
    changed = ARRAY.copy()
    changed[5] += 1
    third = save(run, 2, changed)
    assert np.array_equal(third.load()["w"], changed)


def test_a_ticket_is_void_once_another_was_taken(run: fwstore.Run) -> None:
    old = run.begin_save(1)
    part = run.write_part(old, {("w",): rows(0, 6)}, rank=0)
    save(run, 2)
    with pytest.raises(Fenced, match="void"):
        run.commit_save(old, [part], {})
    assert [c.step for c in run.checkpoints()] == [2]


def test_a_ticket_of_another_run_is_refused(repo: fwstore.Repository) -> None:
    ticket = repo.run("a").begin_save(1)
    save(repo.run("b"), 1)
    forged = SaveTicket(
        **{
            **{name: getattr(ticket, name) for name in SaveTicket.__dataclass_fields__},
            "term": 99,
        }
    )
    with pytest.raises(InvalidInput, match="99"):
        repo.run("a").commit_save(forged, [], {})


@pytest.mark.parametrize(
    "tensors",
    [
        [{("w",): rows(0, 2)}],
        [{("w",): rows(0, 4)}, {("w",): rows(2, 6)}],
        [{("w",): rows(0, 6)}, {("w",): Shard("float32", (6, 4), ())}],
    ],
    ids=["a hole", "an overlap", "another dtype"],
)
def test_parts_that_do_not_fit_are_not_committed(run: fwstore.Run, tensors: list[Tensors]) -> None:
    ticket = run.begin_save(0)
    parts = [run.write_part(ticket, part, rank=rank) for rank, part in enumerate(tensors)]
    with pytest.raises(fwstore.FwstoreError, match="w"):
        run.commit_save(ticket, parts, {"w": TensorSlot("numpy")})
    assert run.latest(default=None) is None


def test_reserved_names_and_malformed_parts_are_refused(run: fwstore.Run) -> None:
    ticket = run.begin_save(0)
    with pytest.raises(InvalidInput, match="@fwstore"):
        run.write_part(ticket, {("@fwstore", "state"): rows(0, 6)}, rank=0)
    with pytest.raises(fwstore.Corrupt):
        run.commit_save(ticket, [b"rubbish"], {})


def test_a_large_plain_state_travels_too(run: fwstore.Run) -> None:
    ticket = run.begin_save(0)
    words = [f"word {number}" for number in range(20_000)]
    run.commit_save(ticket, [], {"words": words})
    assert run[0].load() == {"words": words}
