"""The quantization arithmetic of docs/architecture.md §1 in plain torch: the same IEEE float32 steps as the kernels.

Every multiply and add is its own torch operation, so nothing is ever fused; each function names the formula it holds.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_scale, check_weight
from .transcendental import gelu_erf, gelu_tanh, silu

__all__ = [
    "WEIGHT_RANGES",
    "WEIGHT_STEPS",
    "activate",
    "epilogue",
    "quantize_rows",
    "quantize_static",
    "quantize_weight",
    "reciprocal",
    "round_weight",
    "static_mask",
]

_TINY = 2.0**-100

#: Bits of a weight → its smallest and largest value, and how many steps of its scale the largest magnitude is.
WEIGHT_RANGES = {8: (-127, 127), 4: (-8, 7)}
WEIGHT_STEPS = {8: 127.0, 4: 7.5}

_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def _f32(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def reciprocal(scale: float, like: Tensor) -> Tensor:
    """``1.0f / scale`` in float32, as a 0-d tensor on `like`'s device."""
    return _f32(1.0, like) / _f32(scale, like)


def _clamp_to(rounded: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    shifted = rounded + float(zero_point)
    # NaN has no place in an integer: it becomes the zero point, that is, real 0.
    return torch.where(torch.isnan(shifted), float(zero_point), shifted.clamp(low, high))


def quantize_static(x: Tensor, scale: float, zero_point: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """``clamp(rint(x * (1/scale)) + zero_point)`` per tensor, to u8 or s8; NaN gives `zero_point`."""
    low, high = _RANGES[dtype]
    rounded = torch.round(x.to(torch.float32) * reciprocal(scale, x))
    return _clamp_to(rounded, zero_point, low, high).to(dtype)


def static_mask(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Where static u8 quantization does not saturate: the derivative of its clamp (True also on both ends)."""
    shifted = torch.round(x.to(torch.float32) * reciprocal(scale, x)) + float(zero_point)
    return (shifted >= 0) & (shifted <= 255)


def quantize_rows(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Per-token u8 quantization of ``[..., K]``: q ``[..., K]``, scale float32 ``[...]``, zero point int32 ``[...]``.

    A row with a NaN or an infinity gets scale NaN, zero point 0 and q 0.
    """
    x = x.to(torch.float32)
    bad = ~torch.isfinite(x).all(dim=-1)
    x = torch.where(bad.unsqueeze(-1), 0.0, x)
    with_zero = F.pad(x, (0, 1))  # zero is in every range, and the range of an empty row
    one, tiny = _f32(1.0, x), _f32(_TINY, x)
    if symmetric:
        scale = torch.maximum(with_zero.abs().amax(dim=-1) * (one / _f32(127.0, x)), tiny)
        inv = one / scale
        zero = torch.full_like(scale, 128.0)
        lowest = 1
    else:
        third = one / _f32(255.0, x)
        low, high = with_zero.amin(dim=-1), with_zero.amax(dim=-1)
        scale = torch.maximum(high * third - low * third, tiny)
        inv = one / scale
        zero = torch.round(-low * inv).clamp(0, 255)
        lowest = 0
    q = (torch.round(x * inv.unsqueeze(-1)) + zero.unsqueeze(-1)).clamp(lowest, 255).to(torch.uint8)
    q = torch.where(bad.unsqueeze(-1), 0, q)
    zero = torch.where(bad, 0.0, zero)
    return q, torch.where(bad, torch.nan, scale), zero.to(torch.int32)


def activate(v: Tensor, name: str) -> Tensor:
    """The epilogue's activation function `name` (a key of ``ACTIVATIONS``) of a float32 tensor."""
    if name == "none":
        return v
    if name == "relu":
        return torch.relu(v)
    if name == "relu6":
        return v.clamp(0.0, 6.0)
    if name == "gelu":
        return gelu_erf(v)
    if name == "gelu_tanh":
        return gelu_tanh(v)
    if name == "silu":
        return silu(v)
    gate = (v + 3.0).clamp(0.0, 6.0) * (1.0 / 6.0)
    return v * gate if name == "hardswish" else gate


def epilogue(
    acc: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    out_scale: float,
    out_zero_point: int,
) -> Tensor:
    """Architecture §1's epilogue; `acc` int32, `scale` = x_scale * weight_scale and `bias` broadcast against it."""
    if out_dtype == torch.int32:
        return acc
    v = acc.to(torch.float32) * scale
    return real_epilogue(v, bias, residual, activation, out_dtype, out_scale, out_zero_point)


def real_epilogue(
    sums: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    out_scale: float,
    out_zero_point: int,
) -> Tensor:
    """The epilogue of sums that need no scale, from the bias on; they are rounded to float32 first."""
    v = sums.to(torch.float32)
    if bias is not None:
        v = v + bias
    if residual is not None:
        v = v + residual.to(torch.float32)
    v = activate(v, activation)
    if out_dtype in _RANGES:
        return quantize_static(v, out_scale, out_zero_point, out_dtype)
    return v.to(out_dtype)


def round_weight(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """``clamp(rint(w / scale), -127, 127)`` (four bits: -8, 7) as int8, `scale` float32 per output channel (dim 0)."""
    wide = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight.to(torch.float32) / wide).clamp(*WEIGHT_RANGES[bits]).to(torch.int8)


def quantize_weight(weight: Tensor, scale: Tensor | None = None, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantize a float weight to s8, symmetric per output channel.

    Args:
        weight: float ``[out, in]`` or ``[out, in/groups, kh, kw]``.
        scale: float32 ``[out]``; by default ``max(absmax, 2^-100) / 127`` of each channel, with four bits ``/ 7.5``: 7
            and 8 steps are then both half a step from the largest magnitude.
        bits: 8, values -127 to 127, or 4, values -8 to 7.

    Returns:
        int8 weight of the same shape, float32 scale ``[out]``.

    Raises:
        TypeError: not floating point.
        ValueError: wrong rank, an empty dimension, NaN/Inf, a scale that is not positive, normal and finite, or other
            bits.

    Example:
        >>> q, scale = quantize_weight(torch.tensor([[0.5, -1.0]]))
        >>> q
        tensor([[  64, -127]], dtype=torch.int8)
    """
    weight = check_weight("quantize_weight", weight).detach().to(torch.float32)
    if bits not in WEIGHT_STEPS:
        raise ValueError(f"quantize_weight: `bits` must be 4 or 8, got {bits!r}")
    if scale is None:
        scale = weight.flatten(1).abs().amax(dim=1).clamp(min=_TINY) / WEIGHT_STEPS[bits]
    else:
        scale = check_scale("quantize_weight", "scale", scale, weight.shape[0]).to(weight.device)
    return round_weight(weight, scale, bits), scale
