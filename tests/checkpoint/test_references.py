"""Checkpoints that a run builds on: whose they may be, and what of them is taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import InvalidInput


@pytest.fixture
def base(repo: fwstore.Repository) -> fwstore.Checkpoint:
    """A checkpoint with everything that is stored beside the tensors of the user."""
    state = {"w": np.arange(1000.0), "notes": ["a long plain state"] * 10_000}
    with repo.run("base").writer() as writer:
        writer.save(7, state, per_rank={"seed": 3}).result()
    return repo.run("base")[7]


@pytest.mark.parametrize("option", ["bases", "references"])
def test_a_checkpoint_of_another_repository_is_refused(
    base: fwstore.Checkpoint, option: str, tmp_path: Path
) -> None:
    # The bytes stand in the other store, where this run's readers would never look.
    given: dict[str, Any] = {"bases": [base], "references": {"reference": base}}
    options = {option: given[option]}
    with fwstore.open(str(tmp_path / "another")) as other:
        with pytest.raises(InvalidInput, match="another"):
            other.run("base").writer(**options)
        assert not other.run("base").exists()
        with other.run("base").writer() as writer:
            writer.save(7, {"w": np.arange(1000.0)}).result()
        # A run of the same name does not make it the same run.
        with pytest.raises(InvalidInput, match="another"):
            other.run("child").writer(**options)


def test_a_reference_brings_the_tensors_of_the_user_alone(
    repo: fwstore.Repository, base: fwstore.Checkpoint
) -> None:
    with repo.run("child").writer(references={"reference": base}) as writer:
        writer.save(0, {"x": np.zeros(3)}, per_rank={"seed": 4}).result()
    child = repo.run("child")[0]
    assert set(child.tensors) == {("x",), ("reference", "w")}
    assert child.load()["reference"].keys() == {"w"}
    assert child.per_rank(0) == {"seed": 4}


def test_a_fork_takes_the_values_of_ranks_and_a_long_plain_state_too(
    repo: fwstore.Repository, base: fwstore.Checkpoint
) -> None:
    fork = repo.run("base").fork("fork")[7]
    assert fork.per_rank(0) == {"seed": 3}
    assert fork.load()["notes"] == base.load()["notes"]
