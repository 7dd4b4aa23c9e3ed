"""Real gloo ranks of one job at two sites: each saves to the store of its own, and the run goes on at either."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

import fwstore
from support import torch_jobs
from support.ranks import run_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture
def topology(tmp_path: Path) -> str:
    """Two sites that train and a witness, as directories."""
    file = tmp_path / "topology.toml"
    places = {"a": "train", "b": "train", "w": "witness"}
    file.write_text(
        "".join(
            f'[sites.{name}]\nstore = "{tmp_path / name}"\nrole = "{role}"\n'
            for name, role in places.items()
        )
    )
    return str(file)


def train(topology: str, sites: Sequence[str], total: int) -> dict[int, float]:
    of_ranks = run_ranks(len(sites), torch_jobs.train_at, topology, tuple(sites), total)
    assert all(rank == of_ranks[0] for rank in of_ranks)
    losses: dict[int, float] = of_ranks[0]
    return losses


def written_by(store: Path) -> set[str]:
    """The ranks whose packs are at a site."""
    return {pack.name.split("-")[2] for pack in store.glob("packs/**/t*-s*-r*")}


def test_half_of_the_ranks_at_each_site_then_one_of_them_is_lost(
    tmp_path: Path, topology: str
) -> None:
    (whole,) = run_ranks(1, torch_jobs.train_to, str(tmp_path / "whole"), 9)
    losses = train(topology, "aabb", 4)
    assert written_by(tmp_path / "a") == {"r000000", "r000001"}
    assert written_by(tmp_path / "b") == {"r000002", "r000003"}
    # Nothing was copied yet: every rank reads what the other site holds.
    losses |= train(topology, "bba", 6)
    for site in ("a", "b"):
        with fwstore.open(topology, site=site) as repository:
            assert not repository.replicate().troubles
    shutil.rmtree(tmp_path / "a")
    losses |= train(topology, "bb", 9)
    assert losses == pytest.approx(whole, rel=1e-5)
    assert sorted(losses) == list(range(9))
    with fwstore.open(topology, site="b") as repository:
        newest = repository.run("job").latest()
        assert newest.step == 8
        assert newest.state()["samples"]["next"] == 9 * torch_jobs.BATCH
