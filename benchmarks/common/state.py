"""A state shaped like the shard of a large language model on one rank.

At 3 GB: 350 weights as 1,400 matrices - bf16 weight, fp32 master copy, two Adam moments - and 400 small vectors.
Invariant: no two tensors have equal bytes, so that nobody gains by finding equal ones.
"""

from __future__ import annotations

from collections.abc import Iterator

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


def tensors(size_bytes: int, seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a state one by one."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(max(ROWS), WIDTH, generator=generator)
    weights = max(1, size_bytes // BYTES_PER_WEIGHT)
    for number in range(weights):
        rows, scale = ROWS[number % len(ROWS)], 1 + number / weights
        master = noise[:rows] * scale
        yield f"model.{number}.weight", master.to(torch.bfloat16)
        yield f"master.{number}.weight", master
        yield f"optimizer.{number}.exp_avg", noise[:rows] * (scale * 1e-3)
        yield f"optimizer.{number}.exp_avg_sq", noise[:rows].square() * (scale * 1e-6)
    for number in range(round(weights * VECTORS_PER_WEIGHT)):
        yield f"model.{number}.norm", torch.full((WIDTH,), 1.0 + number)


def make_state(size_bytes: int, seed: int = 0) -> State:
    """Return a state of about so many bytes."""
    return dict(tensors(size_bytes, seed))


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
