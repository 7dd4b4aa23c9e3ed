"""The benchmark of GPUs where there is none: it says so, and what it makes of seconds is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import cuda
from benchmarks.peers import PEERS
from benchmarks.peers.base import Peer, done


def test_it_says_that_it_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cuda.main()
    assert "needs a GPU" in capsys.readouterr().out


def test_it_measures_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "run", asked.append)
    cuda.main()
    assert asked == [cuda.QUESTION]


def test_bandwidth_counts_until_the_last_byte_has_left() -> None:
    figures = cuda.figures(first=0.5, later=0.1, staged=0.2, durable=1.0, size=4_000_000_000)
    assert figures == {
        "first_blocked_s": 0.5,
        "blocked_s": 0.1,
        "staged_s_per_gb": pytest.approx(0.05),
        "durable_s": 1.0,
    }
    assert figures.keys() == {figure.name for figure in cuda.QUESTION.figures}


def test_peers_without_lazy_staging_have_staged_when_they_return() -> None:
    class Plain(Peer):
        def save(self, state: Any, step: int) -> Any:
            return done

        def load(self, into: Any, step: int) -> None:
            raise NotImplementedError

    assert Plain().staged() is done
    assert set(cuda.QUESTION.subjects) <= PEERS.keys()
