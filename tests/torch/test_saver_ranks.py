"""Real jobs of gloo ranks save, stop and resume on other numbers of ranks, and lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import fwstore
from support import torch_jobs
from support.ranks import run_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.parametrize(("every", "staging"), [(2, "eager"), (1, "lazy")])
def test_two_ranks_then_three_then_one_train_as_one_job(
    tmp_path: Path, every: int, staging: str
) -> None:
    (whole,) = run_ranks(1, torch_jobs.train_to, str(tmp_path / "whole"), 9)
    url = str(tmp_path / "parts")
    losses: dict[int, float] = {}
    for world_size, total in ((2, 4), (3, 7), (1, 9)):
        of_ranks = run_ranks(world_size, torch_jobs.train_to, url, total, every, staging)
        assert all(rank == of_ranks[0] for rank in of_ranks)
        assert not losses.keys() & of_ranks[0].keys()
        losses |= of_ranks[0]
    assert losses == pytest.approx(whole, rel=1e-5)
    newest = fwstore.open(url).run("job").latest()
    assert newest.step == 8
    assert newest.metrics["loss"] == pytest.approx(losses[8])
    assert newest.state()["samples"]["next"] == 9 * torch_jobs.BATCH


@pytest.mark.parametrize(
    "signals", [{1: [3]}, {0: [2], 1: [4]}, {0: [3, 3]}], ids=["one rank", "two steps", "twice"]
)
def test_all_ranks_stop_at_one_saved_step(tmp_path: Path, signals: dict[int, list[int]]) -> None:
    url = str(tmp_path)
    first, second = run_ranks(2, torch_jobs.train_until_signalled, url, signals)
    assert first == second
    step, saved, code = first
    assert saved
    assert code == 143
    assert step >= min(s for steps in signals.values() for s in steps)
    assert fwstore.open(url).run("job").latest().step == step


def test_shards_of_parameters_and_their_states_are_copied_late() -> None:
    first, second = run_ranks(2, torch_jobs.late_tensors)
    names = {f"{layer}.{kind}" for layer in (0, 2, 3) for kind in ("weight", "bias")}
    states = {f"{n}/{key}" for n in names for key in ("step", "exp_avg", "exp_avg_sq")}
    assert first == names | states
    # The only row of the last layer is on the first rank.
    assert second == {n for n in first if not n.startswith("3.") or n.endswith("/step")}


def test_a_dead_rank_hangs_nobody(tmp_path: Path) -> None:
    (answer,) = run_ranks(2, torch_jobs.die_while_others_stop, str(tmp_path), survivors=[0])
    assert answer[1] is False


def test_timed_saves_meet_at_one_step(tmp_path: Path) -> None:
    first, second = run_ranks(2, torch_jobs.save_on_a_timer, str(tmp_path), 5000)
    assert first == second
    assert len(first) == 2


def test_stages_of_a_pipeline_come_back_to_their_ranks(tmp_path: Path) -> None:
    assert run_ranks(2, torch_jobs.train_stages, str(tmp_path)) == [True, True]


def test_replicas_along_another_mesh_dimension(tmp_path: Path) -> None:
    assert run_ranks(4, torch_jobs.save_on_parts_of_a_mesh, str(tmp_path)) == [True] * 4
