"""Running a model on calibration data and keeping what a criterion needs to know of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn, evaluating, run_batch, run_batches

from .criteria import magnitude_scores, random_scores, taylor_scores, wanda_scores
from .layers import PrunableLayer
from .source import Source
from .sparsegpt import Hessian

__all__ = ["Evidence", "batch_loss", "evidence", "float_tensors"]

#: Hessians of at most this many elements are kept at once (1 GiB); more take another pass over the data.
_HESSIAN_ELEMS = 1 << 28


@dataclass(frozen=True)
class Evidence:
    """What is known about one layer: scores of its weight's shape, or why there are none; SparseGPT's Hessian."""

    scores: Tensor | None = None
    hessian: Tensor | None = None
    problem: str | None = None


def evidence(
    model: nn.Module, layers: Sequence[PrunableLayer], criterion: str, source: Source
) -> Iterator[tuple[PrunableLayer, Evidence]]:
    """Each layer with its evidence, in order; the model is only run, never changed.

    Raises:
        ValueError: no batches, or a loss without a gradient. Whatever the model raises is passed on.
    """
    if criterion == "magnitude":
        for layer in layers:
            yield layer, Evidence(magnitude_scores(layer.weight))
    elif criterion == "random":
        generator = torch.Generator().manual_seed(source.seed)
        for layer in layers:
            yield layer, Evidence(random_scores(layer.weight, generator))
    elif criterion == "wanda":
        yield from zip(layers, _wanda(model, layers, source), strict=True)
    elif criterion == "taylor":
        yield from zip(layers, _taylor(model, layers, source), strict=True)
    else:
        for part in _parts(layers):
            yield from zip(part, _hessians(model, part, source), strict=True)


@contextmanager
def _listening(layers: Sequence[PrunableLayer], listen: Callable[[int, Tensor], None]) -> Iterator[None]:
    """``listen(index, input)`` at each call of a layer."""
    with ExitStack() as stack:
        for index, layer in enumerate(layers):

            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
                x = args[0] if args else kwargs.get("input")
                if isinstance(x, Tensor):
                    listen(index, x.detach())

            for module in layer.modules:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _run(model: nn.Module, source: Source, forward_fn: ForwardFn | None, description: str) -> None:
    batches = source.batches
    assert batches is not None, "the caller checks that there is data"
    with evaluating(model):
        run_batches(
            model, batches, forward_fn, description=description, progress=source.progress, function=source.function
        )


_UNSEEN = "it was never called during calibration"


def _wanda(model: nn.Module, layers: Sequence[PrunableLayer], source: Source) -> Iterator[Evidence]:
    squares: list[Tensor | None] = [None] * len(layers)

    def listen(index: int, x: Tensor) -> None:
        if x.numel() == 0:
            return
        is_conv = isinstance(layers[index].candidate.module, nn.Conv2d)
        channels = x.movedim(-3, -1) if is_conv else x
        total = channels.reshape(-1, channels.shape[-1]).double().square().sum(dim=0)
        found = squares[index]
        squares[index] = total if found is None else found + total

    with _listening(layers, listen):
        _run(model, source, source.forward_fn, "measuring inputs")
    for layer, found in zip(layers, squares, strict=True):
        if found is None:
            yield Evidence(problem=_UNSEEN)
        elif not bool(torch.isfinite(found).all()):
            yield Evidence(problem="its inputs in calibration held NaN or infinity")
        elif not bool(found.any()):
            yield Evidence(problem="its inputs were zero throughout calibration")
        else:
            yield Evidence(wanda_scores(layer.weight, found.sqrt().float(), layer.groups))


def _taylor(model: nn.Module, layers: Sequence[PrunableLayer], source: Source) -> Iterator[Evidence]:
    parameters = [layer.parameter for layer in layers]
    totals: list[Tensor | None] = [None] * len(layers)

    def forward(model: nn.Module, batch: Any) -> None:
        with torch.enable_grad():
            loss = batch_loss(run_batch(model, batch, source.forward_fn, function=source.function), batch, source)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                scores = taylor_scores(layers[index].weight, gradient)
                found = totals[index]
                totals[index] = scores if found is None else found + scores

    trainable = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        if parameters:
            _run(model, source, forward, "measuring gradients")
    finally:
        for parameter, flag in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(flag)
    for layer, found in zip(layers, totals, strict=True):
        if found is None:
            yield Evidence(problem="no gradient reached it during calibration")
        elif not bool(torch.isfinite(found).all()):
            yield Evidence(problem="its gradients in calibration held NaN or infinity")
        elif not bool(found.any()) and bool(layer.weight.any()):
            yield Evidence(problem="its gradients were zero throughout calibration")
        else:
            yield Evidence(found)


def batch_loss(output: Any, batch: Any, source: Source) -> Tensor:
    """The scalar that Taylor scores differentiate.

    Raises:
        ValueError: it is no scalar tensor, or has no gradient.
    """
    if source.loss_fn is None:
        tensors = float_tensors(output)
        if not tensors:
            raise ValueError(
                f"{source.function}: criterion 'taylor' found no float tensor in the model's output "
                f"({type(output).__name__}); pass loss_fn=lambda output, batch: …"
            )
        loss: object = tensors[0].float().square().sum()
    else:
        loss = source.loss_fn(output, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:80]
        raise ValueError(f"{source.function}: loss_fn(output, batch) must return a scalar tensor, got {got}")
    if not loss.requires_grad:
        raise ValueError(
            f"{source.function}: criterion 'taylor' needs a loss with a gradient, but nothing in it depends on the "
            "layers: the model may run under no_grad, or loss_fn may detach; use another criterion or another loss_fn"
        )
    return loss


def float_tensors(output: Any) -> list[Tensor]:
    """The float tensors in nested tuples, lists and mappings, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    return [tensor for item in output for tensor in float_tensors(item)] if isinstance(output, (tuple, list)) else []


def _parts(layers: Sequence[PrunableLayer]) -> Iterator[list[PrunableLayer]]:
    """The layers in runs whose Hessians fit into memory together."""
    part: list[PrunableLayer] = []
    elems = 0
    for layer in layers:
        size = layer.weight[0].numel() ** 2
        if part and elems + size > _HESSIAN_ELEMS:
            yield part
            part, elems = [], 0
        part.append(layer)
        elems += size
    if part:
        yield part


def _hessians(model: nn.Module, layers: Sequence[PrunableLayer], source: Source) -> Iterator[Evidence]:
    refused = [Hessian.problem(layer.candidate.module) for layer in layers]
    hessians = [
        Hessian(layer.candidate.module) if problem is None else None
        for layer, problem in zip(layers, refused, strict=True)
    ]

    def listen(index: int, x: Tensor) -> None:
        hessian = hessians[index]
        if hessian is not None:
            hessian.update(x)

    if any(hessian is not None for hessian in hessians):
        with _listening(layers, listen):
            _run(model, source, source.forward_fn, "measuring inputs")
    for index, problem in enumerate(refused):
        hessian, hessians[index] = hessians[index], None  # one is freed before the next is used
        if hessian is None:
            yield Evidence(problem=problem)
        elif hessian.rows == 0:
            yield Evidence(problem=_UNSEEN)
        else:
            yield Evidence(hessian=hessian.matrix)
