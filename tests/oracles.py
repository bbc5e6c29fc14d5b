"""Independent answers for every kernel: numpy only, no package code, straight from ``docs/architecture.md`` section 1.

Integer sums are taken in float64, which is exact here: |255 * 128 * K| stays below 2^53 for every K that is allowed.
Float32 steps are single numpy operations: the IEEE operations that the document names, in its order, never fused.
bf16 values travel as their uint16 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACTIVATIONS",
    "EXACT_ACTIVATIONS",
    "Epilogue",
    "activate32",
    "activate64",
    "add_terms",
    "block_sums",
    "conv2d_acc",
    "conv2d_patches",
    "decode",
    "encode_float",
    "linear_acc",
    "pre_activation",
    "quantize_per_tensor",
    "quantize_per_token",
    "requantize",
]

Array = NDArray[Any]
F32 = np.float32

#: Code in the contract = position in this tuple.
ACTIVATIONS = ("none", "relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish", "hardsigmoid")
#: Activations that are pure comparisons: their float32 value is defined to the last bit.
EXACT_ACTIVATIONS = ("none", "relu", "relu6")

_INV255 = F32(1.0) / F32(255.0)
_INV127 = F32(1.0) / F32(127.0)
_MIN_SCALE = F32(2.0**-100)


def decode(x: Array, dtype: str) -> NDArray[np.float32]:
    """Float32 values of an f32, f16 or (as uint16 bits) bf16 array."""
    if dtype == "bf16":
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x.astype(np.float32)


def encode_float(v: NDArray[np.float32], dtype: str) -> Array:
    """Round float32 to f32, f16 or bf16 bits: to nearest, ties to even; NaN stays NaN."""
    if dtype == "f32":
        return v.astype(np.float32)
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return v.astype(np.float16)
    bits = np.ascontiguousarray(v, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(v), np.uint64(0x7FC0), rounded).astype(np.uint16)


def _round_clamp(v: Any, zero_point: Any, low: int, high: int) -> NDArray[np.int64]:
    """clamp(rint(v) + zero_point): NaN gives the zero point, infinities saturate."""
    with np.errstate(invalid="ignore"):
        r = np.rint(v).astype(np.float64)
    zp = np.asarray(zero_point, dtype=np.float64)
    r = np.where(np.isnan(r), 0.0, r)
    return np.clip(r + zp, low, high).astype(np.int64)


def quantize_per_tensor(x: NDArray[np.float32], scale: float, zero_point: int, signed: bool = False) -> Array:
    """Static quantization of float32 values to u8, or to s8 when ``signed``."""
    low, high = (-128, 127) if signed else (0, 255)
    inv = F32(1.0) / F32(scale)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x.astype(np.float32) * inv
    return _round_clamp(scaled, zero_point, low, high).astype(np.int8 if signed else np.uint8)


def quantize_per_token(
    x: NDArray[np.float32], symmetric: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32]]:
    """Dynamic quantization of every row of ``[M,K]``: q u8, scale f32 ``[M]``, zero point i32 ``[M]``."""
    x = x.astype(np.float32)
    finite: Array = np.asarray(np.isfinite(x).all(axis=1))
    clean = np.where(finite[:, None], x, F32(0.0))
    zero = np.zeros((x.shape[0], 1), dtype=np.float32)
    padded = np.concatenate([clean, zero], axis=1)
    low, high = padded.min(axis=1), padded.max(axis=1)
    if symmetric:
        scale = np.maximum(np.abs(padded).max(axis=1) * _INV127, _MIN_SCALE)
        zero_point = np.full(x.shape[0], 128, dtype=np.int64)
        bounds = (1, 255)
    else:
        scale = np.maximum(high * _INV255 - low * _INV255, _MIN_SCALE)
        bounds = (0, 255)
    inv = (F32(1.0) / scale).astype(np.float32)
    if not symmetric:
        zero_point = _round_clamp(-low * inv, 0, 0, 255)
    q = _round_clamp(clean * inv[:, None], zero_point[:, None], *bounds)
    q = np.where(finite[:, None], q, 0)
    return (
        q.astype(np.uint8),
        np.where(finite, scale, F32(np.nan)).astype(np.float32),
        np.where(finite, zero_point, 0).astype(np.int32),
    )


def linear_acc(q: Array, zero_point: Array | int, weight: Array) -> NDArray[np.int64]:
    """Exact sum over k of (q[m,k] - zero_point[m]) * w[n,k], as int64 ``[M,N]``."""
    zp = np.broadcast_to(np.asarray(zero_point, dtype=np.float64).reshape(-1, 1), (q.shape[0], 1))
    return ((q.astype(np.float64) - zp) @ weight.astype(np.float64).T).astype(np.int64)


def conv2d_patches(
    x: NDArray[np.float64],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> NDArray[np.float64]:
    """What every output pixel sees of NHWC ``x``: ``[N,OH,OW,KH,KW,C]``, a view.

    Padding is (top, bottom, left, right) and counts as zero.
    """
    batch, _, _, channels = x.shape
    kh, kw = kernel
    top, bottom, left, right = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    oh = (x.shape[1] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (x.shape[2] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    s = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (batch, oh, ow, kh, kw, channels),
        (s[0], s[1] * stride[0], s[2] * stride[1], s[1] * dilation[0], s[2] * dilation[1], s[3]),
        writeable=False,
    )


def conv2d_acc(
    q: Array,
    zero_point: int,
    weight: Array,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> NDArray[np.int64]:
    """Exact convolution of NHWC ``q`` with OIHW ``weight``: int64 ``[N,OH,OW,O]``."""
    out_channels, per_group, kh, kw = weight.shape
    patches = conv2d_patches(q.astype(np.float64) - float(zero_point), (kh, kw), stride, padding, dilation)
    batch, oh, ow = patches.shape[:3]
    rows = batch * oh * ow
    # [G, pixels, KH*KW*C/G] @ [G, KH*KW*C/G, O/G]
    by_group = patches.reshape(rows, kh * kw, groups, per_group).transpose(2, 0, 1, 3)
    p = by_group.reshape(groups, rows, kh * kw * per_group)
    taps = weight.astype(np.float64).reshape(groups, out_channels // groups, per_group, kh * kw)
    w = taps.transpose(0, 3, 2, 1).reshape(groups, kh * kw * per_group, out_channels // groups)
    acc = np.matmul(p, w).transpose(1, 0, 2).reshape(batch, oh, ow, out_channels)
    return acc.astype(np.int64)


def block_sums(
    a: NDArray[np.float64], weight: NDArray[np.float64], stored: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of a[m,k] * w[n,k] over the ``stored`` weights, and of the absolute values of the finite products.

    A NaN or an infinity reaches exactly the outputs whose stored weights it meets.
    """
    finite = np.isfinite(a)
    clean = a if finite.all() else np.where(finite, a, 0.0)
    acc, absolute = clean @ weight.T, np.abs(clean) @ np.abs(weight).T
    with np.errstate(invalid="ignore"):
        for m, k in zip(*np.nonzero(~finite), strict=True):
            meets = stored[:, k]
            acc[m, meets] += a[m, k] * weight[meets, k]
    return acc, absolute


@dataclass(frozen=True)
class Epilogue:
    """What happens to an accumulator: the arguments of the contract, float arrays already decoded to float32."""

    weight_scale: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None
    residual: NDArray[np.float32] | None = None
    activation: str = "none"


def pre_activation(acc: NDArray[np.int64], x_scale: Array | float, e: Epilogue) -> NDArray[np.float32]:
    """v before the activation, float32, in the documented order; ``acc`` ``[M,N]``, ``x_scale`` ``[M]`` or a number."""
    xs = np.asarray(x_scale, dtype=np.float32).reshape(-1, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        return add_terms(acc.astype(np.float32) * (xs * e.weight_scale[None, :]), e)


def add_terms(v: NDArray[np.float32], e: Epilogue) -> NDArray[np.float32]:
    """The epilogue's additions to scaled sums ``v [M,N]``: the bias, then the residual."""
    with np.errstate(over="ignore", invalid="ignore"):
        if e.bias is not None:
            v = v + e.bias[None, :]
        if e.residual is not None:
            v = v + e.residual
    assert v.dtype == np.float32
    return v


def activate32(v: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """The activations of `EXACT_ACTIVATIONS` on float32; NaN passes through."""
    if name == "none":
        return v
    high = F32(6.0) if name == "relu6" else F32(np.inf)
    return np.where(np.isnan(v), v, np.minimum(np.maximum(v, F32(0.0)), high))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate64(v: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    """Any activation in float64; NaN passes through, as +Inf does or goes to the limit.

    Products v * gate(v) are not finite at -Inf: NaN, as torch's, or -Inf for gelu, whose gate does not quite reach 0.
    """
    x = v.astype(np.float64)
    if name in EXACT_ACTIVATIONS:
        return activate32(v, name).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if name == "gelu":
            y = 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))
        elif name == "gelu_tanh":
            y = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
        elif name == "silu":
            y = x / (1.0 + np.exp(-x))
        elif name == "hardswish":
            y = x * np.clip(x + 3.0, 0.0, 6.0) / 6.0
        elif name == "hardsigmoid":
            y = np.clip(x + 3.0, 0.0, 6.0) / 6.0
        else:
            raise ValueError(f"unknown activation {name!r}")
    if name == "hardsigmoid":
        return y
    return np.where(np.isneginf(x), -np.inf if name == "gelu" else np.nan, y)


def requantize(v: NDArray[np.float32], scale: float, zero_point: int, signed: bool) -> Array:
    """Epilogue output as u8 or s8; the same rule as static quantization."""
    return quantize_per_tensor(v, scale, zero_point, signed)
