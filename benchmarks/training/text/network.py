"""A small transformer that reads bytes: what the text table compresses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training.text.data import LENGTH

__all__ = ["PATCH", "ByteTransformer", "TextConfig", "student_of"]

#: Bytes that become one token.
PATCH = 4


@dataclass(frozen=True)
class TextConfig:
    """The sizes of a `ByteTransformer`; but for the classes, the defaults are the network of the results.

    Attributes:
        classes: outputs.
        width: of a token; divisible by ``heads``.
        layers: blocks.
        heads: of attention.
        byte_width: of the embedding of one byte.
        dropout: on what each half of a block adds, while training.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.
    """

    classes: int
    width: int = 256
    layers: int = 2
    heads: int = 4
    byte_width: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("classes", "width", "layers", "heads", "byte_width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"TextConfig: {name} must be an integer, got {value!r:.60}")
            if value < 1:
                raise ValueError(f"TextConfig: {name} must be at least 1, got {value}")
        if self.width % self.heads:
            raise ValueError(f"TextConfig: width must be divisible by heads={self.heads}, got {self.width}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"TextConfig: dropout must lie in [0, 1), got {self.dropout!r:.60}")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; ``TextConfig(**values)`` reads it back."""
        return dataclasses.asdict(self)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each behind a LayerNorm and added to its input: ``[n, tokens, width]``.

    Source: Vaswani et al. 2017, section 3; Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"
    (normalization first).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act, self.drop = nn.GELU(), nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, tokens, width)))
        return x + self.drop(self.down(self.act(self.up(self.norm2(x)))))


class ByteTransformer(nn.Module):
    """Language scores ``[n, classes]`` of texts as bytes ``[n, LENGTH]`` (int64, zero behind the end).

    Four bytes, each embedded, are one token; tokens without a byte are neither attended to nor averaged. A text needs
    one byte at least.

    Args:
        config: its sizes.

    Example:
        >>> ByteTransformer(TextConfig(classes=5))(torch.ones(2, LENGTH, dtype=torch.int64)).shape
        torch.Size([2, 5])
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.bytes = nn.Embedding(256, config.byte_width)
        self.patches = nn.Linear(PATCH * config.byte_width, width)
        self.positions = nn.Parameter(torch.randn(LENGTH // PATCH, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.classes)

    def forward(self, texts: Tensor) -> Tensor:
        count, tokens = texts.shape[0], LENGTH // PATCH
        full = texts.reshape(count, tokens, PATCH).any(2)
        embedded = self.bytes(texts).reshape(count, tokens, -1)
        x = self.patches(embedded) + self.positions
        for block in self.blocks:
            x = block(x, full[:, None, None, :])
        weight = full.unsqueeze(2).to(x.dtype)
        return self.head((self.norm(x) * weight).sum(1) / weight.sum(1))


def student_of(config: TextConfig) -> TextConfig:
    """The same network at half the width, with a quarter of the parameters and heads of the same size.

    Raises:
        ValueError: width, heads or byte_width is odd.

    Example:
        >>> student = ByteTransformer(student_of(dense.config))
    """
    for name in ("width", "heads", "byte_width"):
        if getattr(config, name) % 2:
            raise ValueError(f"student_of: {name} {getattr(config, name)} cannot be halved; use an even number")
    return dataclasses.replace(
        config, width=config.width // 2, heads=config.heads // 2, byte_width=config.byte_width // 2
    )
