"""EfficientNet-Lite0 with its ImageNet weights, static int8: speed at batch 1, top-1 agreement on crops of photos."""

from __future__ import annotations

import torch

import fastcompress as fc
from benchmarks.harness.suite import Context
from benchmarks.models.rows import speed_rows
from examples.real_models import load_efficientnet_lite0, photo_crops
from examples.schemes import EFFICIENTNET_LITE0

__all__ = ["run"]

CROPS, BATCH = 320, 16


def run(context: Context) -> None:
    """Measure the ``efficientnet_lite0`` suite."""
    model = load_efficientnet_lite0()
    calibration = list(photo_crops("calibration", 16 if context.quick else 96).split(BATCH))
    with context.part("EfficientNet-Lite0, static, 1×224×224"):
        image = photo_crops("evaluation", 1).to(memory_format=torch.channels_last)
        quantized = fc.quantize(model, EFFICIENTNET_LITE0, calibration_data=calibration, example_inputs=image)
        speed_rows(context, "efficientnet", model, quantized, image, "fp32 channels-last")
    with context.part("EfficientNet-Lite0, agreement"):
        # Every layer in int8, whether or not it is faster here: agreement must not depend on the machine.
        quantized = fc.quantize(model, EFFICIENTNET_LITE0, calibration_data=calibration, only_if_faster=False)
        crops = photo_crops("evaluation", BATCH if context.quick else CROPS).split(BATCH)
        same = torch.cat([model(batch).argmax(1) == quantized(batch).argmax(1) for batch in crops])
        note = f"{len(same)} crops, every convolution and linear quantized"
        context.add("efficientnet.top1", 100 * same.float().mean().item(), note=note)
