"""Old checkpoints go and their bytes with them; what is kept, shared, pinned or read stays whole."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import Keep
from fwstore.store.base import Store
from support.coordinators import ThreadJob
from support.faults import FaultyStore

SIZE = 100_000


@pytest.fixture
def repo(url: str) -> Iterator[fwstore.Repository]:
    with fwstore.open(url, limits=fwstore.Limits(threads=2)) as repository:
        yield repository


def make_state(step: int) -> dict[str, Any]:
    return {"w": np.random.default_rng(step).random(SIZE), "step": step}


def save(run: fwstore.Run, steps: Any, losses: Any = None, **options: Any) -> list[int]:
    """Save steps; return the bytes that retention freed after each."""
    handles = []
    with run.writer(**options) as writer:
        for step in steps:
            metrics = {} if losses is None else {"loss": losses[step]}
            handles.append(writer.save(step, make_state(step), metrics=metrics))
    return [handle.statistics().bytes_freed for handle in handles if handle.result()]


def check(run: fwstore.Run, *steps: int) -> None:
    """Compare what is on offer, and every byte of it."""
    assert [c.step for c in run.checkpoints()] == list(steps)
    for step in steps:
        assert np.array_equal(run[step].load()["w"], make_state(step)["w"])


def bytes_of(store: Store, prefix: str = "") -> int:
    return sum(found.size for found in store.list(prefix))


def test_the_last_ones_stay_and_the_bytes_of_others_go(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    freed = save(run, range(8), keep=Keep(last=2))
    check(run, 6, 7)
    one = SIZE * 8
    assert freed[:2] == [0, 0]
    assert all(one < count < 1.1 * one for count in freed[2:])
    assert bytes_of(repo.store) < 2.2 * one
    with pytest.raises(fwstore.Expired, match="step 3"):
        run[3]


def test_the_best_and_the_round_ones_stay(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    losses = [9.0, 2.0, 8.0, 1.0, 7.0, 6.0, 5.0, 4.0, np.nan]
    keep = Keep(last=1, every_steps=4, best=("loss", 2))
    save(run, range(9), losses, keep=keep)
    check(run, 0, 1, 3, 4, 8)
    accuracy = repo.run("accuracy")
    save(accuracy, range(9), losses, keep=Keep(last=1, best=("loss", 1, "max")))
    check(accuracy, 0, 8)


def test_what_a_job_began_with_stays_until_the_next_one(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    save(run, [0])
    save(run, [1, 2, 3], keep=Keep(last=1))
    check(run, 0, 3)
    save(run, [4], keep=Keep(last=1))
    check(run, 3, 4)


def test_retention_follows_the_line_that_goes_on(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    save(run, [0, 1, 2, 3])
    save(run, [2, 3, 4], base=run[1], keep=Keep(last=2))
    assert [c.step for c in run.checkpoints()] == [1, 3, 4]
    assert [run[step].term for step in (1, 3, 4)] == [1, 2, 2]


def test_shared_bytes_stay_as_long_as_anything_uses_them(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    frozen = np.random.default_rng(99).random(SIZE)
    with run.writer(keep=Keep(last=1)) as writer:
        for step in range(6):
            writer.save(step, {"frozen": frozen, "hot": make_state(step)["w"]}).result(60)
    (last,) = run.checkpoints()
    found = last.load()
    assert np.array_equal(found["frozen"], frozen)
    assert np.array_equal(found["hot"], make_state(5)["w"])
    assert len({pack.save for pack in last.packs()}) == 2
    # The pack of the first save holds what was hot then, too.
    assert bytes_of(repo.store, "packs/") < 3.3 * SIZE * 8
    repo.gc()
    assert np.array_equal(last.load()["frozen"], frozen)


def test_a_dry_run_explains_every_byte_and_changes_nothing(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    save(run, range(4))
    before = {found.key: found.size for found in repo.store.list("")}
    planned = repo.gc(keep=Keep(last=1), dry_run=True)
    assert {found.key: found.size for found in repo.store.list("")} == before
    assert planned.dry_run
    deleted = {action.key for action in planned.actions if action.action == "delete"}
    expired = [action.key for action in planned.actions if action.action == "expire"]
    assert sorted(expired) == ["step 0", "step 1", "step 2"]
    assert all(action.reason for action in planned.actions)
    done = repo.gc(keep=Keep(last=1))
    assert done.bytes_freed == planned.bytes_freed
    after = {found.key for found in repo.store.list("")}
    assert before.keys() - after == deleted
    check(run, 3)


def test_packs_of_a_save_that_failed_are_freed(repo: fwstore.Repository) -> None:
    inner = repo.store
    broken = True
    repo.store = FaultyStore(
        inner, lambda o: "fail" if broken and o.writes and "/root" in o.key else None
    )
    run = repo.run("run")
    with run.writer() as writer:
        with pytest.raises(fwstore.Unavailable):
            writer.save(0, make_state(0)).result(60)
        broken = False
        writer.save(1, make_state(1)).result(60)
    assert bytes_of(inner, "packs/") > 1.9 * SIZE * 8
    run.writer().close()
    repo.gc()
    assert bytes_of(inner, "packs/") < 1.1 * SIZE * 8
    check(run, 1)


def test_collections_of_one_run_leave_others_alone(repo: fwstore.Repository) -> None:
    for name in ("a", "b"):
        save(repo.run(name), range(3))
    with pytest.raises(fwstore.NotFound, match="zzz"):
        repo.gc(run="zzz")
    repo.gc(run="a", keep=Keep(last=1))
    check(repo.run("a"), 2)
    check(repo.run("b"), 0, 1, 2)
    progress: list[tuple[int, int]] = []
    repo.gc(keep=Keep(last=1), progress=lambda done, total: progress.append((done, total)))
    assert progress == [(1, 2), (2, 2)]
    check(repo.run("b"), 2)


def test_a_deleted_run_is_freed_and_its_name_used_again(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    save(run, range(3))
    run.delete()
    assert repo.runs() == []
    save(run, [7])
    assert bytes_of(repo.store, "packs/") > 3.9 * SIZE * 8
    repo.gc()
    assert bytes_of(repo.store, "packs/") < 1.1 * SIZE * 8
    check(run, 7)
    assert run[7].packs()[0].lineage == "run@2"


def begin(job: ThreadJob, step: int, rank: int) -> fwstore.SaveHandle:
    return job.writers[rank].save(step, make_state(step))


def test_collecting_while_training_goes_on(url: str) -> None:
    """A collector in a process of its own takes what it may between and during saves, never more."""
    with ThreadJob(url, 2) as job, fwstore.open(url) as collector:
        for step in range(12):
            handles = job.each_rank(partial(begin, job, step))
            collector.gc(keep=Keep(last=2))
            for handle in handles:
                handle.result(60)
        collector.gc(keep=Keep(last=2))
    with fwstore.open(url) as repo:
        check(repo.run("run"), 10, 11)
        assert bytes_of(repo.store, "packs/") < 3.3 * SIZE * 8


def test_a_reader_sees_whole_checkpoints_or_learns_that_they_are_gone(url: str) -> None:
    with fwstore.open(url) as writing, fwstore.open(url) as reading:
        run = writing.run("run")
        save(run, range(3))
        seen = reading.run("run").checkpoints()
        tensors = [checkpoint.tensors for checkpoint in seen]
        save(run, [3], keep=Keep(last=1))
        save(run, [4], keep=Keep(last=1))
        outcomes: list[bool | None] = []
        for checkpoint, lazy in zip(seen, tensors, strict=True):
            try:
                part = lazy["w"][5:8]
                outcomes.append(bool((part == make_state(checkpoint.step)["w"][5:8]).all()))
            except fwstore.Expired:
                outcomes.append(None)
        assert outcomes == [None, None, None]
        check(reading.run("run"), 3, 4)


def test_failing_retention_warns_and_the_save_is_durable(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    save(run, range(2))
    inner = repo.store
    repo._accesses.clear()
    repo.store = FaultyStore(inner, lambda o: "fail" if o.name == "delete" else None)
    with pytest.warns(UserWarning, match="retention of run is behind"):
        save(run, [2], keep=Keep(last=1))
    repo.store = inner
    repo._accesses.clear()
    save(run, [3], keep=Keep(last=1))
    check(run, 2, 3)
    assert bytes_of(inner, "packs/") < 2.2 * SIZE * 8
