"""exp, sigmoid and erf from exactly rounded operations only, step for step as ``csrc/cpu/families/epilogue_impl.h``.

Library functions differ between processors and versions; these do not, so int8 outputs behind a GELU are the same
bits on the reference path and on every instruction set.
"""

import torch
from torch import Tensor

__all__ = ["gelu_erf", "gelu_tanh", "silu"]


def _exp_taylor(r: Tensor) -> Tensor:
    """exp on ``[-ln(2)/2, ln(2)/2]``, Taylor to degree 6 by Estrin's scheme: pairs of terms side by side."""
    square = r * r
    p01 = r + 1.0
    p23 = r * (1.0 / 6.0) + 0.5
    p45 = r * (1.0 / 120.0) + 1.0 / 24.0
    p456 = square * (1.0 / 720.0) + p45
    return square * (square * p456 + p23) + p01


def _exp(x: Tensor) -> Tensor:
    """exp of float32: ``2^n * exp(r)``, relative error below 2e-7; infinity from 88.4 on."""
    x = x.clamp(-87.0, 89.0)
    n = torch.round(x * 1.44269504088896341)
    r = x - n * 0.693359375
    r = r - n * -2.12194440e-4
    p = _exp_taylor(r)
    # 2^n from its bits: a library's exp2 need not be exact.
    power = ((torch.nan_to_num(n).to(torch.int32) + 127) << 23).view(torch.float32)
    return p * power


def _times_sigmoid(x: Tensor, t: Tensor) -> Tensor:
    return x / (1.0 + _exp(0.0 - t))


def silu(x: Tensor) -> Tensor:
    """``x / (1 + exp(-x))`` of a float32 tensor."""
    return _times_sigmoid(x, x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh form, written as ``x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))``; float32."""
    inner = x + 0.044715 * (x * x * x)
    return _times_sigmoid(x, 1.5957691216057308 * inner)


def gelu_erf(x: Tensor) -> Tensor:
    """``x * Phi(x)`` of a float32 tensor, erfc from Abramowitz & Stegun 7.1.26 (absolute error 1.5e-7)."""
    z = (x.abs() * 0.70710678118654752).clamp(max=9.0)  # no subnormal products
    t = torch.reciprocal(1.0 + z * 0.3275911)
    square = t * t  # half of the polynomial: halves of its coefficients are exact
    p01 = t * (-0.5 * 0.284496736) + 0.5 * 0.254829592
    p23 = t * (-0.5 * 1.453152027) + 0.5 * 1.421413741
    p234 = square * (0.5 * 1.061405429) + p23
    half_erfc = (square * p234 + p01) * t * _exp(0.0 - z * z)
    return x * torch.where(x < 0, half_erfc, 1.0 - half_erfc)
