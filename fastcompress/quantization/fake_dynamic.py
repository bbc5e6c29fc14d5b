"""The fake-quantizer in front of a layer that quantizes its activations when it runs: int8, a scale for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .fake_quantizer import Switched
from .qparams import TINY

__all__ = ["DynamicInputFakeQuantize", "fake_quantize_rows"]


class _FakeQuantizeRows(torch.autograd.Function):
    """See `fake_quantize_rows`."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        peak = wide.abs().amax(dim=-1, keepdim=True)  # NaN where the row has one
        scale = (peak * (1.0 / 127)).clamp(min=TINY)
        values = torch.round(wide * (1.0 / scale)).clamp(-127.0, 127.0) * scale
        return torch.where(torch.isfinite(peak), values, torch.nan).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is needed for the gradient."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        grad: Tensor = grads[0]
        return grad


def fake_quantize_rows(x: Tensor) -> Tensor:
    """Round each row of ``x`` to -127 … 127 times a scale of its own, as W4A8 layers do, and pass all gradients.

    In float32, the symmetric dynamic activations of docs/architecture.md §1: ``scale = max(max|row| * (1 / 127),
    2^-100)``, ``y = clamp(rint(x * (1 / scale)), -127, 127) * scale``. A row with NaN or infinity becomes NaN, as its
    outputs do. Nothing is clipped, so ``dy/dx`` counts as 1.

    Args:
        x: float ``[..., features]``, not empty; the result has its shape and dtype.

    Example:
        >>> fake_quantize_rows(torch.tensor([[127.0, 0.4], [0.0, 0.0]]))
        tensor([[127.,   0.],
                [  0.,   0.]])

    Source: Bengio, Léonard & Courville (arXiv 1308.3432, 2013) for straight-through.
    """
    result: Tensor = _FakeQuantizeRows.apply(x)
    return result


class DynamicInputFakeQuantize(Switched):
    """Rounds a layer's input as a W4A8 layer will: ``layer.input_fake_quant``, called before each forward.

    It learns nothing: in states off and observe it is the identity, in train and frozen it rounds.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x if self.mode in ("off", "observe") or x.numel() == 0 else fake_quantize_rows(x)

    def set_mode(self, mode: str) -> None:
        """Change the state."""
        self._set_mode(mode)
