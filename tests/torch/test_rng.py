"""Random generators go on where they stood, and other worlds resume the same way every time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fwstore.base.errors import InvalidInput
from fwstore.format.state import decode_state, encode_state
from fwstore_torch.rng import capture_rng, restore_rng, seed_rng


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    before = capture_rng()
    yield
    restore_rng(before)


def draw() -> tuple[Any, ...]:
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.standard_normal()),
        torch.rand(3).tolist(),
    )


def test_generators_go_on_where_they_stood() -> None:
    draw()
    state = decode_state(encode_state(capture_rng()))
    expected = [draw(), draw()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    restore_rng(state)
    assert [draw(), draw()] == expected


def test_capturing_draws_nothing() -> None:
    state = capture_rng()
    capture_rng()
    assert encode_state(capture_rng()) == encode_state(state)


def test_new_ranks_are_seeded_alike_every_time_and_unlike_each_other() -> None:
    state = capture_rng()
    drawn = []
    for rank in (2, 3, 2):
        seed_rng(state, rank)
        drawn.append(draw())
    assert drawn[0] == drawn[2]
    assert all(x != y for x, y in zip(drawn[0], drawn[1], strict=True))


@pytest.mark.parametrize("key", ["python", "numpy", "torch"])
def test_a_foreign_state_is_refused(key: str) -> None:
    state = capture_rng()
    state[key] = b"nonsense"
    with pytest.raises(InvalidInput):
        restore_rng(state)
