"""ONNX Runtime: fp32, and int8 by its own quantizer: static for images, dynamic for tokens, each its stronger one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["candidates"]


def candidates(model: nn.Module, x: Tensor, threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Export ``model`` to ONNX in ``folder`` and return calls of its fp32 and int8 sessions."""
    import onnxruntime

    fp32, int8 = folder / f"{id(model)}.onnx", folder / f"{id(model)}.int8.onnx"
    with torch.no_grad():
        torch.onnx.export(model, (x,), str(fp32), dynamo=True, external_data=False, verbose=False)
    name = onnxruntime.InferenceSession(str(fp32), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    feed = {name: x.numpy()}
    kind = quantize(fp32, int8, feed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    calls: dict[str, Callable[[], object]] = {}
    for label, path in (("fp32", fp32), (kind, int8)):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        calls[f"onnxruntime {label}"] = lambda session=session: session.run(None, feed)  # type: ignore[misc]
    return calls


def quantize(fp32: Path, int8: Path, feed: dict[str, Any]) -> str:
    """Write the int8 network and say which kind it is; the one calibration sample sets ranges, which cost no time."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    if next(iter(feed.values())).dtype.kind != "f":
        quantize_dynamic(str(fp32), str(int8), weight_type=QuantType.QInt8)
        return "int8 dynamic"

    class OneSample(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the feed once."""

        def __init__(self) -> None:
            self.left = [feed]

        def get_next(self) -> dict[str, Any] | None:
            """Return the next sample, ``None`` after the last."""
            return self.left.pop() if self.left else None

    quantize_static(str(fp32), str(int8), OneSample(), per_channel=True, weight_type=QuantType.QInt8)
    return "int8 static"
