"""Convolutions answer in the memory format in which torch's do, also where channels or pixels are one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcompress.nn import QuantConv2d
from fastcompress.ops.reference import memory_format

SHAPES = [
    (2, 3, 5, 4),
    (2, 1, 5, 4),
    (1, 1, 5, 4),
    (2, 3, 1, 1),
    (1, 3, 1, 1),
    (2, 1, 1, 1),
    (1, 1, 1, 1),
    (2, 3, 1, 6),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_lies_as_that_of_torch(shape: tuple[int, ...], channels_last: bool) -> None:
    x = torch.zeros(shape)
    if channels_last:  # contiguous() would hand on what is both
        x = torch.empty(shape, memory_format=torch.channels_last).zero_()
    layer = nn.Conv2d(shape[1], 4, 3, padding=2)  # an output of several channels and pixels leaves no doubt
    expected = F.conv2d(x, layer.weight, layer.bias, padding=2)
    found = QuantConv2d.from_float(layer, input_scale=0.1)(x)
    assert found.stride() == expected.stride()
    as_expected = torch.channels_last if found.stride(1) == 1 else torch.contiguous_format
    assert memory_format(x) is as_expected
