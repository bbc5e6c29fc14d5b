"""`freeze`: a compressed model as one program for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .capture import bound_inputs, capture, cloned
from .epilogue import fuse_epilogues, remove_idle
from .frozen import FrozenModel
from .images import run_channels_last
from .links import link_layers

__all__ = ["freeze"]


def freeze(model: nn.Module, example_inputs: Any) -> FrozenModel:
    """Make one program for inference of a compressed model: the same bits, without what lies between its layers.

    Layers hand uint8 tensors to the int8 layers behind them and add residuals and apply ReLU in their epilogue; images
    run channels-last through compressed convolutions; and no modules are called around the layers.

    Args:
        model: what `quantize` or `convert` returned; not changed. Layers that were not compressed stay what they are.
        example_inputs: one batch, as in `quantize`. Other batch and image sizes may come later, other dtypes not.

    Returns:
        A `FrozenModel` in eval mode. It shares no memory with ``model``.

    Raises:
        TypeError: ``model`` is no module, or ``example_inputs`` no batch.
        ValueError: the model cannot be captured as one graph; the message says what stopped it.
        RuntimeError: the program gives other bits than the model for ``example_inputs``, as with a random layer.

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
    inputs = bound_inputs(captured.graph, example_inputs)
    remove_idle(captured)
    additions, activations = fuse_epilogues(captured)
    links = link_layers(captured)
    run_channels_last(captured)
    captured.graph.lint()
    captured.delete_all_unused_submodules()
    captured.recompile()
    frozen = FrozenModel(captured, additions, activations, links)
    _compare(model, frozen, inputs)
    return frozen


def _compare(model: nn.Module, frozen: FrozenModel, inputs: tuple[Any, ...]) -> None:
    with torch.no_grad():
        expected, found = tree_leaves(model(*cloned(inputs))), tree_leaves(frozen(*cloned(inputs)))
    same = [_same(x, y) for x, y in zip(expected, found, strict=False)]
    if len(expected) == len(found) and all(same):
        return
    place = same.index(False) if False in same else len(same)
    x, y = expected[place : place + 1], found[place : place + 1]
    largest = ""
    if x and y and isinstance(x[0], Tensor) and isinstance(y[0], Tensor) and x[0].shape == y[0].shape:
        largest = f", by up to {float((x[0].double() - y[0].double()).abs().max()):.3g}"
    raise RuntimeError(
        f"freeze: output {place} of the program differs from the model's for example_inputs{largest}; if no layer is "
        "random in eval mode, this is a bug: please report it, and use the model itself"
    )


def _same(x: Any, y: Any) -> bool:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return bool(x == y)
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if not x.is_floating_point():
        return torch.equal(x, y)
    signs = torch.signbit(x) == torch.signbit(y)  # 0 and -0 are equal numbers and other bits
    return bool((((x == y) & signs) | (x.isnan() & y.isnan())).all())
