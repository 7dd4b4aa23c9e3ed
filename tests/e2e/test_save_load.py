"""Saving and loading over process boundaries: forked, pickled, unprivileged, and ranks without torch."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import Box, Piece, Shard, flat_boxes
from support.coordinators import ThreadJob
from support.gates import GatedStore
from support.jobs import save_as_rank

# Python 3.12 and later warn of what is tested here: a fork of a process with threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.slow,
]

RNG = np.random.default_rng(12)
NOBODY = 65534


def make_state(step: int, size: int = 200_000) -> dict[str, Any]:
    return {"w": np.random.default_rng(step).random(size), "step": step}


def same(found: Any, step: int) -> bool:
    return found["step"] == step and bool(np.array_equal(found["w"], make_state(step)["w"]))


def in_child(check: Callable[[], bool]) -> Callable[[], None]:
    """Fork a child that runs a check; return what waits for it and asserts that it held."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)

    def join() -> None:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0

    return join


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[fwstore.Repository]:
    with fwstore.open(str(tmp_path / "store"), limits=fwstore.Limits(threads=3)) as repository:
        yield repository


def save(run: fwstore.Run, *steps: int) -> None:
    with run.writer() as writer:
        for step in steps:
            writer.save(step, make_state(step)).result(60)


def test_forked_workers_load_while_the_parent_goes_on(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    save(run, 0, 1)
    checkpoint = run[0]
    assert same(checkpoint.load(), 0)
    lazy = checkpoint.tensors["w"]
    joins = [in_child(lambda: same(run[1].load(), 1)) for _ in range(3)]
    joins.append(in_child(lambda: same(checkpoint.load(), 0)))
    joins.append(in_child(lambda: bool((lazy[5:9] == make_state(0)["w"][5:9]).all())))
    save(run, 2)
    assert same(run.latest().load(), 2)
    for join in joins:
        join()


def test_a_child_forked_in_the_middle_of_a_save_reads_and_writes(repo: fwstore.Repository) -> None:
    run = repo.run("run")
    save(run, 0)
    gate = GatedStore(repo.store)
    with run.writer() as writer:
        access = writer._engine.session.access
        object.__setattr__(access.origin, "stores", (gate,))
        gate.shut()
        handle = writer.save(1, make_state(1))
        gate.wait_arrival()

        def work() -> bool:
            gate.open()
            if not same(run[0].load(), 0):
                return False
            save(repo.run("child"), 5)
            return same(repo.run("child")[5].load(), 5)

        join = in_child(work)
        join()
        assert not handle.done()
        gate.open()
        assert handle.result(60) == run[1]
    assert same(run[1].load(), 1)
    assert same(repo.run("child").latest().load(), 5)
    assert repo.pool.statistics().leased_bytes == 0


def test_a_repository_opened_before_it_exists_works_in_children(
    repo: fwstore.Repository, tmp_path: Path
) -> None:
    def work() -> bool:
        save(repo.run("run"), 3)
        return same(repo.run("run").latest().load(), 3)

    in_child(work)()
    assert same(repo.run("run")[3].load(), 3)


def test_a_repository_and_its_runs_pickle_by_their_address(tmp_path: Path) -> None:
    limits = fwstore.Limits(threads=2, pack_bytes=1 << 20)
    key = b"k" * 32
    with fwstore.open(str(tmp_path), site="here", limits=limits, hash_key=key) as repo:
        save(repo.run("run"), 4)
        stored = pickle.dumps((repo, repo.run("run")))
    again, run = pickle.loads(stored)
    with again:
        assert same(run[4].load(), 4)
        assert again.url == repo.url
        assert again.runtime.limits == limits
        assert same(again.run("run")[4].load(), 4)
        save(again.run("run"), 5)
    with pytest.raises(fwstore.Unsupported):
        fwstore.open(str(tmp_path))


def test_an_unprivileged_process_loads_but_cannot_save() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with fwstore.open(folder) as repo:
            save(repo.run("run"), 0)
        for path in Path(folder).rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)

        def work() -> bool:
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            with fwstore.open(folder) as repo:
                run = repo.run("run")
                if not same(run.latest().load(), 0):
                    return False
                try:
                    run.writer()
                except fwstore.PermissionDenied:
                    return len(run.checkpoints()) == 1
                return False

        in_child(work)()
        for path in [Path(folder), *Path(folder).rglob("*")]:
            path.chmod(0o755)


def of_boxes(array: np.ndarray[Any, Any], boxes: Iterable[Box]) -> Shard:
    """What a rank holds that has some boxes of an array, each in memory of its own."""
    pieces = tuple(Piece(box, np.ascontiguousarray(array[box.slices()])) for box in boxes)
    return Shard(array.dtype.name, array.shape, pieces)


def heads(world_size: int, rank: int) -> list[Box]:
    """A rank's heads of a fused query-key-value matrix: one box of each of the three."""
    low, high = 512 * rank // world_size, 512 * (rank + 1) // world_size
    return [Box((third * 512 + low, 0), (high - low, 64)) for third in range(3)]


def flat_range(world_size: int, rank: int) -> tuple[Box, ...]:
    """A rank's equal part of the flattened elements, as trainers with flat parameters have it."""
    count = 1536 * 64
    return flat_boxes((1536, 64), count * rank // world_size, count * (rank + 1) // world_size)


@pytest.mark.parametrize("boxes", [heads, flat_range])
def test_ranks_with_several_boxes_move_between_worlds(
    tmp_path: Path, boxes: Callable[[int, int], Iterable[Box]]
) -> None:
    array = RNG.random((1536, 64))

    def load(job: ThreadJob, rank: int) -> bool:
        mine = boxes(len(job.ranks), rank)
        into = {"w": of_boxes(np.zeros_like(array), mine)}
        job.repositories[rank].run("run").latest().load(into=into)
        return all(
            np.array_equal(np.asarray(piece.array).view(array.dtype), array[piece.box.slices()])
            for piece in into["w"].pieces
        )

    for step, world in enumerate((2, 3, 4, 1)):
        with ThreadJob(str(tmp_path), world) as job:
            assert step == 0 or all(job.each_rank(partial(load, job)))
            array += 1
            job.save(step, [{"w": of_boxes(array, boxes(world, rank))} for rank in job.ranks])
    with fwstore.open(str(tmp_path)) as repo:
        assert np.array_equal(repo.run("run")[3].load()["w"], array)


def test_boxes_that_overlap_or_leave_a_hole_are_refused_on_all_ranks(tmp_path: Path) -> None:
    array = RNG.random((8, 2))
    with ThreadJob(str(tmp_path), 2) as job:
        for low, high in ((3, 4), (5, 4)):
            parts = [Box((0, 0), (low, 2)), Box((high, 0), (8 - high, 2))]
            found = job.try_save(0, [{"w": of_boxes(array, [box])} for box in parts])
            assert [type(error) for error in found] == [fwstore.InvalidInput] * 2
            assert all("exactly once" in str(error) for error in found)
        job.save(0, [{"w": of_boxes(array, [Box((4 * r, 0), (4, 2))])} for r in job.ranks])
        assert np.array_equal(job.repositories[1].run("run")[0].load()["w"], array)


@pytest.mark.dist
def test_ranks_without_torch_meet_in_the_store(tmp_path: Path) -> None:
    """Three processes that share nothing but a directory and a job id save and go on together."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        jobs = [pool.apply_async(save_as_rank, (str(tmp_path), r, 3, "job-1")) for r in range(3)]
        written = [job.get(90) for job in jobs]
    with fwstore.open(str(tmp_path)) as repo:
        run = repo.run("run")
        assert [c.step for c in run.checkpoints()] == [0, 1]
        for step in (0, 1):
            found = run[step].load()
            assert (found["rows"] == np.arange(9)[:, None] + step).all()
            assert np.array_equal(found["same"], make_state(step, 600_000)["w"])
            assert [run[step].per_rank(rank) for rank in range(3)] == [10, 11, 12]
        messages = [found.key for found in repo.store.list("meta/") if "/_coord/" in found.key]
        assert not [key for key in messages if "/part/" in key]
    share = 600_000 * 8 / 3
    assert all(0.8 * share <= count <= 1.2 * share + 5000 for count in written)
