"""Additions and activations that follow a layer move into its epilogue, where they cost no pass over memory."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastcompress.nn import PackedLayer
from fastcompress.quantization.activations import epilogue_activation

from .capture import tensor_of

__all__ = ["fuse_epilogues", "layer_of", "remove_idle"]

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")

#: Only functions that the epilogue computes to the bit as torch does: freezing changes no result.
_EXACT = ("relu", "relu6")
_FUNCTIONS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", "relu": "relu", "relu_": "relu", F.relu6: "relu6"}
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def layer_of(model: fx.GraphModule, node: Any) -> PackedLayer | None:
    """The compressed layer that a node calls, if it calls one on one tensor."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1:
        return None
    layer = model.get_submodule(str(node.target))
    return layer if isinstance(layer, PackedLayer) and not layer.reordered else None


def remove_idle(model: fx.GraphModule) -> None:
    """Take out what does nothing in eval mode: ``Identity`` and dropout."""
    for node in model.graph.nodes:
        if node.op == "call_module" and type(model.get_submodule(str(node.target))) in _IDLE:
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)


def fuse_epilogues(model: fx.GraphModule) -> tuple[int, int]:
    """Fuse residual additions, then activations; returns how many of each.

    A layer whose activation changes is replaced by a copy in ``model``; the modules that ``model`` was made from stay
    as they are.
    """
    additions = sum(_fuse_addition(model, node) for node in list(model.graph.nodes))
    activations = sum(_fuse_activation(model, node) for node in list(model.graph.nodes))
    return additions, activations


def _fuse_addition(model: fx.GraphModule, addition: fx.Node) -> bool:
    if addition.target not in _ADDITIONS or len(addition.args) != 2 or addition.kwargs:
        return False
    order = {node: place for place, node in enumerate(model.graph.nodes)}
    pair = [node for node in addition.args if isinstance(node, fx.Node)]
    # The later of two layers takes the earlier one's output; equal shapes, as an epilogue does not broadcast.
    for layer_node in sorted(pair, key=lambda node: -order[node]):
        layer = layer_of(model, layer_node)
        others = [node for node in pair if node is not layer_node]
        if layer is None or len(others) != 1 or layer.activation != "none" or len(layer_node.users) != 1:
            continue
        if layer_node.kwargs or not _alike(layer_node, others[0]):
            continue
        addition.replace_all_uses_with(layer_node)
        model.graph.erase_node(addition)
        layer_node.kwargs = {"residual": others[0]}
        if order[others[0]] > order[layer_node]:
            others[0].append(layer_node)
        return True
    return False


def _alike(a: fx.Node, b: fx.Node) -> bool:
    first, second = tensor_of(a), tensor_of(b)
    return (
        first is not None
        and second is not None
        and first.shape == second.shape
        and first.dtype == second.dtype
        and first.dtype == torch.float32  # in bfloat16 torch rounds the layer's output before it adds
    )


def _fuse_activation(model: fx.GraphModule, node: fx.Node) -> bool:
    source = node.args[0] if len(node.args) == 1 else None
    layer = layer_of(model, source)
    if layer is None or not isinstance(source, fx.Node) or layer.activation != "none" or len(source.users) != 1:
        return False
    name = _activation(model, node)
    if name not in _EXACT:
        return False
    node.replace_all_uses_with(source)
    model.graph.erase_node(node)
    model.add_submodule(str(source.target), layer.with_activation(name))
    return True


def _activation(model: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op == "call_module":
        return epilogue_activation(model.get_submodule(str(node.target)))
    if node.kwargs and set(node.kwargs) != {"inplace"}:
        return None
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
