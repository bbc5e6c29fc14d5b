"""How long GPTQ takes for SmolLM2-135M-Instruct; what it gains is the ``perplexity`` suite's matter."""

from __future__ import annotations

import logging
import time

import torch

import fastcompress as fc
from benchmarks.harness.suite import Context
from benchmarks.language_targets import GROUP_SIZES
from examples.smollm2 import load_smollm2, text_windows

__all__ = ["run"]

_WINDOWS, _LENGTH = 64, 512


def run(context: Context) -> None:
    """Measure the ``gptq`` suite."""
    logging.getLogger("fastcompress").setLevel(logging.ERROR)  # the head stays float, as the record says
    model = load_smollm2()
    count = 2 if context.quick else _WINDOWS
    data = list(text_windows("calibration", count, _LENGTH).split(1))
    start = time.perf_counter()
    with torch.inference_mode(False), torch.no_grad():
        fc.quantize(model, fc.QuantConfig("W4A16", algorithm="gptq", group_size=max(GROUP_SIZES)), data, progress=False)
    minutes = (time.perf_counter() - start) / 60.0
    context.add("gptq.minutes", minutes, note=f"{count}×{_LENGTH} tokens, group {max(GROUP_SIZES)}")
