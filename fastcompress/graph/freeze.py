"""`freeze`: a compressed model as one program for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastcompress.models.calibrate import run_batch

from .capture import bound_inputs, capture
from .epilogue import fuse_epilogues, remove_idle
from .frozen import FrozenModel
from .images import run_channels_last
from .links import link_layers

__all__ = ["freeze"]


def freeze(model: nn.Module, example_inputs: Any) -> FrozenModel:
    """Make one program for inference of a compressed model: the same bits, without what lies between its layers.

    Layers hand uint8 tensors to the int8 layers behind them and add residuals and apply ReLU in their epilogue; images
    run channels-last; and no modules are called around the layers.

    Args:
        model: what `quantize` or `convert` returned; not changed. Layers that were not compressed stay what they are.
        example_inputs: one batch, as in `quantize`. Other batch and image sizes may come later, other dtypes not.

    Returns:
        A `FrozenModel` in eval mode. It shares no memory with ``model``.

    Raises:
        TypeError: ``model`` is no module, or ``example_inputs`` no batch.
        ValueError: the model cannot be captured as one graph; the message says what stopped it.
        RuntimeError: the program does not give the model's bits for ``example_inputs`` (a random layer in eval mode).

    Example:
        >>> small = fc.quantize(model, "W8A8", calibration_data=loader)
        >>> fast = fc.freeze(small, example_inputs=x)
        >>> torch.equal(fast(x), small(x))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, FrozenModel):
        return copy.deepcopy(model)
    model = copy.deepcopy(model).eval()
    captured = capture(model, example_inputs)
    remove_idle(captured)
    additions, activations = fuse_epilogues(captured)
    links = link_layers(captured)
    run_channels_last(captured)
    captured.graph.lint()
    captured.delete_all_unused_submodules()
    captured.recompile()
    frozen = FrozenModel(captured, additions, activations, links)
    with torch.no_grad():
        expected = run_batch(model, example_inputs, function="freeze", noun="batch of example_inputs")
        found = frozen(*bound_inputs(captured.graph, example_inputs))
    if not _same(expected, found):
        raise RuntimeError(
            "freeze: the program does not give the model's bits for example_inputs; if no layer is random in eval "
            "mode, this is a bug: please report it, and use the model itself"
        )
    return frozen


def _same(a: Any, b: Any) -> bool:
    first, second = tree_leaves(a), tree_leaves(b)
    return len(first) == len(second) and all(_same_leaf(x, y) for x, y in zip(first, second, strict=True))


def _same_leaf(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.dtype == y.dtype and x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())
    return bool(x == y)
