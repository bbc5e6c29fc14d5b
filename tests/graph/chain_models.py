"""Image models whose convolutions do or do not become chains, and who is in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.graph.chains import find_chains
from fastcompress.graph.frozen import FrozenModel
from fastcompress.nn import QuantConv2d
from tests.graph.models import images, int8

__all__ = ["Convs", "as_same_padded", "chains_of", "frozen_pair", "layers_of"]

Forward = Callable[[Any, Tensor], Any]


class Convs(nn.Module):
    """3x3 convolutions ``a`` (3 channels to 8) and ``b`` to ``f`` (8 to 8), and a forward that a test gives."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b, self.c, self.d, self.e, self.f = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def frozen_pair(forward: Forward, *, example: Tensor | None = None, **options: Any) -> tuple[nn.Module, FrozenModel]:
    """The int8 model with a forward, and the same frozen."""
    model = int8(Convs(forward), images(8), **options)
    return model, fc.freeze(model, images() if example is None else example)


def as_same_padded(layer: QuantConv2d) -> QuantConv2d:
    """The layer with TensorFlow's padding, which for these sizes is the same."""
    return QuantConv2d.from_canonical(layer.canonical(), same_padding=True)


def chains_of(frozen: FrozenModel) -> list[list[str]]:
    """The layers of each chain, by name but for what a fused activation adds to it."""
    chains = find_chains(frozen.body)
    assert len(chains) == frozen.chains
    return [[str(node.target).removesuffix("_relu") for node in chain.nodes] for chain in chains]


def layers_of(frozen: FrozenModel) -> dict[str, QuantConv2d]:
    """Its int8 convolutions."""
    return {name: layer for name, layer in frozen.body.named_modules() if isinstance(layer, QuantConv2d)}
