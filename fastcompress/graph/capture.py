"""A model as a graph of its layers' calls, recorded with ``torch.fx`` and run once to know every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from fastcompress.nn import PackedLayer

__all__ = ["bound_inputs", "capture", "tensor_of"]

_META = "tensor_meta"


class _LayerTracer(fx.Tracer):
    """Compressed layers stay whole, as torch's own modules do."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PackedLayer) or super().is_leaf_module(m, module_qualified_name)


def capture(model: nn.Module, example: Any) -> fx.GraphModule:
    """Trace ``model`` and note dtype and shape of every value for ``example``.

    Args:
        model: in eval mode; not changed.
        example: one batch: a tensor, a mapping of keyword arguments, or a tuple or list (its first element).

    Raises:
        ValueError: the model decides by the values or sizes of its tensors, or takes no such batch; the message names
            what stopped the tracing.
    """
    tracer = _LayerTracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # fx raises whatever the model does with a value that stands for any tensor
        raise ValueError(
            f"freeze: {type(model).__name__} cannot be captured as one graph: {error}; freeze the part of it that has "
            "no control flow on tensors (model.body = fc.freeze(model.body, …)), or leave it as it is"
        ) from error
    captured = fx.GraphModule(tracer.root, graph, type(model).__name__)
    with torch.no_grad():
        ShapeProp(captured).propagate(*bound_inputs(captured.graph, example))
    return captured


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
