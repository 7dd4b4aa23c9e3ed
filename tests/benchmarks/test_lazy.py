"""What the benchmark of lazy staging makes of the seconds that it measured, and what it trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import lazy
from benchmarks.common.state import size_of


def test_steps_are_compared_with_those_without_a_save() -> None:
    steps = lazy.Steps(
        alone=[1.0, 1.1, 0.9],
        staged=[9.0, 1.2, 1.4],
        later=[[9.0, 9.0], [1.1, 1.3], [1.5]],
        calls=[9.0, 0.01, 0.03],
        waits=[9.0, 0.0, 0.2],
    )
    assert steps.figures() == pytest.approx(
        {
            "staged": 1.3,
            "durable": 1.3,
            "lost_ms": 1e3 * (0.6 + 0.9) / 2,
            "call_ms": 20.0,
            "wait_ms": 100.0,
            "step_ms": 1000.0,
        }
    )


def test_a_save_that_is_durable_within_its_first_step_disturbs_no_other() -> None:
    steps = lazy.Steps([2.0], [9.0, 2.0], [[9.0], []], [0.0, 0.0], [0.0, 0.0])
    assert steps.figures()["durable"] == 1.0
    assert steps.figures()["lost_ms"] == 0.0


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> lazy.Loop:
    monkeypatch.setattr(lazy, "WIDTH", 32)
    monkeypatch.setattr(lazy, "BYTES_PER_LAYER", 12 * 32 * 32 * 12)
    monkeypatch.setattr(lazy, "TOKENS", 4)
    return lazy.Loop(1_000_000)


def test_the_state_has_about_the_size_that_was_asked_for(loop: lazy.Loop) -> None:
    assert size_of(loop.tensors()) == pytest.approx(1_000_000, rel=0.1)


@pytest.mark.parametrize("subject", lazy.SAVERS)
def test_every_sixth_step_is_saved_and_changes_nothing(
    tmp_path: Path, loop: lazy.Loop, subject: str
) -> None:
    trial: Any = SimpleNamespace(folder=tmp_path)
    with lazy.SAVERS[subject](trial, loop) as begin:
        for number in range(1, 2 * lazy.EVERY):
            before = {name: value.clone() for name, value in loop.tensors().items()}
            ticket = begin(number)
            assert (ticket is not None) == (number == lazy.EVERY and subject != "without saving")
            assert all(torch.equal(before[name], v) for name, v in loop.tensors().items())
            loop.train()
            assert ticket is None or ticket.waited() >= 0
    assert any(tmp_path.iterdir()) == (subject != "without saving")
