"""The two speed rows that every network has, and its line in the details."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor

import fastcompress as fc
from benchmarks.harness.suite import Context

__all__ = ["speed_rows"]


def speed_rows(
    context: Context,
    key: str,
    model: nn.Module,
    quantized: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    eager: str,
) -> None:
    """Time ``quantized`` against every dense form of ``model``: record ``<key>.eager`` and ``<key>.strongest``.

    ``eager`` names the form that the target speaks of. Compilation freezes the weights, its strongest setting.
    """
    with inductor.patch(freezing=True), torch.no_grad():
        seen = fc.benchmark(
            quantized, model, inputs, compiled=not context.quick, min_time_s=max(0.01, context.budget.seconds)
        )
    milliseconds = {row.name: round(row.seconds * 1e3, 4) for row in seen.rows if row.seconds is not None}
    missing = "".join(f"; no {row.name} ({row.note})" for row in seen.rows if row.seconds is None)
    times = ", ".join(f"{name} {value:.2f}" for name, value in milliseconds.items())
    context.add(f"{key}.eager", seen.speedup_over(eager), note=f"ms: {times}")
    context.add(f"{key}.strongest", seen.speedup, note=f"{seen.strongest_dense.name}{missing}")
    context.report.details.setdefault("models", []).append({"model": key, "times_ms": milliseconds})
