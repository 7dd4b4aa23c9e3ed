"""A small GPT over bytes: more than ten million parameters, fp32, seconds per step on two cores.

Invariant: its weights are a pure function of the seed, whatever the number of ranks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WIDTH = 384
HEADS = 6
LAYERS = 6
VOCABULARY = 256


class Block(nn.Module):
    """Attention and a feed-forward layer, both residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map activations of shape (samples, tokens, width) to the same shape."""
        samples, tokens, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(samples, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(samples, tokens, WIDTH))
        hidden: torch.Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + hidden


class Gpt(nn.Module):
    """A decoder-only transformer."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(window, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed loss over all tokens of inputs and targets, each (samples, tokens)."""
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
