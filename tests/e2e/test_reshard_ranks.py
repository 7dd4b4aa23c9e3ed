"""What real ranks save under any layout is loaded under any layout of any other world, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fwstore
from support import reshard_jobs
from support.ranks import run_ranks

# In one group, so that one worker alone starts the ranks that save.
pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.xdist_group("reshard")]

WORLDS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with one run for every saving world, all layouts in one checkpoint."""
    url = str(tmp_path_factory.mktemp("reshard"))
    for world in WORLDS:
        figures = run_ranks(world, reshard_jobs.save_all, url, f"world{world}")
        of_ranks = [rank for rank, _, _ in figures]
        (written,) = {total for _, total, _ in figures}
        (logical,) = {total for _, _, total in figures}
        assert sum(of_ranks) == written
        assert logical == sum(tensor.nbytes for tensor in saved(url, world).values())
    return url


def saved(url: str, world: int) -> dict[str, torch.Tensor]:
    with fwstore.open(url) as repository:
        state = repository.run(f"world{world}")[0].load()
    return {
        f"{name}/{form}": value for name, forms in state.items() for form, value in forms.items()
    }


def test_one_process_loads_what_every_world_saved(url: str) -> None:
    names = {world: set(saved(url, world)) for world in WORLDS}
    assert len(names[1]) < len(names[2]) == len(names[4])
    for world in WORLDS:
        for name, value in saved(url, world).items():
            layout, _, form = name.rpartition("/")
            assert torch.equal(value, reshard_jobs.whole(layout, form)), (world, name)


@pytest.mark.parametrize("world", WORLDS)
def test_every_world_loads_what_every_world_saved(url: str, world: int) -> None:
    runs = [f"world{saving}" for saving in WORLDS]
    for compared, wrong in run_ranks(world, reshard_jobs.load_all, url, runs):
        assert wrong == []
        # 4 or 9 ways to be saved, as many to be loaded, 2 to 5 tensors each.
        assert compared > (4 + 9 + 4 + 9) * (4 if world % 2 else 9) * 2


def test_slices_of_what_ranks_saved(url: str) -> None:
    with fwstore.open(url) as repository:
        for world in WORLDS:
            for path, lazy in repository.run(f"world{world}")[0].tensors.items():
                full = reshard_jobs.whole(str(path[0]), str(path[1]))
                assert np.array_equal(lazy[1:2, ...], full[1:2]), (world, path)
