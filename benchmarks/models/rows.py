"""The two speed rows that every network has, and its line in the details."""

from __future__ import annotations

from torch import nn

from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from benchmarks.models.dense import EAGER, Inputs, call, dense_candidates, strongest

__all__ = ["speed_rows"]

OURS = "fastcompress"


def speed_rows(
    context: Context, key: str, model: nn.Module, quantized: nn.Module, inputs: Inputs, *, convolutional: bool = False
) -> None:
    """Time ``quantized`` against every dense form of ``model`` and record ``<key>.eager`` and ``<key>.strongest``."""
    dense = dense_candidates(model, inputs, compiled=not context.quick, convolutional=convolutional)
    times = interleave({OURS: lambda: call(quantized, inputs), **dense.calls}, context.budget)
    best = strongest(times, dense.calls)
    milliseconds = ", ".join(f"{name} {timing.median * 1e3:.2f}" for name, timing in times.items())
    missing = "".join(f"; no {name} ({why})" for name, why in dense.skipped.items())
    context.add_ratio(f"{key}.eager", times, EAGER, OURS, f"ms: {milliseconds}")
    context.add_ratio(f"{key}.strongest", times, best, OURS, f"{best}{missing}")
    line = {name: round(timing.median * 1e3, 4) for name, timing in times.items()}
    context.report.details.setdefault("models", []).append({"model": key, "times_ms": line})
