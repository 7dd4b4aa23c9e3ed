"""Saves of tensors on a GPU: the bits of one moment, and nothing waits for more than its own copies."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fwstore
from fwstore_torch import Saver
from fwstore_torch.device import raw_view
from fwstore_torch.tensors import DTYPES
from support import torch_jobs
from support.ranks import run_ranks

pytestmark = pytest.mark.gpu

CUDA: Any = torch.cuda

PATIENCE_S = 60.0
# Some seconds of a stream's time; a save of these small states takes milliseconds.
LONG = 5_000_000_000


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """Begin and end with a device that has nothing to do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf")
        CUDA.synchronize()
        yield
    CUDA.synchronize()


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[fwstore.Repository]:
    with fwstore.open(tmp_path, limits=fwstore.Limits(threads=4)) as repository:
        yield repository


def random_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = dtype.itemsize * int(np.prod(shape))
    content = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return content.view(dtype).reshape(shape)


def bits(value: torch.Tensor) -> bytes:
    raw: bytes = raw_view(value.detach()).cpu().contiguous().numpy().tobytes()
    return raw


def geometries(value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "whole": value,
        "turned": value.T,
        "part": value[3:40, 5:],
        "strided": value[::3, 1::2],
        "expanded": value[:1].expand(9, value.shape[1]),
        "none": value[:0],
        "one": value[0, 0],
    }


def large() -> torch.Tensor:
    return torch.arange(8 << 20, device="cuda", dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("staging", ["eager", "lazy"])
def test_every_dtype_and_geometry_is_saved_and_loaded_bit_for_bit(
    repo: fwstore.Repository, dtype: torch.dtype, staging: Any
) -> None:
    here = random_bits(dtype, 64, 300)
    state = geometries(here.cuda())
    with repo.run("r").writer() as writer:
        writer.save(0, state, staging=staging).result(PATIENCE_S)
    for name, expected in geometries(here).items():
        assert bits(repo.run("r")[0].tensors[name][...]) == bits(expected), name
    into = {"whole": torch.zeros_like(state["whole"]), "turned": torch.zeros_like(state["turned"])}
    repo.run("r")[0].load(into=into, strict=False)
    assert into["whole"].is_cuda
    assert bits(into["whole"]) == bits(here)
    assert bits(into["turned"]) == bits(here.T)


def test_an_eager_save_waits_for_no_other_stream(repo: fwstore.Repository) -> None:
    value, other = large(), CUDA.Stream()
    expected = value.cpu()
    CUDA.synchronize()
    with repo.run("r").writer() as writer:
        writer.save(0, {"w": value}).result(PATIENCE_S)
        with CUDA.stream(other):
            CUDA._sleep(LONG)
        handle = writer.save(1, {"w": value})
        value.zero_()
        busy = other.record_event()
        assert not busy.query()
        handle.result(PATIENCE_S)
        assert not busy.query(), "the save waited for work that has nothing to do with it"
    assert torch.equal(repo.run("r")[1].load()["w"].cpu(), expected)


def test_a_save_sees_what_was_queued_before_it_and_nothing_after(repo: fwstore.Repository) -> None:
    value = large()
    with repo.run("r").writer() as writer:
        CUDA._sleep(LONG // 10)
        value.add_(1)
        writer.save(0, {"w": value})
        value.zero_()
        writer.wait()
    found = repo.run("r")[0].load()["w"].cpu()
    assert torch.equal(found, torch.arange(8 << 20, dtype=torch.float32) + 1)


def test_a_lazy_save_lets_the_stream_of_training_go_on(repo: fwstore.Repository) -> None:
    value = large()
    expected = value.cpu()
    with repo.run("r").writer() as writer:
        writer.save(0, {"w": value}).result(PATIENCE_S)
        handle = writer.save(1, {"w": value}, staging="lazy")
        CUDA._sleep(LONG)
        training = CUDA.current_stream().record_event()
        handle.wait_staged(PATIENCE_S)
        assert not training.query(), "the copies waited for what was queued after the save"
        value.zero_()
        handle.result(PATIENCE_S)
    assert torch.equal(repo.run("r")[1].load()["w"].cpu(), expected)


def test_optimizers_wait_for_lazy_copies(repo: fwstore.Repository) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2048, 2048).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    expected = {}
    with Saver(
        repo.run("r"), {"model": model, "optimizer": optimizer}, every=1, staging="lazy"
    ) as saver:
        for step in saver.steps(5):
            model(torch.randn(64, 2048, device="cuda")).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            expected[step] = model.weight.detach().clone().cpu()
    for step in range(1, 5):
        assert torch.equal(repo.run("r")[step].load()["model"]["weight"].cpu(), expected[step])


def test_memory_is_pinned_while_it_is_in_use_and_given_back(repo: fwstore.Repository) -> None:
    value = large()
    with repo.run("r").writer() as writer:
        writer.warm_up({"w": value})
        for step in range(3):
            writer.save(step, {"w": value}).result(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while (kept := repo.pool.statistics()).pinned_bytes < kept.mapped_bytes:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert kept.pinned_bytes >= value.nbytes
        with repo.pool.lease(value.nbytes) as lease:
            pinned = torch.from_numpy(np.frombuffer(lease.memory, np.uint8)).is_pinned()
        assert pinned
    assert repo.pool.statistics().mapped_bytes == 0
    gc.collect()
    # Registering the same addresses again would be refused, had they not been given back.
    with repo.run("again").writer() as writer:
        writer.warm_up({"w": value})
        writer.save(0, {"w": value}).result(PATIENCE_S)
        writer.save(1, {"w": value}).result(PATIENCE_S)
        assert repo.pool.statistics().pinned_bytes > 0


def test_memory_that_cannot_be_pinned_costs_nothing_but_time(
    repo: fwstore.Repository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = CUDA.cudart()
    monkeypatch.setattr(runtime, "cudaHostRegister", lambda address, size, flags: 2)
    value = large()
    with repo.run("r").writer() as writer:
        writer.warm_up({"w": value})
        for step in range(3):
            writer.save(step, {"w": value}).result(PATIENCE_S)
    assert torch.equal(repo.run("r")[2].load()["w"].cpu(), value.cpu())
    assert caplog.text.count("is not pinned") == 1


@pytest.mark.dist
def test_local_shards_of_a_mesh_are_saved_bit_for_bit(tmp_path: Path) -> None:
    assert run_ranks(2, torch_jobs.save_shards_on, str(tmp_path), "cuda") == [True, True]
