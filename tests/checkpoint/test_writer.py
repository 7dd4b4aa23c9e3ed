"""Saving in the background: what may change when, what commits in which order, and what failures leave."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import AlreadyExists, Fenced, InvalidInput, LimitExceeded, Unavailable
from fwstore.base.config import POSITION_BYTES_MAX
from fwstore.base.units import MIB
from fwstore.format.state import encode_state
from support.gates import GatedStore, commits, packs

PATIENCE_S = 60.0


def small(value: float = 0.0) -> dict[str, Any]:
    return {"w": np.full(4, value), "plain": value}


def steps_of(run: fwstore.Run) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


@pytest.fixture
def gated(repo: fwstore.Repository) -> Iterator[GatedStore]:
    """The store of the repository, with a gate before its packs."""
    gate = GatedStore(repo.store, packs)
    repo.store = gate
    yield gate
    gate.open()


def test_the_state_may_change_as_soon_as_save_returns(run: fwstore.Run, gated: GatedStore) -> None:
    array, words, metrics = np.arange(200_000.0), ["before"], {"loss": 1.0}
    view = np.zeros((300, 300), np.float32)[::2, ::3]
    view[:] = 7
    position, own = {"sample": 5}, [1, 2]
    with run.writer() as writer:
        gated.shut()
        handle = writer.save(
            0,
            {"w": array, "v": view, "words": words},
            metrics=metrics,
            position=position,
            per_rank=own,
        )
        gated.wait_arrival()
        array[:], view[:] = -1, -1
        words.append("after")
        position["sample"], metrics["loss"] = 6, 2.0
        own.append(3)
        assert not handle.done()
        gated.open()
        checkpoint = handle.result(PATIENCE_S)
    assert checkpoint is not None
    found = checkpoint.load()
    assert np.array_equal(found["w"], np.arange(200_000.0))
    assert (found["v"] == 7).all()
    assert found["words"] == ["before"]
    assert checkpoint.position == {"sample": 5}
    assert checkpoint.per_rank(0) == [1, 2]
    assert checkpoint.metrics == {"loss": 1.0}


def test_a_blocking_save_copies_nothing_and_returns_when_it_is_durable(run: fwstore.Run) -> None:
    array = np.arange(100_000.0)
    with run.writer() as writer:
        handle = writer.save(3, {"w": array, "v": array[::-1]}, blocking=True)
        assert handle.done()
        array[:] = 0
        assert handle.statistics().rank_bytes_staged == 0
    found = run[3].load()
    assert np.array_equal(found["w"], np.arange(100_000.0))
    assert np.array_equal(found["v"], np.arange(100_000.0)[::-1])


def test_a_state_beyond_the_staging_limit_is_written_from_live_memory(url: str) -> None:
    limits = fwstore.Limits(threads=2, staging_bytes=1000)
    with fwstore.open(url, limits=limits) as repo, repo.run("run").writer() as writer:
        large = writer.save(0, {"w": np.zeros(1000)})
        assert large.done()
        assert large.statistics().rank_bytes_staged == 0
        few = writer.save(1, {"w": np.ones(10)})
        few.result(PATIENCE_S)
        assert few.statistics().rank_bytes_staged == 80


def test_one_save_uploads_and_one_waits_staged(run: fwstore.Run, gated: GatedStore) -> None:
    with run.writer() as writer:
        gated.shut()
        first = writer.save(1, small(1))
        second = writer.save(2, small(2))
        entered, left = threading.Event(), threading.Event()

        def save_third() -> None:
            entered.set()
            writer.save(3, small(3))
            left.set()

        third = threading.Thread(target=save_third, daemon=True)
        third.start()
        assert entered.wait(PATIENCE_S)
        assert not left.wait(0.05)
        assert not first.done()
        assert not second.done()
        gated.open()
        assert left.wait(PATIENCE_S)
        third.join(PATIENCE_S)
    assert steps_of(run) == [1, 2, 3]
    assert [run[step].load()["plain"] for step in (1, 2, 3)] == [1, 2, 3]


def test_a_busy_writer_skips_when_told_to(run: fwstore.Run, gated: GatedStore) -> None:
    with run.writer() as writer:
        gated.shut()
        first = writer.save(1, small(1), on_busy="skip")
        skipped = writer.save(2, small(2), on_busy="skip")
        assert skipped.skipped
        assert skipped.result() is None
        assert not first.skipped
        gated.open()
        first.result(PATIENCE_S)
        assert not first.skipped
        assert writer.save(2, small(2), on_busy="skip").result(PATIENCE_S) is not None
    assert steps_of(run) == [1, 2]


def test_saves_commit_in_the_order_of_the_calls(run: fwstore.Run, repo: fwstore.Repository) -> None:
    gate = GatedStore(repo.store, commits)
    repo.store = gate
    with run.writer() as writer:
        for step in (7, 3, 9):
            gate.shut()
            handle = writer.save(step, small(step))
            gate.wait_arrival()
            other = writer.save(step + 100, small(step))
            gate.open()
            other.result(PATIENCE_S)
            assert handle.done()
    newest_first = [run.latest()]
    while newest_first[-1].parent is not None:
        newest_first.append(next(c for c in run.checkpoints() if c.id == newest_first[-1].parent))
    assert [c.step for c in reversed(newest_first)] == [7, 107, 3, 103, 9, 109]


def test_many_small_saves_in_a_row(run: fwstore.Run) -> None:
    with run.writer() as writer:
        handles = [writer.save(step, small(step)) for step in range(60)]
    assert all(handle.result() is not None for handle in handles)
    assert steps_of(run) == list(range(60))


def test_waiting_has_a_deadline_and_the_save_goes_on(run: fwstore.Run, gated: GatedStore) -> None:
    with run.writer() as writer:
        gated.shut()
        handle = writer.save(1, small())
        with pytest.raises(Unavailable, match="step 1 has not ended"):
            handle.result(0.001)
        assert handle.exception() is None
        gated.open()
        assert handle.result(PATIENCE_S) == run[1]
        assert handle.step == 1


def test_a_closed_writer_refuses_and_closing_again_does_nothing(run: fwstore.Run) -> None:
    writer = run.writer()
    handle = writer.save(0, small())
    writer.close()
    assert handle.done()
    assert writer.closed
    writer.close()
    with pytest.raises(InvalidInput, match="closed"):
        writer.save(1, small())
    assert steps_of(run) == [0]


def test_a_writer_of_a_closed_repository_refuses_and_can_still_be_closed(url: str) -> None:
    repo = fwstore.open(url)
    writer = repo.run("run").writer()
    writer.save(0, small()).result(PATIENCE_S)
    repo.close()
    for step in (1, 2):
        with pytest.raises(InvalidInput, match="closed"):
            writer.save(step, small(), blocking=step == 1)
    writer.close()
    assert repo.pool.statistics().leased_bytes == 0


@pytest.mark.parametrize("step", [-1, 1.0, True, None, "1", 10**15, np.int64(3)])
def test_steps_are_whole_numbers(run: fwstore.Run, step: Any) -> None:
    with run.writer() as writer, pytest.raises(InvalidInput, match="step"):
        writer.save(step, small())


def test_a_step_is_saved_once_per_job(run: fwstore.Run) -> None:
    with run.writer() as writer:
        writer.save(5, small(1)).result(PATIENCE_S)
        with pytest.raises(AlreadyExists, match="step 5"):
            writer.save(5, small(2))
        writer.save(6, small(3)).result(PATIENCE_S)
    with run.writer() as writer:
        writer.save(5, small(4)).result(PATIENCE_S)
    assert run[5].load()["plain"] == 4
    assert run.latest().step == 6
    assert sorted(c.term for c in run.checkpoints()) == [1, 2]


def test_metrics_may_be_anything_that_a_loss_becomes(run: fwstore.Run) -> None:
    metrics: dict[str, Any] = {"nan": math.nan, "inf": math.inf, "low": -math.inf}
    metrics |= {"whole": 3, "single": np.float32(0.5), "array": np.array(2.0), "big": 10**400}
    with run.writer() as writer:
        with pytest.raises(InvalidInput, match="big"):
            writer.save(0, small(), metrics=metrics)
        del metrics["big"]
        writer.save(0, small(), metrics=metrics).result(PATIENCE_S)
        odd: tuple[Any, ...] = (
            {"loss": "low"},
            {1: 2.0},
            {"loss": None},
            {"loss": [1]},
            ["loss"],
            "loss",
            3,
        )
        for wrong in odd:
            with pytest.raises(InvalidInput, match="metric"):
                writer.save(1, small(), metrics=wrong)
    assert run.latest().metrics == {"whole": 3, "single": 0.5, "array": 2.0}


def test_too_many_metrics_for_a_record_are_told(run: fwstore.Run) -> None:
    metrics = {f"validation/{number}": number / 7 for number in range(2000)}
    with run.writer() as writer:
        with pytest.raises(LimitExceeded, match="metrics"):
            writer.save(0, small(), metrics=metrics).result(PATIENCE_S)
        writer.save(1, small()).result(PATIENCE_S)
    assert steps_of(run) == [1]


def test_a_position_that_no_root_can_hold_is_refused_before_anything_is_staged(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    most = POSITION_BYTES_MAX - len(encode_state(b"")) - 4
    beside: dict[str, Any] = {"plain": "x" * 60_000}
    metrics = {f"validation/{number}": float(number) for number in range(300)}
    with run.writer() as writer:
        for wrong in (bytes(POSITION_BYTES_MAX), {"seen": list(range(100_000))}):
            size = len(encode_state(wrong))
            with pytest.raises(
                LimitExceeded, match=f"position takes {size} .*{POSITION_BYTES_MAX}"
            ):
                writer.save(0, {"w": np.ones(1000)}, position=wrong)
        assert repo.pool.statistics().peak_leased_bytes == 0
        writer.save(0, beside, position=bytes(most), metrics=metrics).result(PATIENCE_S)
    assert run.latest().position == bytes(most)


def test_a_resumed_job_continues_the_history(run: fwstore.Run) -> None:
    with run.writer() as writer:
        assert (writer.term, writer.base, writer.rank, writer.world_size) == (1, None, 0, 1)
        first = writer.save(10, small(1), metrics={"loss": 0.5}).result(PATIENCE_S)
    with run.writer() as writer:
        assert writer.term == 2
        assert writer.base == first
        second = writer.save(20, small(2)).result(PATIENCE_S)
    assert first is not None
    assert second is not None
    assert second.parent == first.id
    assert steps_of(run) == [10, 20]
    assert run.branches() == []


def test_the_older_of_two_writers_is_fenced(run: fwstore.Run) -> None:
    older = run.writer()
    older.save(0, small(0)).result(PATIENCE_S)
    newer = run.writer()
    late = older.save(1, small(1))
    with pytest.raises(Fenced):
        late.result(PATIENCE_S)
    with pytest.raises(Fenced):
        older.save(2, small(2))
    newer.save(1, small(11)).result(PATIENCE_S)
    older.close()
    newer.close()
    assert steps_of(run) == [0, 1]
    assert run[1].load()["plain"] == 11
    assert run[1].term == newer.term


def test_a_fence_ends_the_staged_save_too(run: fwstore.Run, gated: GatedStore) -> None:
    older = run.writer()
    gated.shut()
    handles = [older.save(step, small(step)) for step in (0, 1)]
    run.writer().close()
    gated.open()
    older.wait()
    for handle in handles:
        with pytest.raises(Fenced):
            handle.result(PATIENCE_S)
    assert run.latest(default=None) is None


def test_a_caller_that_is_interrupted_leaves_nothing_behind(
    run: fwstore.Run, gated: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(handle: fwstore.SaveHandle, timeout: float | None = None) -> None:
        gated.wait_arrival()
        raise KeyboardInterrupt

    array = np.ones(100)
    with run.writer() as writer:
        gated.shut()
        with monkeypatch.context() as patch:
            patch.setattr(fwstore.SaveHandle, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.save(0, {"w": array}, blocking=True)
        array[:] = 2
        gated.open()
        writer.wait()
        assert run.latest(default=None) is None
        writer.save(0, {"w": array}).result(PATIENCE_S)
    assert run[0].load()["w"].tolist() == array.tolist()


def test_figures_of_a_save(run: fwstore.Run) -> None:
    frozen, hot = np.random.default_rng(1).random((2, 100_000))
    with run.writer() as writer:
        writer.save(0, {"frozen": frozen, "hot": hot}).result(PATIENCE_S)
        writer.save(1, {"frozen": frozen, "hot": hot + 1}).result(PATIENCE_S)
        handle = writer.save(2, {"frozen": frozen, "hot": hot + 2})
        handle.result(PATIENCE_S)
    found = handle.statistics()
    assert found.step == 2
    assert found.bytes_logical == 1_600_000
    assert 800_000 <= found.bytes_written == found.rank_bytes_written < 820_000
    assert found.bytes_reused == 800_000
    assert found.rank_bytes_staged == 800_000
    assert 0 < found.blocked_s <= found.durable_s
    assert (found.packs, found.chunks, found.fragment_bytes) == (
        2,
        len(run[2].chunks("hot")) * 2,
        0,
    )


def test_pack_names_tell_term_save_and_rank(run: fwstore.Run) -> None:
    with run.writer() as writer:
        writer.save(0, small(0)).result(PATIENCE_S)
        writer.save(1, {"w": np.ones(9)}).result(PATIENCE_S)
    names = [(pack.term, pack.save, pack.rank, pack.lineage) for pack in run[1].packs()]
    assert names == [(1, 2, 0, "run@1")]


def test_large_states_make_several_packs(url: str) -> None:
    limits = fwstore.Limits(
        threads=2, pack_bytes=1 << 20, part_bytes=1 << 18, inflight_bytes=1 << 19
    )
    array = np.random.default_rng(2).random((512, 1024))
    with fwstore.open(url, limits=limits) as repo:
        with repo.run("run").writer() as writer:
            writer.save(0, {"w": array}).result(PATIENCE_S)
        checkpoint = repo.run("run")[0]
        sizes = [pack.size_bytes for pack in checkpoint.packs()]
        assert len(sizes) > 4
        assert max(sizes) <= 1 << 20
        assert np.array_equal(checkpoint.load()["w"], array)


def test_memory_is_made_ready_before_the_first_save(run: fwstore.Run) -> None:
    state: dict[str, Any] = {"w": np.ones(3 << 20), "v": np.ones((1000, 1000))[:, ::2], "plain": 1}
    with run.writer() as writer:
        pool = writer._engine._pool
        writer.warm_up(state)
        mapped = pool.statistics().mapped_bytes
        assert mapped >= state["w"].nbytes
        checkpoint = writer.save(0, state).result(PATIENCE_S)
        assert pool.statistics().mapped_bytes == mapped
    assert checkpoint is not None
    np.testing.assert_array_equal(checkpoint.load()["v"], state["v"])
    with pytest.raises(InvalidInput, match="closed"):
        writer.warm_up(state)


def test_memory_beyond_what_may_be_staged_is_not_made_ready(tmp_path: Path) -> None:
    limits = fwstore.Limits(staging_bytes=MIB)
    with fwstore.open(str(tmp_path), limits=limits) as repo, repo.run("r").writer() as writer:
        writer.warm_up({"w": np.ones(MIB)})
        assert writer._engine._pool.statistics().mapped_bytes == 0


class Settled:
    """Memory that never changes, behind a door of its own."""

    def __init__(self, hidden: np.ndarray[Any, Any], *, stable: bool) -> None:
        self.hidden, self.stable = hidden, stable
        self.dtype, self.shape = hidden.dtype, hidden.shape

    def copy_to_host(self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]) -> None:
        target[...] = self.hidden[slices]

    def copy_from_host(self, slices: tuple[slice, ...], source: np.ndarray[Any, Any]) -> None:
        raise NotImplementedError


def test_what_never_changes_is_not_copied_aside(run: fwstore.Run) -> None:
    hidden = np.arange(600, dtype=np.uint64).reshape(20, 30)

    def held(*, stable: bool) -> fwstore.Shard:
        piece = fwstore.Piece(fwstore.Box.whole(hidden.shape), Settled(hidden, stable=stable))
        return fwstore.Shard("uint64", hidden.shape, (piece,))

    state = {"a": np.ones(8), "b": held(stable=True), "c": held(stable=False), "d": np.ones(9)}
    with run.writer() as writer:
        handle = writer.save(0, state)
        checkpoint = handle.result(PATIENCE_S)
    assert handle.statistics().rank_bytes_staged == (8 + 600 + 9) * 8
    assert checkpoint is not None
    loaded = checkpoint.load()
    for name in "bc":
        np.testing.assert_array_equal(loaded[name], hidden)
