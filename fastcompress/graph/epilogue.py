"""Additions and activations that follow a layer move into its epilogue, where they cost no pass over memory."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastcompress.nn import PackedLayer

from .capture import same_shapes, tensor_of
from .mutation import changes_others

__all__ = ["fuse_epilogues", "layer_of", "moves_are_safe", "relu_of", "remove_idle"]

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUNCTIONS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", "relu": "relu", "relu_": "relu", F.relu6: "relu6"}
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

#: Modules of torch that give a new tensor.
_MAKERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)


def layer_of(model: fx.GraphModule, node: Any) -> PackedLayer | None:
    """The compressed layer with an epilogue that a node calls, if it calls one on one tensor."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1:
        return None
    layer = model.get_submodule(str(node.target))
    return layer if isinstance(layer, PackedLayer) and layer.has_epilogue and not layer.reordered else None


def remove_idle(model: fx.GraphModule) -> None:
    """Take out what does nothing in eval mode: ``Identity`` and dropout."""
    for node in model.graph.nodes:
        plain = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
        if plain and type(model.get_submodule(str(node.target))) in _IDLE:
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)


def moves_are_safe(model: fx.GraphModule) -> bool:
    """Whether no step changes a tensor that another one reads, so that steps may move along the graph."""

    def is_fresh(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(model.get_submodule(str(node.target)), (PackedLayer, *_MAKERS))
        if node.target in (operator.iadd, "add_"):  # hands on what it wrote into
            written = node.args[0]
            return isinstance(written, fx.Node) and len(written.users) == 1 and is_fresh(written)
        return node.op == "call_function" and node.target in (operator.add, torch.add)

    return not changes_others(model, is_fresh)


def fuse_epilogues(model: fx.GraphModule) -> tuple[int, int]:
    """Fuse residual additions, then activations; returns how many of each.

    A call whose layer gets an activation calls a copy of that layer; the modules that ``model`` was made from, and
    other calls of the same layer, stay as they are.
    """
    additions = 0
    if moves_are_safe(model):
        additions = sum(_fuse_addition(model, node) for node in list(model.graph.nodes))
    activations = sum(_fuse_activation(model, node) for node in list(model.graph.nodes))
    return additions, activations


def _fuse_addition(model: fx.GraphModule, addition: fx.Node) -> bool:
    called = addition.op in ("call_function", "call_method")
    if not called or addition.target not in _ADDITIONS or len(addition.args) != 2 or addition.kwargs:
        return False
    order = {node: place for place, node in enumerate(model.graph.nodes)}
    pair = [node for node in addition.args if isinstance(node, fx.Node)]
    # The later of two layers takes the earlier one's output.
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
    """An epilogue does not broadcast; and in 16 bits torch rounds the layer's output before it adds."""
    first, second = tensor_of(a), tensor_of(b)
    floats = all(seen is not None and seen.dtype == torch.float32 for seen in (first, second))
    return floats and same_shapes(a, b)


def _fuse_activation(model: fx.GraphModule, node: fx.Node) -> bool:
    source = node.args[0] if len(node.args) == 1 else None
    layer = layer_of(model, source)
    if layer is None or not isinstance(source, fx.Node) or layer.activation != "none" or len(source.users) != 1:
        return False
    name, seen = relu_of(model, node), tensor_of(source)
    if name is None or seen is None or seen.dtype != torch.float32:  # float16 rounds tiny negatives to -0 first
        return False
    node.replace_all_uses_with(source)
    model.graph.erase_node(node)
    place = f"{str(source.target).replace('.', '_')}_{name}"
    while hasattr(model, place):
        place += "_"
    model.add_submodule(place, layer.with_activation(name))
    source.target = place
    return True


def relu_of(model: fx.GraphModule, node: fx.Node) -> str | None:
    """``"relu"`` or ``"relu6"`` where a node computes that: epilogues do both to the bit as torch does."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) is nn.ReLU:
            return "relu"
        six = isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0)
        return "relu6" if six and type(module) in (nn.ReLU6, nn.Hardtanh) else None
    if node.op not in ("call_function", "call_method") or (node.kwargs and set(node.kwargs) != {"inplace"}):
        return None
    return _FUNCTIONS.get(node.target)
