"""Torch tensors of every dtype and geometry go through numpy memory and back, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from fwstore.base.errors import InvalidInput, UnsupportedValue
from fwstore.checkpoint.adapter import Adapters
from fwstore.checkpoint.tree import flatten, unflatten
from fwstore.format.dtypes import ITEMSIZE
from fwstore.format.state import ForeignValue, decode_state, encode_state
from fwstore_torch.device import raw_view
from fwstore_torch.tensors import DTYPES, NAMES, adapter


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Torch warns that half-precision complex numbers are young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf")
        yield


def random_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = dtype.itemsize * int(np.prod(shape))
    content = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return content.view(dtype).reshape(shape)


def bits(value: torch.Tensor) -> bytes:
    raw: bytes = raw_view(value.detach().contiguous()).numpy().tobytes()
    return raw


def only_array(value: torch.Tensor, *, writable: bool = False) -> Any:
    (piece,) = adapter.describe(value, writable=writable).pieces
    return piece.array


def test_every_stored_dtype_exists_in_torch() -> None:
    assert set(DTYPES) == set(ITEMSIZE)
    assert all(dtype.itemsize == ITEMSIZE[name] for name, dtype in DTYPES.items())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_memory_of_every_dtype_round_trips(dtype: torch.dtype) -> None:
    source = random_bits(dtype, 3, 4)
    shard = adapter.describe(source)
    assert shard.dtype == NAMES[dtype]
    assert shard.shape == (3, 4)
    target = adapter.allocate(shard.dtype, shard.shape)
    assert target.dtype == dtype
    only_array(target, writable=True)[...] = shard.pieces[0].array
    assert bits(target) == bits(source)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_views_keep_their_logical_order(dtype: torch.dtype) -> None:
    base = random_bits(dtype, 4, 6)
    for view in (base.t(), base[::2, 1:], base[0, 0], base[:0], base[:1].expand(5, 6)):
        array = only_array(view)
        assert array.shape == tuple(view.shape)
        assert np.ascontiguousarray(array).tobytes() == bits(view)
        assert not view.numel() or np.shares_memory(array, only_array(base))


def test_loading_into_a_leaf_parameter_leaves_autograd_alone() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    loss = (parameter * 2).sum()
    version = parameter._version
    only_array(parameter, writable=True)[...] = np.array([1, 2, 3], np.float32).view(np.uint32)
    assert parameter.tolist() == [1, 2, 3]
    assert parameter._version == version
    assert parameter.requires_grad
    assert parameter.is_leaf
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert parameter.grad is not None


def test_lazily_conjugated_and_negated_views_are_resolved() -> None:
    base = torch.tensor([1 + 2j, 3 - 4j])
    assert only_array(base.conj()).view(np.complex64).tolist() == [1 - 2j, 3 + 4j]
    negative = base.conj().imag
    assert negative.is_neg()
    assert only_array(negative).view(np.float32).tolist() == [-2, 4]
    for view in (base.conj(), negative, torch.ones(1).expand(3)):
        with pytest.raises(InvalidInput):
            adapter.describe(view, writable=True)


class Wrapper(torch.Tensor):
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return [], None


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        nn.parameter.UninitializedParameter(),
        torch.ones(2).as_subclass(Wrapper),
    ],
)
def test_tensors_without_plain_memory_are_refused(value: torch.Tensor) -> None:
    with pytest.raises(UnsupportedValue):
        adapter.describe(value)


def test_meta_destinations_get_memory() -> None:
    meta = nn.Parameter(
        torch.empty(2, 3, device="meta", dtype=torch.bfloat16).t(), requires_grad=False
    )
    real = adapter.materialise(meta)
    assert isinstance(real, nn.Parameter)
    assert not real.requires_grad
    assert (real.device.type, real.dtype, real.shape) == ("cpu", torch.bfloat16, (3, 2))
    assert real.stride() == meta.stride()
    adapter.describe(real, writable=True)
    there = torch.ones(2)
    assert adapter.materialise(there) is there


def test_pending_results_of_collectives_are_not_taken_for_ties() -> None:
    # They wrap the tensor that holds the elements and have no address of their own.
    pending = [AsyncCollectiveTensor(torch.full((3,), n)) for n in range(2)]
    assert [adapter.identity(value) for value in pending] == [None, None]


def test_ties_are_seen_through_detached_views() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
    model[1].weight = model[0].weight
    skeleton, tensors = flatten({"model": model.state_dict()}, Adapters([adapter], discover=False))
    assert list(tensors) == [("model", "0.weight")]
    again = unflatten(skeleton, tensors, Adapters([adapter], discover=False))
    assert again["model"]["1.weight"] is again["model"]["0.weight"]


def test_identity_tells_geometry_apart() -> None:
    base = torch.ones(2, 2)
    assert (
        adapter.identity(base)
        == adapter.identity(base.view(2, 2))
        == adapter.identity(base.detach())
    )
    others = [base.t(), base[:1], base.view(torch.int32), base.clone(), base.view(4)]
    assert len({adapter.identity(value) for value in [base, *others]}) == 6
    assert adapter.identity(torch.ones(0)) is None
    meta = torch.empty(2, device="meta")
    assert adapter.identity(meta) == adapter.identity(meta.detach()) is not None
    assert adapter.identity(meta) != adapter.identity(torch.empty(2, device="meta"))
    assert adapter.identity(torch.eye(2).to_sparse()) is None


@pytest.mark.parametrize(
    "value",
    [
        torch.bfloat16,
        torch.device("cuda", 3),
        torch.device("cpu"),
        torch.Size([2, 3]),
        torch.Size([]),
        torch.channels_last,
        torch.strided,
    ],
)
def test_small_values_of_torch_come_back(value: Any) -> None:
    adapters = Adapters([adapter], discover=False)
    skeleton, tensors = flatten({"value": [value], "keys": {value}}, adapters)
    assert not tensors
    again = unflatten(decode_state(encode_state(skeleton)), {}, adapters)
    assert again == {"value": [value], "keys": {value}}
    assert type(again["value"][0]) is type(value)


@pytest.mark.parametrize(
    "form",
    [
        ForeignValue("torch", "dtype", ("compiler",)),
        ForeignValue("torch", "dtype", ()),
        ForeignValue("torch", "device", ("nonsense", 1)),
        ForeignValue("torch", "size", ("x",)),
        ForeignValue("torch", "function", ("load",)),
    ],
)
def test_unknown_small_values_stay_inert(form: ForeignValue) -> None:
    assert adapter.revive(form) is form


def test_subclasses_defined_elsewhere_find_the_adapter() -> None:
    class Mine(nn.Parameter):
        pass

    adapters = Adapters()
    found = adapters.of_tensor(Mine(torch.ones(1)))
    assert found is not None
    assert found.kind == "torch"
    assert adapters.of_kind("torch") is adapter
