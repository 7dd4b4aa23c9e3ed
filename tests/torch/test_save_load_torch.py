"""Torch states through the public door of fwstore: bits, views, ties, parameters, meta, casts."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fwstore
from fwstore import InvalidInput, TensorSlot, Unsupported, UnsupportedValue
from fwstore_torch.device import raw_view
from fwstore_torch.tensors import DTYPES

CONVERTIBLE = [name for name in DTYPES if "float4" not in name]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Torch warns that half-precision complex numbers are young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf")
        yield


@pytest.fixture
def run() -> Iterator[fwstore.Run]:
    with fwstore.open("memory://", limits=fwstore.Limits(threads=2)) as repository:
        yield repository.run("run")


def save(run: fwstore.Run, state: Any, step: int = 0, **options: Any) -> fwstore.Checkpoint:
    with run.writer() as writer:
        checkpoint = writer.save(step, state, **options).result(60)
    assert checkpoint is not None
    return checkpoint


def random_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = dtype.itemsize * int(np.prod(shape))
    content = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return content.view(dtype).reshape(shape)


def bits(value: torch.Tensor) -> bytes:
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    raw: bytes = raw_view(plain).numpy().tobytes()
    return raw


def same(found: Any, expected: torch.Tensor) -> bool:
    return (
        isinstance(found, torch.Tensor)
        and (found.dtype, found.shape) == (expected.dtype, expected.shape)
        and bits(found) == bits(expected)
    )


@pytest.mark.parametrize("blocking", [False, True])
def test_every_dtype_comes_back_bit_for_bit(run: fwstore.Run, blocking: bool) -> None:
    state = {name: random_bits(dtype, 5, 6) for name, dtype in DTYPES.items()}
    assert len(state) == 22
    checkpoint = save(run, state, blocking=blocking)
    fresh = checkpoint.load()
    into = {name: random_bits(dtype, 5, 6) for name, dtype in DTYPES.items()}
    held = dict(into)
    checkpoint.load(into=into)
    for name, value in state.items():
        assert same(fresh[name], value), name
        assert same(into[name], value), name
        assert into[name] is held[name]
        assert checkpoint.tensors[name].dtype == name
        assert same(checkpoint.tensors[name][1:4:2, 2], value[1:4:2, 2]), name


@pytest.mark.parametrize(
    "name", ["float32", "bfloat16", "bool", "complex128", "float8_e5m2", "uint64"]
)
def test_every_view_is_saved_in_logical_order(run: fwstore.Run, name: str) -> None:
    base = random_bits(DTYPES[name], 6, 8)
    views = {
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "row": base[3],
        "scalar": base[2, 5],
        "empty": base[:0],
        "no column": base[:, 4:4],
        "expanded": base[:1].expand(5, 8),
        "spread": base[0, 0].expand(3, 2),
        "channels last": random_bits(DTYPES[name], 2, 3, 4, 4).to(
            memory_format=torch.channels_last
        ),
    }
    checkpoint = save(run, views)
    found = checkpoint.load()
    into = {key: torch.zeros_like(value.contiguous()) for key, value in views.items()}
    frame = torch.zeros(8, 6, dtype=DTYPES["uint8"]).view(torch.uint8)
    assert frame.shape == (8, 6)
    checkpoint.load(into=into)
    for key, value in views.items():
        assert same(found[key], value), key
        assert same(into[key], value), key


def test_strided_destinations_are_filled_in_place(run: fwstore.Run) -> None:
    value = torch.randn(4, 3)
    checkpoint = save(run, {"w": value, "c": value.reshape(1, 2, 2, 3)})
    frame = torch.full((6, 8), 9.0)
    into = {
        "w": frame.t()[::2, ::2],
        "c": torch.zeros(1, 2, 2, 3).to(memory_format=torch.channels_last),
    }
    checkpoint.load(into=into)
    assert torch.equal(frame[::2, ::2], value.t())
    assert (frame[1::2] == 9).all()
    assert (frame[:, 1::2] == 9).all()
    assert torch.equal(into["c"], value.reshape(1, 2, 2, 3))
    assert into["c"].is_contiguous(memory_format=torch.channels_last)


def test_conjugated_and_negated_views_are_saved_as_they_read(run: fwstore.Run) -> None:
    value = torch.randn(5, dtype=torch.complex64)
    checkpoint = save(run, {"conj": value.conj(), "neg": value.conj().imag})
    found = checkpoint.load()
    assert torch.equal(found["conj"], value.conj().resolve_conj())
    assert torch.equal(found["neg"], -value.imag)


def test_a_model_and_its_optimizer_come_back(run: fwstore.Run) -> None:
    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).to(torch.float64)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * seed, amsgrad=True)
        model(torch.randn(6, 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        return model, optimizer

    def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    first, second = build(1), build(2)
    checkpoint = save(run, state_of(*first))
    target = state_of(*second)
    checkpoint.load(into=target)
    second[1].load_state_dict(target["optimizer"])
    expected, found = state_of(*first), state_of(*second)
    assert type(checkpoint.load()["model"]) is OrderedDict
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
    for number, values in expected["optimizer"]["state"].items():
        for name, value in values.items():
            assert torch.equal(found["optimizer"]["state"][number][name], value), name
    assert found["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]


def test_parameters_are_filled_without_autograd_noticing(run: fwstore.Run) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint = save(run, dict(source.named_parameters()))
    loss = target(torch.ones(1, 3)).sum()
    version = target.weight._version
    checkpoint.load(into=dict(target.named_parameters()))
    assert torch.equal(target.weight, source.weight)
    assert target.weight.requires_grad
    assert target.weight._version == version
    loss.backward()
    found = checkpoint.load()["weight"]
    assert not found.requires_grad
    assert type(found) is torch.Tensor


def test_tied_parameters_are_stored_once_and_tied_again(run: fwstore.Run) -> None:
    def build() -> Any:
        model: Any = nn.ModuleDict(
            {"embed": nn.Embedding(50, 40), "head": nn.Linear(40, 50, bias=False)}
        )
        model["head"].weight = model["embed"].weight
        return model

    source, target = build(), build()
    checkpoint = save(run, {"model": source.state_dict(), "view": source["embed"].weight.t()})
    assert checkpoint.describe().bytes_logical == 2 * 50 * 40 * 4
    found = checkpoint.load()["model"]
    assert found["head.weight"] is found["embed.weight"]
    into = {"model": target.state_dict(), "view": torch.zeros(40, 50)}
    checkpoint.load(into=into)
    assert torch.equal(target["head"].weight, source["embed"].weight)
    assert target["head"].weight is target["embed"].weight
    apart = {"embed.weight": torch.zeros(50, 40), "head.weight": torch.zeros(50, 40)}
    checkpoint.load(into={"model": apart, "view": torch.zeros(40, 50)})
    assert torch.equal(apart["head.weight"], source["embed"].weight)


def test_meta_destinations_are_given_memory_and_stay_tied(run: fwstore.Run) -> None:
    weight = torch.randn(4, 3).to(torch.bfloat16)
    checkpoint = save(run, {"a": [weight, weight], "b": nn.Parameter(torch.ones(2))})
    with torch.device("meta"):
        meta = torch.empty(4, 3, dtype=torch.bfloat16)
        into: dict[str, Any] = {"a": [meta, meta], "b": nn.Parameter(torch.empty(2))}
    checkpoint.load(into=into)
    assert same(into["a"][0], weight)
    assert into["a"][1] is into["a"][0]
    assert isinstance(into["b"], nn.Parameter)
    assert into["b"].tolist() == [1, 1]
    with torch.device("meta"):
        fixed = {"a": (torch.empty(4, 3, dtype=torch.bfloat16),)}
    with pytest.raises(InvalidInput, match="tuple"):
        checkpoint.load(into=fixed, strict=False)


def test_a_module_on_meta_is_loaded_by_assignment(run: fwstore.Run) -> None:
    source = nn.Linear(5, 4)
    checkpoint = save(run, source.state_dict())
    with torch.device("meta"):
        target = nn.Linear(5, 4)
    state = target.state_dict()
    checkpoint.load(into=state)
    target.load_state_dict(state, assign=True)
    assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_casts_follow_torch(run: fwstore.Run, name: str) -> None:
    value = torch.tensor([0.0, 1.0, 2.0, 1.0]).to(DTYPES[name])
    checkpoint = save(run, {"w": value.reshape(2, 2)})
    into = {"w": torch.zeros(2, 4, dtype=torch.float64)[:, ::2]}
    if value.is_complex():
        with pytest.raises(InvalidInput, match=name):
            checkpoint.load(into=into, dtype="cast")
        assert not into["w"].any()
    else:
        checkpoint.load(into=into, dtype="cast")
        assert torch.equal(into["w"], value.to(torch.float64).reshape(2, 2))
    wide = {"w": torch.zeros(2, 2, dtype=torch.complex128)}
    checkpoint.load(into=wide, dtype="cast")
    assert torch.equal(wide["w"], value.to(torch.complex128).reshape(2, 2))


def test_new_states_of_another_dtype_convert_numbers_of_their_kind(run: fwstore.Run) -> None:
    state = {
        "half": torch.randn(5).to(torch.bfloat16),
        "eighth": torch.randn(5).to(torch.float8_e4m3fn),
        "double": torch.randn(5, dtype=torch.float64),
        "whole": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "complex": torch.randn(5, dtype=torch.complex128),
    }
    checkpoint = save(run, state)
    for dtype in ("float32", torch.float32):
        found = checkpoint.load(dtype=dtype)
        for name in ("half", "eighth", "double"):
            assert same(found[name], state[name].to(torch.float32)), name
        for name in ("whole", "flags", "complex"):
            assert same(found[name], state[name]), name
    found = checkpoint.load(dtype=torch.complex64)
    assert same(found["complex"], state["complex"].to(torch.complex64))
    assert same(found["double"], state["double"])
    for wrong in ("int8", "bool", torch.int32, "float31", torch.quint8, 3):
        with pytest.raises(InvalidInput, match="dtype"):
            checkpoint.load(dtype=wrong)


def test_conversions_that_torch_lacks_are_told(run: fwstore.Run) -> None:
    checkpoint = save(run, {"w": random_bits(torch.float4_e2m1fn_x2, 4)})
    with pytest.raises(Unsupported, match="float4_e2m1fn_x2"):
        checkpoint.load(dtype="float32")
    with pytest.raises(Unsupported, match="float4_e2m1fn_x2"):
        checkpoint.load(into={"w": torch.zeros(4)}, dtype="cast")


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        nn.parameter.UninitializedParameter(),
    ],
    ids=["sparse", "meta", "lazy"],
)
def test_tensors_without_plain_memory_are_named(run: fwstore.Run, value: torch.Tensor) -> None:
    with run.writer() as writer:
        with pytest.raises(UnsupportedValue, match="deep/0"):
            writer.save(0, {"ok": torch.ones(1), "deep": [value]})
        writer.save(0, {"ok": torch.ones(1)}).result(60)


def test_destinations_that_share_memory_are_named(run: fwstore.Run) -> None:
    checkpoint = save(run, {"deep": [torch.ones(3, 2)]})
    for shared in (torch.ones(1, 1).expand(3, 2), torch.ones(4).as_strided((3, 2), (1, 1))):
        with pytest.raises(InvalidInput, match="deep/0"):
            checkpoint.load(into={"deep": [shared]})


def test_tensors_may_change_as_soon_as_save_returns(run: fwstore.Run) -> None:
    values = {
        "w": torch.randn(300, 500),
        "v": torch.randn(300, 500).t(),
        "h": torch.randn(9).half(),
    }
    expected = {name: value.clone() for name, value in values.items()}
    with run.writer() as writer:
        handle = writer.save(0, values)
        for value in values.values():
            value.zero_()
        handle.result(60)
    found = run[0].load()
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_numpy_and_torch_stand_side_by_side_and_fill_each_other(run: fwstore.Run) -> None:
    checkpoint = save(run, {"t": torch.arange(3.0), "n": np.arange(3.0), "dtype": torch.bfloat16})
    found = checkpoint.load()
    assert isinstance(found["t"], torch.Tensor)
    assert isinstance(found["n"], np.ndarray)
    assert found["dtype"] is torch.bfloat16
    assert checkpoint.state()["t"] == TensorSlot("torch")
    into: dict[str, Any] = {"t": np.zeros(3, np.float32), "n": torch.zeros(3, dtype=torch.float64)}
    checkpoint.load(into=into)
    assert into["t"].tolist() == into["n"].tolist() == [0, 1, 2]
    assert isinstance(checkpoint.tensors["t"][1:], torch.Tensor)
    assert isinstance(checkpoint.tensors["n"][1:], np.ndarray)


def test_lazy_slices_are_tensors(run: fwstore.Run) -> None:
    value = torch.randn(20, 30).to(torch.bfloat16)
    lazy = save(run, {"w": value}).tensors["w"]
    for index in (..., 3, (slice(1, 9, 3), -1), (..., slice(2, 5)), (0, 0)):
        assert same(lazy[index], value[index])


def test_frozen_weights_cost_nothing_and_only_the_rest_is_copied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body, head = nn.Linear(500, 500), nn.Linear(500, 10)
    with fwstore.open(str(tmp_path)) as repository:
        for term in range(2):
            with repository.run("run").writer() as writer:
                figures = []
                for step in range(3):
                    with torch.no_grad():
                        head.weight += 1
                    state = {"body": body.state_dict(), "head": head.state_dict()}
                    handle = writer.save(10 * term + step, state)
                    handle.result(60)
                    figures.append(handle.statistics())
                assert all(found.bytes_written < 30_000 for found in figures[1 - term :])
                assert figures[-1].rank_bytes_staged < 30_000
        assert torch.equal(repository.run("run")[12].load()["body"]["weight"], body.weight)


def test_plain_tensors_do_not_cost_the_import_of_dtensor() -> None:
    code = (
        "import sys, torch, fwstore\n"
        "run = fwstore.open('memory://').run('run')\n"
        "with run.writer() as writer: writer.save(0, {'w': torch.ones(2)}).result()\n"
        "run.latest().load(into={'w': torch.zeros(2)})\n"
        "print('torch.distributed.tensor' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
