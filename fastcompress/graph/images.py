"""Images run channels-last: the convolution kernels read whole pixels, and transpose images that come otherwise."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fastcompress.nn.conv2d import PackedConv2d

from .capture import tensor_of
from .epilogue import layer_of

__all__ = ["run_channels_last"]


def run_channels_last(model: fx.GraphModule) -> None:
    """Convert the graph's inputs of four dimensions that compressed convolutions read; every layer keeps the format."""
    for node in list(model.graph.nodes):
        seen = tensor_of(node)
        if node.op != "placeholder" or seen is None or len(seen.shape) != 4:
            continue
        readers = [user for user in node.users if isinstance(layer_of(model, user), PackedConv2d)]
        if not readers:
            continue
        with model.graph.inserting_before(readers[0]):
            converted = model.graph.call_function(as_channels_last, (node,))
        converted.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, converted)


def as_channels_last(x: Tensor) -> Tensor:
    """The same images ``[n, c, h, w]``, channels innermost; one channel lies so already but for its strides."""
    n, c, h, w = x.shape
    if c == 1 and x.is_contiguous():
        return x.as_strided((n, c, h, w), (h * w, 1, w, 1))
    return x.contiguous(memory_format=torch.channels_last)
