"""A state shaped like the shard of a large language model on one rank.

At 3 GB: 350 weights as 1,400 matrices - bf16 weight, fp32 master copy, two Adam moments - and 400 small vectors.
Invariant: no two tensors have equal bytes, so that nobody gains by finding equal ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

State = dict[str, torch.Tensor]

WIDTH = 768
# In turn; 800 rows on average.
ROWS = (400, 800, 1200)
BYTES_PER_ELEMENT = 2 + 4 + 4 + 4
BYTES_PER_WEIGHT = 800 * WIDTH * BYTES_PER_ELEMENT
VECTORS_PER_WEIGHT = 400 / 350
# More than the distance of two neighbouring bf16 numbers, so that every element changes.
CHANGE = 1.015625
_MASTER, _MEAN, _VARIANCE = "master.{}.weight", "optimizer.{}.exp_avg", "optimizer.{}.exp_avg_sq"


def allocate(size_bytes: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a state one by one, with memory that nobody has touched yet."""
    weights = max(1, size_bytes // BYTES_PER_WEIGHT)
    for number in range(weights):
        shape = (ROWS[number % len(ROWS)], WIDTH)
        yield f"model.{number}.weight", torch.empty(shape, dtype=torch.bfloat16)
        for name in (_MASTER, _MEAN, _VARIANCE):
            yield name.format(number), torch.empty(shape)
    for number in range(round(weights * VECTORS_PER_WEIGHT)):
        yield f"model.{number}.norm", torch.empty(WIDTH)


def fill(name: str, tensor: torch.Tensor) -> None:
    """Give the elements of a tensor of a state their values."""
    _, number, kind = name.split(".")
    if kind == "norm":
        tensor.fill_(1.0 + int(number))
        return
    noise, scale = _noise()[: len(tensor)], 1 + int(number) / 512
    factor = {"weight": 1.0, "exp_avg": 1e-3, "exp_avg_sq": 1e-6}[kind] * scale
    torch.mul(noise, noise * factor if kind == "exp_avg_sq" else factor, out=tensor)


@cache
def _noise() -> torch.Tensor:
    return torch.randn(max(ROWS), WIDTH, generator=torch.Generator().manual_seed(0))


def make_state(size_bytes: int) -> State:
    """Return a state of about so many bytes."""
    state = dict(allocate(size_bytes))
    for name, tensor in state.items():
        fill(name, tensor)
    return state


def change(state: State, every: int = 1) -> None:
    """Change the tensors in place, as an optimizer step does.

    Args:
        state: To change.
        every: Only those of one weight in so many.
    """
    for name, tensor in state.items():
        if int(name.split(".")[1]) % every == 0:
            tensor.mul_(CHANGE)


def empty_like(state: State) -> State:
    """Return touched memory for a load."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def same(left: State, right: State) -> bool:
    """Return whether two states are equal bit for bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in left
    )


def size_of(state: State) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())
