"""A state shaped like the shard of a large language model on one rank."""

from __future__ import annotations

import torch

HIDDEN = 1024
ROWS_PER_MATRIX = 1024
BYTES_PER_ELEMENT = 2 + 4 + 4 + 4


def make_state(size_bytes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return bf16 weights with fp32 master copies and two Adam moments, and small vectors."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(ROWS_PER_MATRIX, HIDDEN, generator=generator)
    layers = max(1, size_bytes // (ROWS_PER_MATRIX * HIDDEN * BYTES_PER_ELEMENT))
    state: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        master = noise * (1 + layer / layers)
        state[f"model.layers.{layer}.weight"] = master.to(torch.bfloat16)
        state[f"master.layers.{layer}.weight"] = master
        state[f"optimizer.layers.{layer}.exp_avg"] = noise.roll(layer, 0) * 1e-3
        state[f"optimizer.layers.{layer}.exp_avg_sq"] = noise.roll(layer, 1).square() * 1e-6
        state[f"model.layers.{layer}.norm"] = torch.full((HIDDEN,), 1.0 + layer)
    return state


def change(state: dict[str, torch.Tensor]) -> None:
    """Change every tensor in place, as an optimizer step does."""
    for tensor in state.values():
        tensor.mul_(1.0009765625)


def empty_like(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return touched memory for a load."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Return whether two states are equal bit for bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in left
    )


def size_of(state: dict[str, torch.Tensor]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())
