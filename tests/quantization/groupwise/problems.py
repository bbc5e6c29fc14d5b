"""Weights, inputs and models that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcompress.quantization.groupwise import LayerResult

Floats = NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(rows: int, columns: int, seed: int = 1) -> Tensor:
    """Inputs most of which is in a quarter of the directions, of very different sizes."""
    few = max(1, columns // 4)
    mixed = normal(rows, few, seed=seed) @ normal(few, columns, seed=seed + 1) / few**0.5
    return (mixed + 0.2 * normal(rows, columns, seed=seed + 2)) * torch.logspace(-0.5, 0.5, columns)


def output_error(x: Tensor, weight: Tensor, quantized: Tensor) -> float:
    """Squared output error over the squared output, in float64."""
    a, w, q = (t.double().numpy() for t in (x, weight, quantized))
    return float(np.square(a @ (w - q).T).sum() / np.square(a @ w.T).sum())


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def tiny_llama(*, layers: int = 3, tied: bool = False, kv_heads: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # so that norms are not all ones
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand_like(parameter))
    return model


def tiny_bert(layers: int = 3) -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    return BertModel(config).eval()


def tiny_vit(layers: int = 3) -> Any:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
    )
    return ViTModel(config).eval()


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 40), nn.GELU(), nn.Linear(40, 8)).eval()


class Block(nn.Module):
    """Norm, two linears, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


class Stack(nn.Module):
    """A linear, blocks, a linear."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.last = nn.Linear(width, 5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out


def tokens(batches: int = 3, length: int = 12) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [{"input_ids": torch.randint(0, 64, (2, length), generator=generator)} for _ in range(batches)]


def vectors(batches: int = 3, width: int = 12) -> list[Tensor]:
    return [normal(20, width, seed=seed) for seed in range(batches)]


#: Two correct runs whose float32 sums have another order: a weight within their rounding (2^-24 times a few hundred
#: terms, so 1e-4 of a step) of a tie turns about once in 10,000, and takes the rest of its row (at most 64) along.
AGREEING = 0.99


def agreeing(weight: Tensor, result: LayerResult) -> float:
    """Share of equal weights."""
    return float((weight == result.canonical.dequantize()).float().mean())
