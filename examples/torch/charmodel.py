"""A character-level language model, small enough to train while one watches, and its text."""

from __future__ import annotations

import argparse as text_source
import inspect

import torch
from torch import nn


def load_text() -> torch.Tensor:
    """A text that every Python has: the source of its module argparse, as bytes (int64)."""
    return torch.tensor(list(inspect.getsource(text_source).encode()))


def sample_batch(
    text: torch.Tensor, rank: int, step: int, batch: int, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A rank's part of a step's batch: windows of the text, and the same one byte further.

    Both have shape (batch, window). Other ranks and steps give other windows, each run the same.
    """
    generator = torch.Generator().manual_seed(1_000_000 * rank + step)
    starts = torch.randint(len(text) - window, (batch, 1), generator=generator)
    places = starts + torch.arange(window)
    return text[places], text[places + 1]


class Block(nn.Module):
    """A layer of a transformer that looks at earlier characters only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CharModel(nn.Module):
    """Predicts the next byte at every place of a text of bytes."""

    def __init__(self, layers: int, width: int, window: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Embedding(window, width)
        self.blocks = nn.ModuleList(Block(width, heads=width // 32) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, text: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean loss of predicting `target` after `text`, both of shape (batch, window)."""
        x = self.bytes(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
