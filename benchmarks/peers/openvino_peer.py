"""OpenVINO: fp32 and bf16 inference of the converted network (its int8 needs NNCF and is left to it)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["candidates"]


def candidates(model: nn.Module, x: Tensor, threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Convert ``model`` and return calls of it compiled for fp32 and bf16; ``folder`` holds the compiler's cache."""
    import openvino

    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=x)
    calls: dict[str, Callable[[], object]] = {}
    for label in ("f32", "bf16"):
        properties = {
            "INFERENCE_PRECISION_HINT": label,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "CACHE_DIR": str(folder),
        }
        request = openvino.Core().compile_model(converted, "CPU", properties).create_infer_request()
        feed = x.numpy()
        calls[f"openvino {label}"] = lambda request=request, feed=feed: request.infer([feed])  # type: ignore[misc]
    return calls
