"""What weights in groups cost SmolLM2-135M-Instruct: perplexity on real text, by algorithm and group size.

Calibration and evaluation text are the Python language reference and scikit-learn's data set descriptions, split by
document. Activations are not quantized to eight bits here: the weights are judged (W4A16), every linear but the head.
"""

from __future__ import annotations

import gc
import logging
from typing import Any

import torch
from torch import Tensor, nn

import fastcompress as fc
from benchmarks.harness.suite import Context
from benchmarks.language_targets import GROUP_SIZES
from examples.smollm2 import load_smollm2, perplexity, text_windows

__all__ = ["run"]

_LENGTH = 512
_EVALUATION = 16

#: Windows of calibration text. GPTQ of the largest groups, whose scales leave it the most to do, and the best of all
#: take the larger number; the table says which.
_FEW, _MANY = 32, 64

#: Name in the table → algorithm and its options.
_ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("rtn", {}),
    "hqq": ("hqq", {}),
    "gptq": ("gptq", {}),
    "awq": ("awq", {}),
    "awq + gptq": ("awq", {"awq_rounding": "gptq"}),
}


def run(context: Context) -> None:
    """Measure the ``perplexity`` suite; the whole table goes into the report's details."""
    logging.getLogger("fastcompress").setLevel(logging.ERROR)  # the head stays float, as the record says
    with context.part("SmolLM2-135M-Instruct, perplexity"):
        _smollm2(context)


def _smollm2(context: Context) -> None:
    model = load_smollm2()
    few, many, judged = (2, 2, 2) if context.quick else (_FEW, _MANY, _EVALUATION)
    text = list(text_windows("calibration", many, _LENGTH).split(1))
    windows = text_windows("evaluation", judged, _LENGTH)
    dense = perplexity(model, windows)
    rows = context.report.details.setdefault("perplexity", [])
    rows.append({"scheme": "fp32", "group": "", "algorithm": "", "windows": 0, "perplexity": dense})
    context.say(f"  fp32: {dense:.3f} on {windows.numel()} tokens")

    def judge(scheme: str, size: int, name: str, count: int = few) -> float:
        algorithm, options = _ALGORITHMS[name]
        config = fc.QuantConfig(scheme, algorithm=algorithm, algorithm_options=options, group_size=size)
        data = text[:count] if algorithm in ("gptq", "awq") else None
        value = _judged(model, windows, data, config)
        row: dict[str, Any] = {"scheme": scheme, "group": size, "algorithm": name, "windows": len(data or ())}
        rows.append({**row, "perplexity": value})
        context.say(f"  {scheme} group {size} {name}: {value:.3f} ({value / dense - 1:+.2%})")
        return value

    for name in ("rtn", "gptq"):
        eight = judge("W8A16", max(GROUP_SIZES), name)
        context.add(f"perplexity.W8A16.{name}", eight / dense, note=f"{eight:.3f}, original {dense:.3f}")
    for size in GROUP_SIZES:
        largest = size == max(GROUP_SIZES)
        found = {name: judge("W4A16", size, name) for name in ("rtn", "hqq", "awq")}
        found["gptq"] = judge("W4A16", size, "gptq", many if largest else few)
        for algorithm in ("hqq", "gptq", "awq"):
            note = f"{found[algorithm]:.3f}, RTN {found['rtn']:.3f}, original {dense:.3f}"
            context.add(f"perplexity.{algorithm}.{size}", found[algorithm] / found["rtn"], note=note)
        if size == min(GROUP_SIZES):
            found["awq + gptq"] = judge("W4A16", size, "awq + gptq", many)
            best = min(found, key=lambda algorithm: found[algorithm])
            context.add("perplexity.best.32", found[best] / dense, note=f"{best}: {found[best]:.3f}")


def _judged(model: nn.Module, windows: Tensor, calibration: list[Tensor] | None, config: fc.QuantConfig) -> float:
    """Perplexity of the quantized model."""
    with torch.inference_mode(False), torch.no_grad():
        compressed = fc.quantize(model, config, calibration, progress=False)
    value = perplexity(compressed, windows)
    del compressed
    gc.collect()
    return value
