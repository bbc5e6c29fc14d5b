"""Images run channels-last through convolutions: the kernels read whole pixels, and transpose what comes otherwise.

Only where no bit can change: compressed convolutions, ReLU, additions and pooling by maximum give the same values in
both orders. What else reads a value gets it in the order that the model would have given it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastcompress.nn.conv2d import PackedConv2d
from fastcompress.ops.reference import memory_format

from .capture import tensor_of
from .epilogue import layer_of, moves_are_safe, relu_of

__all__ = ["run_channels_last"]


def run_channels_last(model: fx.GraphModule) -> None:
    """Convert the graph's inputs of four dimensions that compressed convolutions read, and convert back behind them."""
    if not moves_are_safe(model):
        return
    # Node that is channels-last whatever came → node that says whether the model's own value would be, too.
    inside: dict[fx.Node, fx.Node] = {}
    for node in list(model.graph.nodes):
        if node.op == "placeholder":
            _convert_input(model, node, inside)
        elif node not in inside:
            came = _stays_inside(model, node, inside)
            if came is not None:
                inside[node] = came
    for node, came in inside.items():
        if node.target is not as_channels_last:
            _convert_back(model, node, came, inside)


def _convert_input(model: fx.GraphModule, node: fx.Node, inside: dict[fx.Node, fx.Node]) -> None:
    seen = tensor_of(node)
    readers = [user for user in node.users if isinstance(layer_of(model, user), PackedConv2d)]
    readers = [user for user in readers if user.args[0] is node]
    if seen is None or len(seen.shape) != 4 or not readers:
        return
    last_input = [other for other in model.graph.nodes if other.op == "placeholder"][-1]
    with model.graph.inserting_after(last_input):
        came = model.graph.call_function(came_channels_last, (node,))
    with model.graph.inserting_after(came):
        converted = model.graph.call_function(as_channels_last, (node,))
    converted.meta = dict(node.meta)
    inside[converted] = came
    for reader in readers:
        reader.args = (converted,)


def _stays_inside(model: fx.GraphModule, node: fx.Node, inside: dict[fx.Node, fx.Node]) -> fx.Node | None:
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or first not in inside or tensor_of(node) is None:
        return None
    if isinstance(layer_of(model, node), PackedConv2d) or relu_of(model, node) is not None:
        return inside[first]
    pooling = node.target is F.max_pool2d or (
        node.op == "call_module" and type(model.get_submodule(str(node.target))) is nn.MaxPool2d
    )
    if pooling:
        return inside[first]
    if node.target in (operator.add, operator.iadd, torch.add) and len(node.args) == 2 and not node.kwargs:
        second = node.args[1]
        both = isinstance(second, fx.Node) and inside.get(second) is inside[first]
        return inside[first] if both else None
    return None


def _convert_back(model: fx.GraphModule, node: fx.Node, came: fx.Node, inside: dict[fx.Node, fx.Node]) -> None:
    # A residual may come in either order: the operator reads it as its output lies.
    outside = [user for user in node.users if user not in inside and layer_of(model, user) is None]
    outside += [user for user in node.users if user not in inside and _reads(user, node) and user not in outside]
    if not outside:
        return
    with model.graph.inserting_after(node):
        restored = model.graph.call_function(as_it_came, (node, came))
    restored.meta = dict(node.meta)
    for user in outside:
        user.replace_input_with(node, restored)


def _reads(user: fx.Node, node: fx.Node) -> bool:
    return bool(user.args) and user.args[0] is node


def came_channels_last(x: Tensor) -> bool:
    """Whether torch would answer these images channels-last."""
    return x.dim() == 4 and memory_format(x) is torch.channels_last


def as_channels_last(x: Tensor) -> Tensor:
    """The same images ``[n, c, h, w]``, channels innermost; one channel lies so already but for its strides."""
    if x.dim() != 4:
        return x
    n, c, h, w = x.shape
    if c == 1 and x.is_contiguous():
        return x.as_strided((n, c, h, w), (h * w, 1, w, 1))
    return x.contiguous(memory_format=torch.channels_last)


def as_it_came(x: Any, channels_last: bool) -> Any:
    """The same values, contiguous unless the input came channels-last."""
    if channels_last or x.dim() != 4:
        return x
    _, c, h, w = x.shape
    return x.contiguous().as_strided(x.shape, (c * h * w, h * w, w, 1))
