"""Which fake-quantizers the layers of a scheme get."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .fake_dynamic import DynamicInputFakeQuantize
from .fake_input import InputFakeQuantize
from .fake_layer import InputQuantizer
from .fake_weight import WeightFakeQuantize
from .fake_weight_groups import GroupWeightFakeQuantize
from .qat_config import QATConfig

__all__ = ["make_input_quantizer", "make_weight_quantizer"]


def make_input_quantizer(config: QATConfig, device: torch.device) -> InputQuantizer | None:
    """What a layer's input is rounded by; None where it stays as it is (W4A16, whose 16 bits are close to a float)."""
    if config.kind.weight_only:
        return None
    return DynamicInputFakeQuantize(device) if config.kind.grouped else InputFakeQuantize(config, device)


def make_weight_quantizer(config: QATConfig, weight: Tensor, norm: nn.Module | None) -> WeightFakeQuantize:
    """What ``weight`` is rounded by, with ``norm`` (or None) folded in."""
    kind = GroupWeightFakeQuantize if config.kind.grouped else WeightFakeQuantize
    return kind(config, weight, norm)
