"""The layers of a finished model as a report shows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastcompress.nn import BlockSparse, GroupQuantized, PackedLayer, QuantizedLayer
from fastcompress.nn.mask import mask_module
from fastcompress.report.explain import explain

from .data import ReportLayer

__all__ = ["report_layers"]

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def report_layers(model: nn.Module, trained: nn.Module, example_inputs: Any) -> tuple[ReportLayer, ...]:
    """One line for each layer but the fused ones.

    Args:
        model: the finished model.
        trained: the same with masks, of which the sparsity is told.
        example_inputs: one batch, to say which layer takes which share of the time; None leaves that out.
    """
    modules, before = dict(model.named_modules()), dict(trained.named_modules())
    lines = []
    for row in explain(model, example_inputs).rows:
        if row.action == "fused":
            continue
        module = modules[row.name]
        lines.append(
            ReportLayer(
                row.name,
                row.kind,
                row.shape,
                _sparsity(before.get(row.name)),
                _precision(module),
                row.kernel or "torch",
                row.dense_seconds,
                row.quantized_seconds if row.action in ("quantized", "sparse") else None,
                row.speedup if row.action in ("quantized", "sparse") else None,
                row.share,
                row.reason,
            )
        )
    return tuple(lines)


def _sparsity(module: nn.Module | None) -> float | None:
    mask = None if module is None else mask_module(module)
    return None if mask is None else 1.0 - mask.mask.float().mean().item()


def _precision(module: nn.Module) -> str:
    if isinstance(module, QuantizedLayer):
        return f"int{getattr(module, 'weight_bits', 8)}"
    if isinstance(module, GroupQuantized):
        return f"int{module.weight_bits}"
    if isinstance(module, BlockSparse):
        return _NAMES.get(module.canonical().blocks.dtype, str(module.canonical().blocks.dtype))
    weight = getattr(module, "weight", None)
    if isinstance(module, PackedLayer) or not isinstance(weight, torch.Tensor):
        return ""
    return _NAMES.get(weight.dtype, str(weight.dtype))
