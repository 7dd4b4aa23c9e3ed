"""What is asked of a device, and in which order; `test_cuda.py` shows on a real one that it does as asked."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fwstore
from fwstore import Box, Piece, Shard
from fwstore.sched.buffers import map_anonymous
from fwstore_torch import device as device_module
from fwstore_torch.device import DeviceTensor, raw_view
from fwstore_torch.pinning import pin_memory
from fwstore_torch.tensors import NAMES
from support.accelerator import Accelerator

CPU = torch.device("cpu")


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    """A device whose memory is that of this machine."""
    found = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda _: found)
    device_module._side_stream.cache_clear()
    yield found
    device_module._side_stream.cache_clear()


def shard_of(value: torch.Tensor) -> Shard:
    """Describe a tensor as the adapter does one of a CUDA device."""
    there: Any = DeviceTensor(raw_view(value))
    there.pin = functools.partial(pin_memory, CPU)
    shape = tuple(value.shape)
    return Shard(NAMES[value.dtype], shape, (Piece(Box.whole(shape), there),), kind="torch")


def bits(value: torch.Tensor) -> bytes:
    raw: bytes = raw_view(value.contiguous()).numpy().tobytes()
    return raw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex128])
def test_device_memory_is_copied_by_parts(accelerator: Accelerator, dtype: torch.dtype) -> None:
    source = torch.randint(0, 2, (4, 3)).to(dtype)
    device = DeviceTensor(raw_view(source))
    part = np.empty((2, 3), device.dtype)
    device.copy_to_host((slice(1, 3), slice(None)), part)()
    assert part.tobytes() == bits(source[1:3])
    target = torch.zeros_like(source)
    there = DeviceTensor(raw_view(target))
    assert there.shape == (4, 3)
    there[slice(2, 4), slice(None)].copy_from_host((slice(None), slice(None)), part)
    assert bits(target[2:]) == bits(source[1:3])
    assert not raw_view(target)[:2].any()


def test_a_copy_waits_in_its_own_stream_and_its_caller_for_nothing_else(
    accelerator: Accelerator,
) -> None:
    device = DeviceTensor(torch.zeros(8, dtype=torch.uint8))
    assert accelerator.calls == ["note what is queued in training"]
    waits = []
    for half in (slice(4), slice(4, 8)):
        accelerator.calls.clear()
        waits.append(device.copy_to_host((half,), np.empty(4, np.uint8)))
        assert accelerator.calls == [
            "the side stream waits for that",
            "enter the device",
            "enter the side stream",
            "record in the side stream",
            "leave the side stream",
            "leave the device",
        ]
    accelerator.calls.clear()
    waits[0]()
    assert accelerator.calls == ["wait for the copy"]
    device[slice(2),].copy_from_host((slice(None),), np.zeros(2, np.uint8))
    assert accelerator.calls.count("note what is queued in training") == 0
    assert accelerator.calls[-1] == "wait for the copy"


def test_memory_is_pinned_on_the_device_that_copies(accelerator: Accelerator) -> None:
    memory = map_anonymous(8192)
    undo = pin_memory(CPU, memory)
    assert list(accelerator.driver.pinned.values()) == [8192]
    undo()
    assert accelerator.driver.pinned == {}
    assert accelerator.calls == ["enter the device", "leave the device"] * 2
    for status, told in ((2, "CUDA error 2"), (RuntimeError("forked"), "cudaHostRegister: forked")):
        accelerator.status = status
        with pytest.raises(OSError, match=told):
            pin_memory(CPU, memory)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    whole = torch.randn(300, 700)
    return {
        "whole": whole,
        "turned": whole.T,
        "every second": whole[::2, 1::3],
        "expanded": torch.randn(1, 70).expand(30, 70),
        "half": torch.randn(90, 70).bfloat16(),
        "none": torch.empty(0, 3),
        "one": torch.tensor(5),
    }


@pytest.mark.parametrize("staging", ["eager", "lazy"])
@pytest.mark.parametrize("status", [0, 2])
def test_what_was_there_is_saved_and_pinned_memory_is_given_back(
    tmp_path: Path,
    accelerator: Accelerator,
    caplog: pytest.LogCaptureFixture,
    staging: Any,
    status: int,
) -> None:
    values = tensors()
    expected = {name: bits(value) for name, value in values.items()}
    accelerator.status = status
    with fwstore.open(tmp_path) as repository, repository.run("r").writer() as writer:
        writer.warm_up({name: shard_of(value) for name, value in values.items()})
        for step in range(2):
            state = {name: shard_of(value) for name, value in values.items()}
            handle = writer.save(step, state, staging=staging)
            handle.wait_staged()
            for name in ("whole", "half", "one"):
                values[name].add_(1)
            handle.result(60)
            found = repository.run("r")[step].load()
            assert {name: bits(value) for name, value in found.items()} == expected
            expected = {name: bits(value) for name, value in values.items()}
        deadline = time.monotonic() + 60
        while not (repository.pool.statistics().pinned_bytes or "not pinned" in caplog.text):
            assert time.monotonic() < deadline, "nobody pins"
            time.sleep(0.01)
        assert bool(accelerator.driver.bytes_pinned) == (status == 0)
        assert caplog.text.count("is not pinned") == (status != 0)
    assert accelerator.driver.pinned == {}


def test_an_interrupted_warm_up_gives_back_what_it_pins(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    with fwstore.open(tmp_path) as repository:
        writer = repository.run("r").writer()
        writer.warm_up({"w": shard_of(torch.zeros(1000, 1000))})
        writer.close()
    assert accelerator.driver.pinned == {}
    assert repository.pool.statistics().mapped_bytes == 0
