"""Running a model that lost channels: does it still work, and what does it cost."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any, cast

from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn, evaluating, run_batch
from fastcompress.models.targets import tied_groups

from .evidence import float_tensors
from .layers import find_layers

__all__ = ["check_runs", "check_ties", "count_macs"]


def count_macs(model: nn.Module, example_inputs: Any, forward_fn: ForwardFn | None = None) -> int:
    """Multiply-accumulates of all linears and convolutions when the model runs on one batch.

    Example:
        >>> count_macs(nn.Linear(8, 4), torch.ones(2, 8))
        64
    """
    total = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * math.prod(cast(Tensor, module.weight).shape[1:])

    with ExitStack() as stack, evaluating(model):
        for candidate in find_layers(model):
            stack.callback(candidate.module.register_forward_hook(count).remove)
        run_batch(model, example_inputs, forward_fn, function="prune_channels")
    return total


def check_runs(result: nn.Module, dense: nn.Module, example_inputs: Any, forward_fn: ForwardFn | None) -> None:
    """Run the smaller model once and compare the shapes of its outputs with those of ``dense``.

    Raises:
        ValueError: it does not run, or its outputs changed; the message names the module.
    """
    with evaluating(dense):
        expected = [x.shape for x in float_tensors(run_batch(dense, example_inputs, forward_fn))]
    where, error = _failing_module(result, example_inputs, forward_fn)
    if error is None:
        with evaluating(result):
            found = [x.shape for x in float_tensors(run_batch(result, example_inputs, forward_fn))]
        if found == expected:
            return
        raise ValueError(
            f"prune_channels: the outputs changed from {[list(s) for s in expected]} to {[list(s) for s in found]}; "
            "pass the layers that make them in ignore="
        )
    kind = type(result.get_submodule(where)).__name__
    raise ValueError(
        f"prune_channels: module {where or 'the model'!r} ({kind}) does not run any more when channels are missing "
        f"({type(error).__name__}: {error}); it probably has sizes written into its code: pass the layers inside, or "
        "those that feed it, in ignore="
    ) from error


def check_ties(result: nn.Module, dense: nn.Module) -> None:
    """Whether modules that share a weight in ``dense`` still share it.

    Raises:
        ValueError: two do not; the message names them.
    """
    kept = {tuple(name for name, _ in group) for group in tied_groups(result)}
    for group in tied_groups(dense):
        names = tuple(name for name, _ in group)
        if names not in kept:
            raise ValueError(
                f"prune_channels: modules {names[0]!r} and {names[1]!r} share a weight, and their channels cannot go "
                "together; pass them, and the layers that feed them, in ignore="
            )


def _failing_module(
    model: nn.Module, example_inputs: Any, forward_fn: ForwardFn | None
) -> tuple[str, Exception | None]:
    """The innermost module that raised, and what; no exception when the model runs."""
    running: list[str] = []
    with ExitStack() as stack, evaluating(model):
        for name, module in model.named_modules():

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                running.append(name)

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                running.pop()

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        try:
            run_batch(model, example_inputs, forward_fn, function="prune_channels")
        except Exception as error:
            return (running[-1] if running else ""), error
    return "", None
