"""A model as a graph of its layers' calls, recorded with ``torch.fx`` and run to know every tensor."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_map

from fastcompress.models.copying import is_one_program
from fastcompress.nn import PackedLayer

from .mutation import AUGMENTED

__all__ = ["bound_inputs", "capture", "cloned", "same_shapes", "tensor_of"]

_META = "tensor_meta"
_DOUBLED = "doubled_meta"


class _Proxy(fx.Proxy):
    """``x += y`` is recorded as it is; torch.fx makes ``x + y`` of it, which other names of ``x`` would not see."""


def _record_in_place(name: str) -> None:
    function = getattr(operator, name)

    def recorded(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    setattr(_Proxy, f"__{name}__", recorded)


for _name in AUGMENTED:
    _record_in_place(_name)


class _LayerTracer(fx.Tracer):
    """Compressed layers stay whole, as torch's own modules do."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, PackedLayer) or is_one_program(m)
        return whole or super().is_leaf_module(m, module_qualified_name)


def capture(model: nn.Module, example: Any) -> fx.GraphModule:
    """Trace ``model`` and note dtype and shape of every value, for ``example`` and for twice as many samples.

    Args:
        model: in eval mode; not changed.
        example: one batch: a tensor, a mapping of keyword arguments, or a tuple or list (its first element).

    Raises:
        TypeError, ValueError: ``example`` is no batch of the model.
        ValueError: the model decides by the values or sizes of its tensors; the message says what stopped the tracing.
    """
    try:
        tracer = _LayerTracer()
        graph = tracer.trace(model)
        captured = fx.GraphModule(tracer.root, graph, type(model).__name__)
    except Exception as error:  # fx raises whatever the model does with a value that stands for any tensor
        raise _not_captured(model, error) from error
    inputs = bound_inputs(graph, example)
    for node in graph.nodes:
        _name_inputs_by_place(captured, node)
    try:
        with torch.no_grad():
            ShapeProp(captured).propagate(*cloned(inputs))
    except Exception as error:
        raise _not_captured(model, error) from error
    _note_doubled(captured, inputs)
    return captured


def _not_captured(model: nn.Module, error: Exception) -> ValueError:
    return ValueError(
        f"freeze: {type(model).__name__} cannot be captured as one graph: {error}; freeze the part of it that has no "
        "control flow on tensors and optional inputs (model.body = fc.freeze(model.body, …)), or leave it as it is"
    )


def _name_inputs_by_place(captured: fx.GraphModule, node: fx.Node) -> None:
    """``layer(input=x)`` is ``layer(x)``."""
    named = node.op == "call_module" and not node.args and list(node.kwargs) == ["input"]
    if named and isinstance(captured.get_submodule(str(node.target)), PackedLayer):
        node.args, node.kwargs = (node.kwargs["input"],), {}


def _note_doubled(captured: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
    """Shapes that agree for two batch sizes agree for all; a model that takes one size only has no second shapes."""
    first = {node: node.meta.get(_META) for node in captured.graph.nodes}
    try:
        with torch.no_grad():
            ShapeProp(captured).propagate(*_doubled(inputs))
        second = {node: node.meta.get(_META) for node in captured.graph.nodes}
    except Exception:  # whatever the model raises for another batch size
        second = {}
    for node in captured.graph.nodes:
        node.meta[_META], node.meta[_DOUBLED] = first[node], second.get(node)


def cloned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies in the same memory format: a model may change its inputs in place."""
    copies: tuple[Any, ...] = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
    return copies


def _doubled(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same inputs with every sample twice."""
    twice: tuple[Any, ...] = tree_map(
        lambda x: torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() > 0 else x, inputs
    )
    return twice


def bound_inputs(graph: fx.Graph, example: Any) -> tuple[Any, ...]:
    """The batch as one value for each input of the graph, in its order.

    Raises:
        TypeError, ValueError: it is no batch, or lacks an input or has too many.
    """
    while isinstance(example, (tuple, list)):
        if not example:
            raise ValueError("freeze: example_inputs is an empty tuple or list; its first element is the input")
        example = example[0]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if isinstance(example, Tensor):
        given: Mapping[str, Any] = {} if not inputs else {str(inputs[0].target): example}
    elif isinstance(example, Mapping):
        given = example
    else:
        raise TypeError(
            f"freeze: example_inputs is a {type(example).__name__}; allowed are a tensor, a dict of keyword arguments, "
            "and a tuple or list whose first element is one of these"
        )
    names = [str(node.target) for node in inputs]
    unknown = [name for name in given if name not in names]
    missing = [str(node.target) for node in inputs if str(node.target) not in given and not node.args]
    if unknown or missing:
        raise ValueError(
            f"freeze: example_inputs must be the model's inputs {', '.join(names)}"
            + (f"; unknown: {', '.join(unknown)}" if unknown else "")
            + (f"; missing: {', '.join(missing)}" if missing else "")
        )
    return tuple(given.get(str(node.target), node.args[0] if node.args else None) for node in inputs)


def tensor_of(node: fx.Node) -> Any:
    """Shape and dtype of the one tensor that a node gave for the example, or None where it gave something else."""
    meta = node.meta.get(_META)
    return meta if hasattr(meta, "dtype") else None


def same_shapes(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes gave one shape for both batch sizes."""
    pairs: list[tuple[Any, Any]] = [(a.meta.get(key), b.meta.get(key)) for key in (_META, _DOUBLED)]
    return all(hasattr(x, "shape") and hasattr(y, "shape") and x.shape == y.shape for x, y in pairs)
