"""Int8 tensors between layers: who is read by int8 layers only gives the integers that they would make themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastcompress.nn.quantized import QuantizedLayer

from .capture import tensor_of
from .epilogue import layer_of

__all__ = ["link_layers"]


def link_layers(model: fx.GraphModule) -> int:
    """Let layers hand uint8 tensors to the static int8 layers behind them; returns the number of such layers.

    Every call of a compressed layer gets ``out_dtype`` and, where it hands on integers, ``out_scale`` and
    ``out_zero_point``. The integers are those that the reader makes of the float output, so no result changes.
    """
    links = 0
    for node in model.graph.nodes:
        if layer_of(model, node) is None:
            continue
        seen = tensor_of(node)
        # A 16-bit output is rounded before the reader quantizes it: integers made directly could differ.
        wanted = None if seen is None or seen.dtype != torch.float32 else _wanted(model, node)
        options: dict[str, Any] = {} if seen is None else {"out_dtype": seen.dtype}
        if wanted is not None:
            options = {"out_dtype": torch.uint8, "out_scale": wanted[0], "out_zero_point": wanted[1]}
            links += 1
        node.kwargs = {**node.kwargs, **options}
    return links


def _wanted(model: fx.GraphModule, node: fx.Node) -> tuple[float, int] | None:
    """Scale and zero point that all readers of a node quantize it with, or None."""
    found = set()
    for user in node.users:
        layer = layer_of(model, user)
        if not isinstance(layer, QuantizedLayer) or layer.input_mode != "static" or user.args[0] is not node:
            return None
        if user.kwargs.get("residual") is node:
            return None
        found.add((layer.input_scale, layer.input_zero_point))
    return found.pop() if len(found) == 1 else None
