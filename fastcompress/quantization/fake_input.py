"""The fake-quantizer in front of a layer: static u8 activations with one scale and zero point."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .fake_quantize import attach, fake_quantize
from .fake_quantizer import FakeQuantizer
from .qat_config import QATConfig
from .qparams import TINY, qparams_of_ranges

__all__ = ["InputFakeQuantize"]


class InputFakeQuantize(FakeQuantizer):
    """Rounds a layer's input as the int8 layer will: ``layer.input_fake_quant``, called before each forward.

    It learns in training mode only: in eval mode the scale of the moment is used, and NaN becomes 0 as in the kernels
    (in training mode NaN passes through, so that a loss shows it). As long as nothing was seen it is the identity.
    Where ``torch.distributed`` is initialised, all processes take part in each observation and agree on the range.

    Besides `FakeQuantizer`'s, its ``state_dict`` holds ``zero_point`` (int32 ``[]``), the range ``low``, ``high``
    (float32 ``[]``, both 0 while unknown) and, with learned scales, ``mean_magnitude`` (float32 ``[]``).

    Source: Jacob et al. (CVPR 2018), §3.1, for the moving average; Esser et al. (ICLR 2020), §2, for the learned scale.
    """

    zero_point: Tensor
    low: Tensor
    high: Tensor
    mean_magnitude: Tensor | None

    def __init__(self, config: QATConfig, device: torch.device) -> None:
        super().__init__((), config.method == "lsq", config.step_init, device)
        self.symmetric = config.symmetric_activations
        self.momentum = config.observer_momentum
        zero = torch.zeros((), dtype=torch.float32, device=device)
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32, device=device))
        self.register_buffer("low", zero.clone())
        self.register_buffer("high", zero.clone())
        self.register_buffer("mean_magnitude", None if self.step is None else zero.clone())
        self.observed = False

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return attach(x, self.step)
        if self.training and (self.mode == "observe" or (self.mode == "train" and not self._learns)):
            self.observe(x)
            if self.mode == "train" and self.step is not None:
                self._start()
        if self.mode in ("off", "observe") or not self.known:
            return attach(x, self.step)
        scale, zero_point = self.qparams()
        if self.mode == "train":
            factor = None if self.step is None else self._step_factor(x)
            return fake_quantize(
                x, scale, zero_point, 0, 255, step=self.step, step_factor=factor, nan_is_zero=not self.training
            )
        rounded = fake_quantize(x, scale, zero_point, 0, 255, nan_is_zero=not self.training)
        return attach(rounded, self.step)

    @property
    def _learns(self) -> bool:
        """Whether the scale is past its start and belongs to the optimizer."""
        return self.step is not None and self.known

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32 ``[]``) and zero point (int32 ``[]``) that are, or in state train would be, used now."""
        scale = self.learned_scale() if self._learns and self.mode == "train" else self.scale
        return scale, self.zero_point

    @torch.no_grad()
    def observe(self, x: Tensor, weight: float | None = None) -> None:
        """Move the range towards that of ``x`` (float, any shape, not empty).

        A batch with NaN or infinity changes nothing. The first range that is more than 0 is taken as it is.

        Args:
            weight: of this batch, in (0, 1]; by default the configured momentum.
        """
        values = x.detach().to(torch.float32)
        low, high = torch.aminmax(values)
        ends = torch.stack((-low, high)).clamp(min=0.0)
        ends = torch.where(torch.isnan(low), torch.inf, ends)
        mean = values.abs().mean() if self.mean_magnitude is not None else None
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(ends, op=dist.ReduceOp.MAX)
            if mean is not None:
                dist.all_reduce(mean)
                mean = mean / dist.get_world_size()
        fresh = (self.low == 0.0) & (self.high == 0.0)
        part = torch.where(fresh, 1.0, self.momentum if weight is None else weight)
        usable = torch.isfinite(ends).all()
        pairs = [(self.low, -ends[0]), (self.high, ends[1])]
        if self.mean_magnitude is not None and mean is not None:
            pairs.append((self.mean_magnitude, mean))
        for buffer, new in pairs:
            buffer.copy_(torch.where(usable, (1.0 - part) * buffer + part * new, buffer))
        self.observed = True
        if self.step is None:
            scale, zero_point = qparams_of_ranges(self.low, self.high, self.symmetric)
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
            self.known = True

    @property
    def is_degenerate(self) -> bool:
        """Whether all that was observed was 0 (or NaN and infinity), so that there is no range."""
        return not bool(self.low < self.high)

    def set_mode(self, mode: str) -> None:
        """Change the state; a learned scale starts here if a range was observed before."""
        if mode in ("train", "frozen") and self.step is not None and not self.known and self.observed:
            self._start()
        self._set_mode(mode)

    @torch.no_grad()
    def _start(self) -> None:
        """Fix the zero point and give the learned scale its first value, from the statistics.

        Where there was nothing but zeros, which say nothing, these are such that -1 and 1 can be represented.
        """
        assert self.mean_magnitude is not None
        scale, zero_point = qparams_of_ranges(self.low, self.high, self.symmetric)
        empty = self.low == self.high
        self.zero_point.copy_(torch.where(empty, 128, zero_point))
        if self.step_init == "lsq":
            scale = (2.0 * self.mean_magnitude / self._largest().sqrt()).clamp(min=TINY)
        self._start_step(torch.where(empty, 1.0 / 127, scale))

    def _largest(self) -> Tensor:
        """Q_P: the most steps that a value can be away from 0."""
        zero_point = self.zero_point.to(torch.float32)
        return torch.maximum(zero_point, 255.0 - zero_point)

    def _step_factor(self, x: Tensor) -> Tensor:
        """1 / sqrt(N * Q_P) with N the elements of one sample, over the unit."""
        assert self.unit is not None
        elems = x.numel() // x.shape[0] if x.dim() > 1 else x.numel()
        return 1.0 / (torch.sqrt(elems * self._largest()) * self.unit)

    def refresh(self) -> None:
        observed = self.observed  # zeros alone leave no trace in the buffers
        super().refresh()
        self.observed = self.observed or observed

    def _read_back(self) -> None:
        super()._read_back()
        self.observed = self.known or not self.is_degenerate
