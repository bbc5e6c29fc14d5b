"""The dense baselines of a network: torch fp32 eager, compiled, bf16, and channels-last for convolutional ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.harness.layout import channels_last
from benchmarks.harness.timing import Timing

__all__ = ["EAGER", "Inputs", "call", "dense_candidates", "strongest"]

#: One batch: a tensor for ``model(x)``, a mapping for ``model(**x)``.
Inputs = Tensor | Mapping[str, Tensor]

EAGER = "fp32 eager"


@dataclass(frozen=True)
class Dense:
    """The candidates by name, and why others are missing."""

    calls: dict[str, Callable[[], object]]
    skipped: dict[str, str] = field(default_factory=dict)


def call(model: Callable[..., object], inputs: Inputs) -> object:
    """Run a model on one batch."""
    return model(inputs) if isinstance(inputs, Tensor) else model(**inputs)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Return a batch with its floating-point tensors in ``dtype``; token numbers stay."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def dense_candidates(model: nn.Module, inputs: Inputs, *, compiled: bool = True, convolutional: bool = False) -> Dense:
    """Return calls of ``model`` in fp32 eager, fp32 compiled and bf16; all channels-last when ``convolutional``.

    Compilation uses the inductor with frozen weights, its strongest setting for inference; where it fails (no C++
    compiler), the reason stands in ``skipped``.
    """
    fp32 = copy.deepcopy(model).eval()
    bf16 = copy.deepcopy(model).eval().to(torch.bfloat16)
    if convolutional:
        channels_last(fp32)
        channels_last(bf16)
        inputs = inputs.to(memory_format=torch.channels_last) if isinstance(inputs, Tensor) else inputs
    inputs_bf16 = cast(inputs, torch.bfloat16)
    calls: dict[str, Callable[[], object]] = {EAGER: lambda: call(fp32, inputs)}
    skipped: dict[str, str] = {}
    if compiled:
        fast = torch.compile(copy.deepcopy(fp32), options={"freezing": True})
        try:
            call(fast, inputs)
            calls["fp32 compiled"] = lambda: call(fast, inputs)
        except Exception as error:
            skipped["fp32 compiled"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    calls["bf16 eager"] = lambda: call(bf16, inputs_bf16)
    return Dense(calls, skipped)


def strongest(times: Mapping[str, Timing], candidates: Mapping[str, object]) -> str:
    """Return the name of the fastest dense candidate."""
    return min(candidates, key=lambda name: times[name].median)
