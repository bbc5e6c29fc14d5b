"""Canonical layers as modules: the one place that knows the layer classes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastcompress.formats.checkpoints.content import LayerCanonical, StoredLayer
from fastcompress.ops.canonical import W8A8Canonical

__all__ = ["build_embedding", "build_layer", "is_quantized", "stored_layer", "tied_head"]


def build_layer(
    canonical: LayerCanonical, input_order: Tensor | None = None, *, dtype: torch.dtype | None = None
) -> nn.Module:
    """A layer in place of ``nn.Linear``; `dtype` is the logical one of its weight.

    Raises:
        TypeError, ValueError: see ``fastcompress.ops.pack``.
    """
    from fastcompress.nn import GroupQuantLinear, QuantLinear

    if isinstance(canonical, W8A8Canonical):
        return QuantLinear.from_canonical(canonical, dtype=dtype)
    layer = GroupQuantLinear.from_canonical(cast(Any, canonical), dtype=dtype)
    return layer if input_order is None else layer.reorder(input_order, None)


def build_embedding(
    canonical: LayerCanonical, *, dtype: torch.dtype | None = None, padding_idx: int | None = None
) -> nn.Module:
    """A layer in place of ``nn.Embedding``.

    Raises:
        TypeError, ValueError: see ``fastcompress.ops.pack``.
    """
    from fastcompress.nn import QuantEmbedding

    return QuantEmbedding.from_canonical(cast(Any, canonical), dtype=dtype, padding_idx=padding_idx)


def tied_head(embedding: nn.Module) -> nn.Module:
    """The output layer that shares an embedding's weight in memory."""
    return cast(nn.Module, cast(Any, embedding).head())


def is_quantized(module: nn.Module) -> bool:
    """Whether `stored_layer` can say what is in the module.

    Raises:
        ValueError: it is a layer of ours that has no place in these checkpoints (block-sparse, a convolution).
    """
    from fastcompress import nn as layers

    if isinstance(module, (layers.QuantLinear, layers.GroupQuantLinear, layers.QuantEmbedding)):
        return True
    if isinstance(module, layers.PackedLayer):
        raise ValueError(f"a {type(module).__name__} has no place in this format; fastcompress.save holds it")
    return False


def stored_layer(module: nn.Module) -> StoredLayer:
    """What `build_layer` or `build_embedding` made the module from."""
    return StoredLayer(cast(Any, module).canonical(), getattr(module, "input_order", None))
