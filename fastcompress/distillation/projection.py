"""The trained map from a student's width to its teacher's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Projection"]


class Projection(nn.Module):
    """A linear map of the last dimension, or of the channels of [batch, channels, height, width] (a 1×1 convolution).

    Args:
        student: a tensor of the student's shape, dtype and device.
        width: the teacher's features or channels.
        generator: a CPU generator for the start values (those of ``nn.Linear``); the global one is not touched.
    """

    def __init__(self, student: Tensor, width: int, generator: torch.Generator) -> None:
        super().__init__()
        spatial = student.dim() == 4
        inputs = student.shape[1] if spatial else student.shape[-1]
        # Float32 under half-precision students, as autocast keeps its weights.
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        layer = nn.Conv2d(inputs, width, 1, device="meta") if spatial else nn.Linear(inputs, width, device="meta")
        bound = 1.0 / math.sqrt(max(1, inputs))
        for name, parameter in list(layer.named_parameters()):
            values = torch.empty(parameter.shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
            setattr(layer, name, nn.Parameter(values.to(student.device)))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.to(self.layer.weight.dtype))
        return y
