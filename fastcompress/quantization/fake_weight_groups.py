"""The fake-quantizer on a weight in groups: four bits, a scale for each group of neighbouring inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcompress.ops.rounding import from_groups, storable, to_groups

from .fake_quantize import fake_quantize
from .fake_weight import WeightFakeQuantize, start_scales
from .groupwise.grid import GroupGrid
from .groupwise.scales import extreme_params
from .qat_config import QATConfig

__all__ = ["GroupWeightFakeQuantize"]


class GroupWeightFakeQuantize(WeightFakeQuantize):
    """The parametrization that rounds a linear layer's weight as `GroupQuantLinear` holds it.

    Integers are -8 to 7 around zero. Scales are ``[out, groups]``: the largest magnitude of a group over 7.5, or
    learned. They are rounded to the configured dtype before weights are divided by them; the gradient passes that
    rounding as it is, so a learned scale moves on although it may be between two values of its dtype.

    While scales follow the weights, every weight has gradient 1. The largest one of a group is 7.5 steps and rounds to
    8 where it is positive, which is half a step beyond the last integer; without a gradient it would stay where it is,
    and the group's scale with it. With frozen or learned scales the gradient is 0 beyond the ends.

    Source: Esser et al. (ICLR 2020), §2, for the learned scale.
    """

    def __init__(self, config: QATConfig, weight: Tensor, norm: nn.Module | None) -> None:
        super().__init__(config, weight, norm)
        self.grid = config.grid

    @staticmethod
    def _scale_shape(config: QATConfig, weight: Tensor) -> tuple[int, ...]:
        return weight.shape[0], config.grid.groups(weight.shape[1])

    def learned_scale(self) -> Tensor:
        """``step * unit`` as it is stored, in the scales' dtype (but float32 here)."""
        return storable(super().learned_scale(), self.grid.scale_dtype)

    def _rounded(self, folded: Tensor, scale: Tensor, learning: bool) -> Tensor:
        rounded = fake_quantize(
            self._rows(folded),
            scale.flatten(),
            None,
            *_ends(self.grid),
            step=self.step.flatten() if learning and self.step is not None else None,
            step_factor=self._step_factor(folded).flatten() if learning else None,
            passes=self.step is None and self.mode == "train",
        )
        out, inputs = folded.shape
        return from_groups(rounded.view(out, -1, rounded.shape[1]), inputs)

    def _rows(self, folded: Tensor) -> Tensor:
        """``[out, in]`` as ``[out * groups, inputs of a group]``, filled up with zeros."""
        return to_groups(folded.contiguous(), self.grid.size(folded.shape[1])).flatten(0, 1)

    def _range_scale(self, folded: Tensor) -> Tensor:
        groups = to_groups(folded.detach().contiguous(), self.grid.size(folded.shape[1]))
        return extreme_params(groups, self.grid).scale

    def _first_scale(self, folded: Tensor) -> Tensor:
        covering = self._range_scale(folded).flatten() if self.step_init == "minmax" else None
        start = start_scales(self._rows(folded.detach()), covering, _ends(self.grid)[1])
        return storable(start.view_as(self.scale), self.grid.scale_dtype)

    def _step_factor(self, folded: Tensor) -> Tensor:
        """As in `WeightFakeQuantize`; the last group may have fewer weights than the others."""
        assert self.unit is not None
        inputs, size = folded.shape[1], self.grid.size(folded.shape[1])
        starts = torch.arange(0, inputs, size, device=folded.device)
        counts = (inputs - starts).clamp(max=size)
        return torch.rsqrt(counts * float(_ends(self.grid)[1])) / self.unit


def _ends(grid: GroupGrid) -> tuple[int, int]:
    """The smallest and largest integer, around zero."""
    return grid.low - int(grid.middle), grid.high - int(grid.middle)
