"""The fake-quantizer on a weight: s8 with one scale per output channel, the BatchNorm behind the layer folded in."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from fastcompress.nn.parametrization import WeightTransform

from .fake_quantize import attach, fake_quantize
from .fake_quantizer import FakeQuantizer
from .qat_config import QATConfig
from .qparams import TINY

__all__ = ["WeightFakeQuantize", "start_scales"]


class WeightFakeQuantize(FakeQuantizer, WeightTransform):
    """The parametrization that rounds a layer's weight as the int8 layer will; the last step, after a mask.

    With a BatchNorm behind the layer, what is rounded is the folded weight, and the layer's weight is that, divided by
    the factor again::

        g = gamma / sqrt(running_var + eps),   weight = fake_quantize(w * g) / g

    so the layer's output, and the batch statistics that the norm takes of it, are those of the unfolded layer, and with
    running statistics layer and norm together compute what the folded int8 layer does. ``g`` counts as a constant in
    the gradient (its two occurrences cancel, but for the rounding). A channel whose ``|g|`` is below 2^-100, as with
    ``gamma = 0``, is rounded as if ``g`` were 1: its int8 weight is 0, but ``gamma`` still gets a gradient.

    `GroupWeightFakeQuantize` has other scales and integers; what is said here about the BatchNorm holds for it too.

    Besides `FakeQuantizer`'s, its ``state_dict`` holds ``norm_frozen`` (bool ``[]``), see `freeze_batchnorm`.

    Source: Jacob et al. (CVPR 2018), §3.2; Krishnamoorthi, "Quantizing deep convolutional networks for efficient
    inference" (arXiv 1806.08342, 2018), §3.2.2; Esser et al. (ICLR 2020), §2, for the learned scale.
    """

    norm_frozen: Tensor

    def __init__(self, config: QATConfig, weight: Tensor, norm: nn.Module | None) -> None:
        shape = self._scale_shape(config, weight)
        super().__init__(shape, config.method == "lsq", config.step_init, weight.device)
        self.register_buffer("norm_frozen", torch.zeros((), dtype=torch.bool, device=weight.device))
        self.holds_norm = False
        # In a tuple, so that it does not become a part of this module, under a second name.
        self._norm = () if norm is None else (norm,)

    @property
    def norm(self) -> nn.Module | None:
        """The BatchNorm that is folded in."""
        return self._norm[0] if self._norm else None

    def forward(self, weight: Tensor) -> Tensor:
        if self.mode in ("off", "observe"):
            return attach(weight, self.step)
        folded, factor = self._folded(weight)
        learning = self.step is not None and self.mode == "train"
        rounded = self._rounded(folded, self._scale_of(folded), learning)
        if factor is not None:
            rounded = rounded / factor
        return attach(rounded.to(weight.dtype), None if learning else self.step)

    def set_mode(self, mode: str, weight: Tensor) -> None:
        """Change the state of the quantizer of ``weight`` (unfolded, with its zeros): fixes or starts the scales."""
        with torch.no_grad():
            folded, _ = self._folded(weight.detach())
            if self.step is None:
                if mode == "frozen" and self.mode != "frozen":
                    self.scale.copy_(self._range_scale(folded))
                    self.known = True
            elif mode in ("train", "frozen") and not self.known:
                self._start_step(self._first_scale(folded))
        self._set_mode(mode)

    def quantized_from(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What the int8 layer is made from: the folded weight, and the scales to round it with.

        Args:
            weight: unfolded, with its zeros.

        Returns:
            float32, the shape of ``weight``; float32, the shape of ``scale``.
        """
        with torch.no_grad():
            folded, _ = self._folded(weight.detach())
            scale = self._scale_of(folded).clone()
            factor = self._factor()
            if factor is not None:  # here a factor of 0 is what it is
                gone = (factor.abs() < TINY).reshape(-1, *[1] * (weight.dim() - 1))
                folded = torch.where(gone, 0.0, folded)
        return folded, scale

    def _scale_of(self, folded: Tensor) -> Tensor:
        if self.mode == "frozen":
            return self.scale
        if self.step is None:
            return self._range_scale(folded)
        if self.known:
            return self.learned_scale() if self.mode == "train" else self.scale
        return self._first_scale(folded)

    @staticmethod
    def _scale_shape(config: QATConfig, weight: Tensor) -> tuple[int, ...]:
        return (weight.shape[0],)

    def _rounded(self, folded: Tensor, scale: Tensor, learning: bool) -> Tensor:
        """``folded`` (float32) on its grid; while ``learning``, ``step`` gets a gradient."""
        step, factor = (self.step, self._step_factor(folded)) if learning else (None, None)
        return fake_quantize(folded, scale, None, -127, 127, step=step, step_factor=factor)

    def _range_scale(self, folded: Tensor) -> Tensor:
        """The scales that just cover the weights: `weight_scales`, without its checks, which wait for the device."""
        return folded.detach().flatten(1).abs().amax(dim=1).clamp(min=TINY) / 127.0

    def _first_scale(self, folded: Tensor) -> Tensor:
        """Where learned scales start."""
        covering = self._range_scale(folded) if self.step_init == "minmax" else None
        return start_scales(folded.detach().flatten(1), covering, 127)

    def _factor(self) -> Tensor | None:
        """``g``, float32 ``[out]``; rounded once, like that of `fold_batchnorm`."""
        if self.norm is None:
            return None
        norm = cast(nn.BatchNorm2d, self.norm)
        assert norm.running_var is not None
        factor = (norm.running_var.detach().double() + norm.eps).rsqrt()
        if norm.affine:
            factor = norm.weight.detach().double() * factor
        return factor.to(torch.float32)

    def _folded(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The float32 weight to round, and what to divide by afterwards (broadcasts against it)."""
        factor = self._factor()
        wide = weight.to(torch.float32)
        if factor is None:
            return wide, None
        factor = torch.where(factor.abs() < TINY, 1.0, factor).reshape(-1, *[1] * (weight.dim() - 1))
        return wide * factor, factor

    def _step_factor(self, folded: Tensor) -> Tensor:
        """1 / sqrt(N * Q_P) with N the weights that share a scale, over the unit."""
        assert self.unit is not None
        return 1.0 / (math.sqrt(folded[0].numel() * 127) * self.unit)

    def hold_norm(self) -> None:
        """Keep the norm with its running statistics, in training mode too."""
        if self.norm is not None:
            self.norm_frozen.fill_(True)
            self.holds_norm = True
            self.norm.eval()

    def _read_back(self) -> None:
        super()._read_back()
        self.holds_norm = bool(self.norm_frozen)


def start_scales(rows: Tensor, covering: Tensor | None, largest: int) -> Tensor:
    """Where learned scales of ``rows [scales, weights]`` start, float32 ``[scales]``.

    By LSQ at 2 * mean|w| / sqrt(Q_P). The mean leaves zeros out, or a mask would make the range too small. A row of
    zeros, which has no scale of its own, gets the mean of the others.

    Args:
        covering: what to start from in place of that.
        largest: Q_P, the largest integer.
    """
    count = (rows != 0).sum(dim=1)
    start = covering
    if start is None:
        start = 2.0 * rows.abs().sum(dim=1) / count.clamp(min=1) / math.sqrt(largest)
    alive = count > 0
    others = torch.where(alive, start, 0.0).sum() / alive.sum().clamp(min=1)
    others = torch.where(alive.any(), others, 1.0 / largest)
    return torch.where(alive, start, others).clamp(min=TINY)
