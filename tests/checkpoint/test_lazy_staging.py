"""Copies that go on after `save` returned: what they may read, until when, and what ends them."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwstore
from fwstore import Fenced, InternalError, InvalidInput, Shard, Unavailable
from fwstore.base.units import MIB
from fwstore.sched import BufferPool
from fwstore.store import memory
from support.coordinators import ThreadJob
from support.gates import GatedStore, packs
from support.held import HeldArray

PATIENCE_S = 60.0


@pytest.fixture
def held() -> Iterator[HeldArray]:
    array = HeldArray(np.arange(50_000.0))
    yield array
    array.gate.set()


@pytest.fixture
def gated(repo: fwstore.Repository) -> Iterator[GatedStore]:
    """The store of the repository, with a gate before its packs."""
    gate = GatedStore(repo.store, packs)
    repo.store = gate
    yield gate
    gate.open()


def loaded(run: fwstore.Run, step: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = run[step].load()
    return found


def test_plain_values_are_taken_at_once_and_tensors_until_they_are_staged(
    run: fwstore.Run, repo: fwstore.Repository, held: HeldArray, gated: GatedStore
) -> None:
    words, position, plain = ["before"], {"sample": 5}, np.ones(1000)
    gated.shut()
    with run.writer() as writer:
        state = {"w": held.shard, "v": plain[::2], "words": words}
        handle = writer.save(0, state, position=position, metrics={"loss": 1.0}, staging="lazy")
        words.append("after")
        position["sample"] = 6
        held.wait_arrival()
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"step 0 are still being copied after 0\.001 s"):
                handle.wait_staged(0.001)
        assert not handle.done()
        held.gate.set()
        handle.wait_staged()
        held.array[:], plain[:] = 0, 0
        gated.wait_arrival()
        assert not handle.done()
        gated.open()
        checkpoint = handle.result(PATIENCE_S)
        handle.wait_staged()
    assert checkpoint is not None
    assert (checkpoint.position, checkpoint.metrics) == ({"sample": 5}, {"loss": 1.0})
    found = loaded(run)
    assert found["words"] == ["before"]
    assert np.array_equal(found["w"], np.arange(50_000.0))
    assert (found["v"] == 1).all()
    assert handle.statistics().rank_bytes_staged == 404_000
    assert repo.pool.statistics().leased_bytes == 0


def test_a_function_says_what_may_be_copied_late(run: fwstore.Run, held: HeldArray) -> None:
    at_once, late = np.arange(300.0), np.arange(300.0)
    asked = []

    def is_late(value: Any) -> bool:
        asked.append(value)
        return isinstance(value, Shard) or value is late

    # By path, late tensors stand between those that are copied at once.
    state = {"a": at_once, "b": held.shard, "c": at_once[::2], "d": late, "tied": at_once, "n": 1}
    with run.writer() as writer:
        handle = writer.save(0, state, staging=is_late)
        at_once[:] = -1
        held.gate.set()
        handle.wait_staged()
        late[:], held.array[:] = -1, 0
        handle.result(PATIENCE_S)
    assert len(asked) == 4
    found = loaded(run)
    assert np.array_equal(found["b"], np.arange(50_000.0))
    assert np.array_equal(found["c"], np.arange(300.0)[::2])
    for name in ("a", "d", "tied"):
        assert np.array_equal(found[name], np.arange(300.0))


@pytest.mark.parametrize("staging", ["eager", "lazy", lambda _: True])
def test_only_lazy_staging_has_to_be_waited_for(run: fwstore.Run, staging: Any) -> None:
    with run.writer() as writer:
        handle = writer.save(0, {"w": np.zeros(3)}, staging=staging)
        handle.wait_staged(0 if staging == "eager" else PATIENCE_S)
        handle = writer.save(1, {"plain": 1}, staging=staging)
        handle.wait_staged(0)
        odd: tuple[Any, ...] = ("late", None, 1)
        for wrong in odd:
            with pytest.raises(InvalidInput, match="staging is 'eager', 'lazy' or a function"):
                writer.save(2, {"w": np.zeros(3)}, staging=wrong)
    assert loaded(run)["w"].tolist() == [0, 0, 0]


def test_what_is_not_staged_is_not_copied_late(url: str, held: HeldArray) -> None:
    held.gate.set()
    with fwstore.open(url) as repo, repo.run("run").writer() as writer:
        handle = writer.save(0, {"w": held.shard}, staging="lazy", blocking=True)
        assert handle.done()
        handle.wait_staged(0)
    limits = fwstore.Limits(threads=2, staging_bytes=1000)
    with fwstore.open(url, limits=limits) as repo, repo.run("run").writer() as writer:
        assert writer.save(1, {"w": held.shard}, staging="lazy").done()
        few = writer.save(2, {"w": np.ones(10)}, staging="lazy")
        few.result(PATIENCE_S)
        assert few.statistics().rank_bytes_staged == 80


@pytest.mark.parametrize("staging", ["eager", "lazy"])
def test_a_save_waits_until_the_tensors_of_the_one_before_are_copied(
    run: fwstore.Run, held: HeldArray, staging: Any
) -> None:
    with run.writer() as writer:
        writer.save(0, {"w": held.shard}, staging="lazy")
        held.wait_arrival()
        skipped = writer.save(1, {"v": np.zeros(3)}, on_busy="skip")
        skipped.wait_staged(0)
        opener = threading.Timer(0.05, held.gate.set)
        opener.start()
        handle = writer.save(2, {"v": np.zeros(3)}, staging=staging)
        assert held.copied == 1
        handle.wait_staged()
        assert handle.statistics().blocked_s >= 0.04
        opener.join()
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 2]


def test_unchanged_tensors_are_compared_before_they_may_change(
    run: fwstore.Run, held: HeldArray
) -> None:
    held.gate.set()
    frozen, hot = np.arange(40_000.0), np.zeros(40_000)
    figures = []
    with run.writer() as writer:
        for step in range(4):
            frozen[:] = np.arange(40_000.0)
            hot[:] = step
            state = {"frozen": frozen, "held": held.shard, "hot": hot}
            handle = writer.save(step, state, staging="lazy")
            handle.wait_staged()
            frozen[:], hot[:] = -1, -1
            handle.result(PATIENCE_S)
            figures.append(handle.statistics())
    # The first save learns that nothing is known, the second that something did not change.
    assert [found.rank_bytes_staged for found in figures] == [
        1_040_000,
        1_040_000,
        320_000,
        320_000,
    ]
    assert figures[-1].bytes_reused == 720_000
    for step in range(4):
        found = loaded(run, step)
        assert np.array_equal(found["frozen"], np.arange(40_000.0))
        assert np.array_equal(found["held"], np.arange(50_000.0))
        assert (found["hot"] == step).all()


def test_a_copy_that_fails_fails_the_save_and_the_next_one_works(
    run: fwstore.Run, repo: fwstore.Repository, held: HeldArray
) -> None:
    held.gate.set()
    held.error = InternalError("the device is lost")
    state = {"a": np.ones(1000), "w": held.shard}
    with run.writer() as writer:
        handle = writer.save(0, state, staging=lambda value: isinstance(value, Shard))
        for _ in range(2):
            with pytest.raises(InternalError, match="lost"):
                handle.wait_staged()
        with pytest.raises(InternalError, match="lost"):
            handle.result(PATIENCE_S)
        writer.wait()
        assert repo.pool.statistics().leased_bytes == 0
        held.error = None
        writer.save(0, state, staging="lazy").result(PATIENCE_S)
    assert np.array_equal(loaded(run)["w"], np.arange(50_000.0))


def test_there_may_be_no_memory_for_late_copies(run: fwstore.Run, repo: fwstore.Repository) -> None:
    def refuse(size_bytes: int) -> memoryview:
        raise MemoryError

    repo.pool = BufferPool(refuse)
    with run.writer() as writer, warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        handle = writer.save(0, {"w": np.ones(1000)}, staging="lazy")
        with pytest.raises(fwstore.LimitExceeded, match=r"8000 bytes.*blocking=True"):
            handle.wait_staged()
    assert run.latest(default=None) is None


def test_a_failed_copy_ends_the_save_on_all_ranks_at_once(url: str, held: HeldArray) -> None:
    def save(job: ThreadJob, rank: int) -> BaseException | None:
        own = HeldArray(np.ones(9), held=False)
        state = {"w": np.ones((4, 100)), f"own {rank}": own.shard, "plain": 1}
        handles = []
        for step in range(3):
            lost = InternalError("the device is lost") if (step, rank) == (1, 1) else None
            own.error = lost
            handle = job.writers[rank].save(step, state, staging="lazy")
            if lost is not None:
                with pytest.raises(InternalError, match="lost"):
                    handle.wait_staged()
            handles.append(handle)
            job.writers[rank].wait()
        assert handles[0].exception() is None
        return handles[1].exception()

    with ThreadJob(url, 2) as job:
        errors = job.each_rank(partial(save, job))
    assert [type(error) for error in errors] == [InternalError, InternalError]
    with fwstore.open(url) as repo:
        assert [checkpoint.step for checkpoint in repo.run("run").checkpoints()] == [0, 2]


def test_an_older_writer_is_fenced_whose_tensors_are_still_being_copied(
    run: fwstore.Run, repo: fwstore.Repository, held: HeldArray
) -> None:
    older = run.writer()
    handle = older.save(0, {"w": held.shard}, staging="lazy")
    held.wait_arrival()
    newer = run.writer()
    held.gate.set()
    handle.wait_staged()
    with pytest.raises(Fenced):
        handle.result(PATIENCE_S)
    with pytest.raises(Fenced):
        older.save(1, {"w": held.shard}, staging="lazy")
    older.close()
    newer.close()
    assert run.latest(default=None) is None
    assert repo.pool.statistics().leased_bytes == 0


@pytest.mark.parametrize("earlier", [0, 3])
def test_a_wait_that_is_interrupted_gives_the_save_up_and_leaves_no_reader(
    run: fwstore.Run,
    repo: fwstore.Repository,
    held: HeldArray,
    monkeypatch: pytest.MonkeyPatch,
    earlier: int,
) -> None:
    def interrupted(timeout: float | None) -> None:
        held.wait_arrival()
        # The caller goes on only when this copy, which has begun, has ended.
        threading.Timer(0.05, held.gate.set).start()
        raise KeyboardInterrupt

    state = {"v": np.ones(2 * MIB), "w": held.shard}
    with run.writer() as writer:
        held.gate.set()
        for step in range(1, 1 + earlier):
            # After these the tensors are compared and not copied, and nothing is left to be written.
            writer.save(step, state, staging="lazy").result(PATIENCE_S)
        held.gate.clear()
        held.arrived.clear()
        handle = writer.save(0, state, staging="lazy")
        with monkeypatch.context() as patch:
            patch.setattr(writer._savings[-1].staged, "exception", interrupted)
            with pytest.raises(KeyboardInterrupt):
                handle.wait_staged()
        staged = writer._savings[-1].staged
        assert staged.done()
        assert isinstance(staged.exception(), Unavailable)
        held.array[:] = 0
        writer.wait()
        with pytest.raises(Unavailable, match="step 0 was interrupted by its caller"):
            handle.result(PATIENCE_S)
        assert repo.pool.statistics().leased_bytes == 0
        assert len(run.checkpoints()) == earlier
        writer.save(0, {"w": held.shard}, staging="lazy").result(PATIENCE_S)
    assert not loaded(run)["w"].any()


def test_a_save_that_cannot_begin_leaves_nothing(url: str) -> None:
    repo = fwstore.open(url)
    writer = repo.run("run").writer()
    repo.close()
    with pytest.raises(InvalidInput, match="closed"):
        writer.save(0, {"w": np.ones(1000)}, staging="lazy")
    writer.close()
    assert repo.pool.statistics().leased_bytes == 0


def test_every_wait_is_counted(run: fwstore.Run, held: HeldArray) -> None:
    with run.writer() as writer:
        handle = writer.save(0, {"w": held.shard}, staging="lazy")
        before = handle.statistics().blocked_s
        for _ in range(2):
            with pytest.raises(Unavailable):
                handle.wait_staged(0.03)
        assert handle.statistics().blocked_s >= before + 0.06
        held.gate.set()
        handle.result(PATIENCE_S)
        handle.wait_staged()
        assert handle.statistics().blocked_s < handle.statistics().durable_s


geometry = st.sampled_from(["whole", "strided", "turned", "part"])
steps = st.lists(
    st.tuples(
        st.sets(st.integers(0, 4)), st.sampled_from(["eager", "lazy", "some"]), st.booleans()
    ),
    min_size=1,
    max_size=5,
)


def some(value: np.ndarray[Any, Any]) -> bool:
    return value.flags.c_contiguous


def view_of(array: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    views = {"whole": array, "strided": array[::2, ::3], "turned": array.T, "part": array[1:]}
    return views[kind]


@pytest.fixture(scope="module")
def runs() -> Iterator[Iterator[fwstore.Run]]:
    """Runs of one repository, each a new one."""
    with fwstore.open("memory://lazy-staging", limits=fwstore.Limits(threads=2)) as repository:
        yield (repository.run(f"run-{number}") for number in itertools.count())
    memory._shared.pop("lazy-staging")


@given(st.lists(geometry, min_size=5, max_size=5), steps, st.integers(0, 2**32))
def test_no_change_after_the_wait_shows_in_a_checkpoint(
    runs: Iterator[fwstore.Run],
    kinds: list[str],
    calls: list[tuple[set[int], Any, bool]],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 9, (40, 300)) for _ in kinds]
    expected, run = [], next(runs)
    with run.writer() as writer:
        for step, (changed, staging, wait) in enumerate(calls):
            values = [array.copy() for array in arrays]
            views = [view_of(a, kind) for a, kind in zip(arrays, kinds, strict=True)]
            state = {str(number): view for number, view in enumerate(views)}
            handle = writer.save(step, state, staging=some if staging == "some" else staging)
            handle.wait_staged()
            expected.append({name: value.copy() for name, value in state.items()})
            for array in arrays:
                array[...] = -step
            if wait:
                handle.result(PATIENCE_S)
            for number, array in enumerate(arrays):
                array[...] = (
                    rng.integers(0, 9, array.shape) if number in changed else values[number]
                )
        writer.wait()
        for step, state in enumerate(expected):
            found = run[step].load()
            assert all(np.array_equal(found[name], value) for name, value in state.items())
