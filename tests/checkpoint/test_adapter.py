"""Adapters alias live memory and are found by the type of a value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwstore.base.errors import InvalidInput, Unsupported
from fwstore.checkpoint.adapter import Adapters, NumpyAdapter, ShardAdapter
from fwstore.checkpoint.shard import Piece, Shard
from fwstore.format.state import ForeignValue
from fwstore.plan.box import Box


class Money:
    """A small value of an imaginary framework."""


class MoneyAdapter(NumpyAdapter):
    kind = "money"

    def owns(self, value: Any) -> bool:
        return isinstance(value, list)

    def plain(self, value: Any) -> ForeignValue | None:
        return ForeignValue("money", "coin", (1,)) if isinstance(value, Money) else None

    def revive(self, value: ForeignValue) -> Any:
        return Money()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.array(5, np.int16),
        np.zeros((3, 0), np.uint8),
        np.arange(20, dtype=np.complex128)[::3],
        np.array([True, False]),
        np.broadcast_to(np.float64(2), (2, 2)),
    ],
)
def test_pieces_alias_the_array(array: Any) -> None:
    shard = NumpyAdapter().describe(array)
    (piece,) = shard.pieces
    assert isinstance(piece.array, np.ndarray)
    assert shard.dtype == array.dtype.name
    assert shard.shape == array.shape == piece.box.sizes
    assert piece.array.view(array.dtype).tobytes() == array.tobytes()
    assert piece.array.size == 0 or np.shares_memory(piece.array, array)


def test_what_numpy_owns() -> None:
    owns = NumpyAdapter().owns
    assert owns(np.ones(1))
    for value in (
        np.array(["text"]),
        np.array([1], ">i4"),
        np.array([object()]),
        np.ma.masked_array([1]),
        np.float32(1),
        np.array(["2024"], "M8[D]"),
        [1],
    ):
        assert not owns(value)


def test_destinations_that_share_or_forbid_writing_are_refused() -> None:
    adapters = Adapters()
    fixed = np.ones(2)
    fixed.flags.writeable = False
    spread = np.lib.stride_tricks.as_strided(np.ones(2), (2, 2), (0, 8))
    for array in (fixed, spread):
        adapters.describe(("a",), array)
        with pytest.raises(InvalidInput, match="a: "):
            adapters.describe(("a",), array, writable=True)


def test_an_empty_array_is_a_destination() -> None:
    assert Adapters().describe(("a",), np.empty((0, 3)), writable=True).shape == (0, 3)


def test_dtypes_that_numpy_lacks_are_named() -> None:
    assert NumpyAdapter().allocate("float32", (2,)).shape == (2,)
    with pytest.raises(Unsupported, match="bfloat16"):
        NumpyAdapter().allocate("bfloat16", (2,))


def test_shards_describe_themselves() -> None:
    boxes = (Box((0,), (2,)), Box((6,), (2,)))
    shard = Shard("float32", (8,), tuple(Piece(box, np.ones(2, np.float32)) for box in boxes))
    adapters = Adapters(discover=False)
    found = adapters.of_tensor(shard)
    assert isinstance(found, ShardAdapter)
    assert found.describe(shard) is shard
    assert found.kind == "numpy"


def test_shards_are_checked() -> None:
    with pytest.raises(InvalidInput, match="fill"):
        Piece(Box((0,), (3,)), np.ones(2))
    with pytest.raises(InvalidInput, match="cannot hold"):
        Piece(Box((0,), (1,)), np.array([object()]))
    piece = Piece(Box((6,), (2,)), np.ones(2, np.float32))
    with pytest.raises(InvalidInput, match="outside"):
        Shard("float32", (7,), (piece,))
    with pytest.raises(InvalidInput, match="4 bytes"):
        Shard("float64", (8,), (piece,))
    with pytest.raises(InvalidInput, match="dtype"):
        Shard("float128", (8,), (piece,))


def test_adapters_are_found_by_type_and_by_kind() -> None:
    adapters = Adapters([MoneyAdapter()], discover=False)
    assert adapters.of_tensor(3) is None
    assert adapters.of_tensor(Money()) is None
    form = adapters.plain(Money())
    assert form == ForeignValue("money", "coin", (1,))
    assert isinstance(adapters.revive(form), Money)
    stranger = ForeignValue("unheard-of", "x", ())
    assert adapters.revive(stranger) is stranger
    assert adapters.of_kind("unheard-of").kind == "numpy"
    assert adapters.of_kind("money").kind == "money"
