"""Saves that fail: who is told, what is given back, and that the next one works."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import LimitExceeded, Unavailable
from fwstore.base.units import MIB
from fwstore.sched import BufferPool
from fwstore.sched.buffers import map_anonymous
from fwstore.store.base import Store
from support.faults import FaultyStore, Operation

PATIENCE_S = 60.0


def small(value: float = 0.0) -> dict[str, Any]:
    return {"w": np.full(4, value), "plain": value}


def steps_of(run: fwstore.Run) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def failing(repo: fwstore.Repository, fails: Callable[[Operation], bool]) -> Store:
    inner = repo.store
    repo.store = FaultyStore(inner, lambda operation: "fail" if fails(operation) else None)
    return inner


def test_a_failed_save_is_told_once_asked_and_the_next_one_works(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    broken = False
    failing(repo, lambda operation: broken and operation.key.startswith("packs/"))
    with run.writer() as writer:
        writer.save(0, small(0)).result(PATIENCE_S)
        broken = True
        handle = writer.save(1, small(1))
        with pytest.raises(Unavailable, match="injected"):
            handle.result(PATIENCE_S)
        assert isinstance(handle.exception(), Unavailable)
        assert not handle.skipped
        broken = False
        writer.save(1, small(11)).result(PATIENCE_S)
    assert steps_of(run) == [0, 1]
    assert run[1].load()["plain"] == 11
    assert run[1].parent == run[0].id


def test_failed_saves_that_nobody_asked_about_are_told_when_the_writer_closes(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    failing(repo, lambda op: op.key.startswith("packs/") and "-s3-" not in op.key)
    writer, handles = run.writer(), []
    for step in range(1, 5):
        handles.append(writer.save(step, small(step)))
        writer.wait()
    with pytest.raises(Unavailable, match="injected"):
        handles[0].result(PATIENCE_S)
    # Not an answer to whether it failed.
    assert [handle.skipped for handle in handles] == [False] * 4
    with pytest.raises(Unavailable, match="injected"):
        writer.save(5, small(), blocking=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        writer.close()
        writer.close()
    messages = [str(warning.message) for warning in told]
    assert [message[: len("the save of step n failed")] for message in messages] == [
        "the save of step 2 failed",
        "the save of step 4 failed",
    ]
    assert all("Unavailable" in message and "injected" in message for message in messages)
    assert {warning.filename for warning in told} == {__file__}


def test_a_save_that_failed_does_not_hide_what_went_wrong_meanwhile(
    run: fwstore.Run, repo: fwstore.Repository, caplog: pytest.LogCaptureFixture
) -> None:
    def crash() -> None:
        with run.writer() as writer:
            heard = writer.save(0, small())
            writer.save(1, small())
            writer.wait()
            assert isinstance(heard.exception(), Unavailable)
            raise ZeroDivisionError

    failing(repo, lambda operation: operation.key.startswith("packs/"))
    with pytest.raises(ZeroDivisionError):
        crash()
    # Warnings are errors here, so it stands in the log.
    assert [record.getMessage()[:25] for record in caplog.records] == ["the save of step 1 failed"]


def test_what_was_staged_is_given_back_whatever_happens(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    broken = False
    failing(repo, lambda operation: broken and operation.key.startswith("packs/"))
    with run.writer() as writer:
        for step in range(6):
            broken = step % 2 == 1
            writer.save(step, {"w": np.full(50_000, step)})
            writer.wait()
            assert repo.pool.statistics().leased_bytes == 0
        with pytest.raises(fwstore.UnsupportedValue):
            writer.save(9, {"w": np.full(50_000, 9), "x": object()})
        assert repo.pool.statistics().leased_bytes == 0
    assert steps_of(run) == [0, 2, 4]


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_a_state_for_whose_copy_there_is_no_memory_is_refused_and_the_next_is_saved(
    run: fwstore.Run, repo: fwstore.Repository, error: Exception
) -> None:
    given = []

    def scarce(size_bytes: int) -> memoryview:
        given.append(size_bytes)
        if len(given) == 2:
            raise error
        return map_anonymous(size_bytes)

    repo.pool = BufferPool(scarce)
    large = {"first": np.ones(MIB), "second": np.zeros(70 * MIB, np.uint8)}
    with run.writer() as writer:
        with pytest.raises(LimitExceeded, match=rf"{78 * MIB} bytes.*blocking=True.*staging_bytes"):
            writer.save(0, large)
        assert repo.pool.statistics().leased_bytes == 0
        writer.save(1, small()).result(PATIENCE_S)
        handle = writer.save(0, large, blocking=True)
        assert handle.statistics().rank_bytes_staged == 0
    assert len(given) == 2
    assert steps_of(run) == [0, 1]


def test_a_failed_save_deletes_the_packs_that_it_completed_and_no_others(url: str) -> None:
    limits = fwstore.Limits(
        threads=1, pack_bytes=1 << 20, part_bytes=1 << 18, inflight_bytes=1 << 19
    )
    completed = []

    def third_of_second_save(operation: Operation) -> bool:
        if operation.name != "commit" or "/t1-s2-" not in operation.key:
            return False
        completed.append(operation.key)
        return len(completed) > 2

    array = np.random.default_rng(2).random((512, 1024))
    with fwstore.open(url, limits=limits) as repo:
        failing(repo, third_of_second_save)
        with repo.run("run").writer() as writer:
            writer.save(0, {"w": array}).result(PATIENCE_S)
            before = [info.key for info in repo.store.list("packs/")]
            with pytest.raises(Unavailable, match="injected"):
                writer.save(1, {"w": array + 1}).result(PATIENCE_S)
        assert len(completed) == 3
        assert [info.key for info in repo.store.list("packs/")] == before
        assert np.array_equal(repo.run("run")[0].load()["w"], array)
