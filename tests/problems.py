"""Seeded kernel problems: problem number i is the same on every machine, and no two numbers give the same problem.

Sizes walk through three pairwise coprime periods (71 rows, 131 columns, 137 depths), so any 9,301 problems in a row
hold every (M, N) pair, any 17,947 every (N, K) pair, and no (M, N, K) triple repeats within 1.27 million problems. Tile
sizes (6, 12, 16, 32 rows; 16, 64 columns; depths in fours and 64s) are below these periods: every remainder meets every
other. The remaining fields are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import oracles

__all__ = [
    "FLOAT_DTYPES",
    "INPUT_KINDS",
    "MAX_K",
    "MODES",
    "OUT_DTYPES",
    "RESIDUALS",
    "ConvProblem",
    "FourBitConv",
    "LinearProblem",
    "QuantizeProblem",
    "conv_problem",
    "fill_inputs",
    "fill_weights",
    "float_values",
    "four_bit_conv_problem",
    "linear_problem",
    "quantize_problem",
    "random_scale",
    "spoil",
    "zeros_like_dtype",
]

MAX_K = 65_793
FLOAT_DTYPES = ("f32", "bf16", "f16")
OUT_DTYPES = ("f32", "bf16", "f16", "u8", "s8", "i32")
RESIDUALS = (None, "f32", "bf16", "f16")
MODES = ("static", "dynamic", "dynamic_symmetric")
#: (dtype of x, the blob's input mode, per-token parameters handed in)
INPUT_KINDS: tuple[tuple[str, str, bool], ...] = (
    *((dtype, mode, False) for dtype in FLOAT_DTYPES for mode in MODES),
    ("u8", "static", False),
    ("u8", "static", True),
    ("u8", "dynamic", True),
    ("u8", "dynamic_symmetric", True),
)

_NUMPY: dict[str, type[np.generic]] = {
    "f32": np.float32,
    "bf16": np.uint16,
    "f16": np.float16,
    "u8": np.uint8,
    "s8": np.int8,
    "i32": np.int32,
}
Array = NDArray[Any]


def zeros_like_dtype(shape: tuple[int, ...], dtype: str) -> Array:
    """A contiguous array of the contract's dtype name, filled with a pattern that no correct kernel leaves behind."""
    out = np.empty(shape, dtype=_NUMPY[dtype])
    out.view(np.uint8).fill(0xA5) if out.size else None
    return out


def random_scale(rng: np.random.Generator, low: float = 1e-3, high: float = 10.0) -> float:
    """A log-uniform float32, as a Python float that float32 represents exactly."""
    return float(np.float32(np.exp(rng.uniform(np.log(low), np.log(high)))))


def float_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, scale: float) -> Array:
    """Normal values times ``scale`` in a float format (bf16 as bits)."""
    return oracles.encode_float(rng.standard_normal(shape, dtype=np.float32) * np.float32(scale), dtype)


def spoil(rng: np.random.Generator, x: Array, dtype: str) -> None:
    """Put NaN, infinities and huge values into a few places of x."""
    hostile = np.array([np.nan, np.inf, -np.inf, 3e4, -3e4, -0.0], dtype=np.float32)
    flat = x.reshape(-1)
    where = rng.integers(flat.size, size=min(3, flat.size))
    flat[where] = oracles.encode_float(rng.choice(hostile, size=where.size), dtype)


def _weights(rng: np.random.Generator, shape: tuple[int, ...], extreme: bool) -> Array:
    if extreme:  # only the corners of the range: where a 16-bit intermediate would saturate
        return rng.choice(np.array([-128, -127, 127], dtype=np.int8), size=shape)
    return rng.integers(-128, 128, size=shape, dtype=np.int8)


@dataclass(frozen=True)
class _Common:
    """Fields of the epilogue, shared by linear and conv2d."""

    index: int
    activation: str
    has_bias: bool
    residual: str | None
    in_dtype: str
    out_dtype: str
    extreme: bool
    hostile: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes the problem distinct: every field but its number."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name != "index")


@dataclass(frozen=True)
class LinearProblem(_Common):
    """One call of linear_w8a8."""

    m: int
    n: int
    k: int
    mode: str
    per_token_given: bool


@dataclass(frozen=True)
class ConvProblem(_Common):
    """One call of conv2d_w8a8; ``padding`` is (top, bottom, left, right)."""

    batch: int
    height: int
    width: int
    channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    layout: str

    @property
    def k(self) -> int:
        """Reduction length."""
        return self.kernel[0] * self.kernel[1] * self.channels // self.groups

    @property
    def out_size(self) -> tuple[int, int]:
        """Output height and width."""
        top, bottom, left, right = self.padding
        span_h, span_w = (d * (s - 1) + 1 for d, s in zip(self.dilation, self.kernel, strict=True))
        return (
            (self.height + top + bottom - span_h) // self.stride[0] + 1,
            (self.width + left + right - span_w) // self.stride[1] + 1,
        )

    @property
    def pixels(self) -> int:
        """Output rows of the GEMM that the convolution is."""
        return self.batch * self.out_size[0] * self.out_size[1]


@dataclass(frozen=True)
class FourBitConv(ConvProblem):
    """A convolution whose weights are stored in four bits; never depthwise."""


@dataclass(frozen=True)
class QuantizeProblem:
    """One call of quantize_per_tensor (``symmetric`` None) or quantize_per_token."""

    index: int
    m: int
    k: int
    dtype: str
    hostile: bool
    signed: bool
    symmetric: bool | None
    scale: float
    zero_point: int
    magnitude: float

    @property
    def key(self) -> tuple[Any, ...]:
        """Every field but the number."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name != "index")


def _pick(rng: np.random.Generator, options: tuple[Any, ...]) -> Any:
    return options[int(rng.integers(len(options)))]


def _common(rng: np.random.Generator, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "activation": _pick(rng, oracles.ACTIVATIONS),
        "has_bias": bool(rng.integers(2)),
        "residual": _pick(rng, RESIDUALS),
        "out_dtype": _pick(rng, OUT_DTYPES),
        "extreme": rng.random() < 0.1,
        "hostile": rng.random() < 0.05,
    }


def linear_problem(index: int) -> LinearProblem:
    """Linear problem number ``index``."""
    rng = np.random.default_rng([11, index])
    in_dtype, mode, given = _pick(rng, INPUT_KINDS)
    # One problem in sixteen is deep, so that K-blocking and long panels are seen too.
    deep = 137 * int(rng.integers(1, 8)) if index % 16 == 0 else 0
    return LinearProblem(
        **_common(rng, index),
        in_dtype=in_dtype,
        m=1 + index % 71,
        n=1 + index % 131,
        k=1 + index % 137 + deep,
        mode=mode,
        per_token_given=given,
    )


def conv_problem(index: int) -> ConvProblem:
    """Convolution problem number ``index``: 1x1, kxk, grouped, depthwise and few-channel layers take turns."""
    rng = np.random.default_rng([12, index])
    kind = ("pointwise", "dense", "grouped", "depthwise", "first")[index % 5]
    kernel = (1, 1) if kind == "pointwise" else (_pick(rng, (1, 2, 3, 3, 3, 5)), _pick(rng, (1, 2, 3, 3, 3, 5)))
    if kind == "depthwise" and rng.random() < 0.7:
        kernel = _pick(rng, ((3, 3), (5, 5)))
    stride = _pick(rng, ((1, 1), (1, 1), (2, 2), (2, 1), (1, 3)))
    dilation = _pick(rng, ((1, 1), (1, 1), (1, 1), (2, 2), (1, 2)))
    padding: Any = tuple(int(p) for p in rng.integers(0, 4, size=4)) if rng.random() < 0.7 else (0, 0, 0, 0)
    groups = channels = out_channels = 1
    if kind == "pointwise":
        channels, out_channels = 1 + index // 5 % 137, 1 + index // 5 % 131
    elif kind == "dense":
        channels, out_channels = 1 + int(rng.integers(24)), 1 + index // 5 % 71
    elif kind == "grouped":
        groups = int(rng.integers(2, 5))
        channels, out_channels = groups * int(rng.integers(1, 12)), groups * int(rng.integers(1, 24))
    elif kind == "depthwise":
        groups = channels = 1 + index // 5 % 131
        out_channels = channels * (2 if rng.random() < 0.15 else 1)
    else:
        channels, out_channels = int(rng.integers(1, 5)), 1 + index // 5 % 67
    line = kind == "pointwise" and rng.random() < 0.4  # one row of pixels: every count of GEMM rows appears
    if line:
        stride, padding = (1, 1), (0, 0, 0, 0)
    span = [d * (s - 1) + 1 for d, s in zip(dilation, kernel, strict=True)]
    smallest = (max(1, span[0] - padding[0] - padding[1]), max(1, span[1] - padding[2] - padding[3]))
    return ConvProblem(
        **_common(rng, index),
        in_dtype=_pick(rng, (*FLOAT_DTYPES, "u8")),
        batch=1 if line else _pick(rng, (1, 1, 1, 2, 3)),
        height=1 if line else smallest[0] + int(rng.integers(6)),
        width=1 + index // 5 % 67 if line else smallest[1] + int(rng.integers(7)),
        channels=channels,
        out_channels=out_channels,
        groups=groups,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        layout=_pick(rng, ("nhwc", "nchw")),
    )


def four_bit_conv_problem(index: int) -> FourBitConv:
    """Four-bit convolution number ``index``: those of `conv_problem` that are not depthwise."""
    p = conv_problem(index // 4 * 5 + (0, 1, 2, 4)[index % 4])
    values = {f.name: getattr(p, f.name) for f in fields(p)} | {"index": index}
    if p.groups == p.channels == p.out_channels > 1:
        values["out_channels"] *= 2
    return FourBitConv(**values)


def quantize_problem(index: int) -> QuantizeProblem:
    """Quantization problem number ``index``; even numbers are per tensor, odd ones per token."""
    rng = np.random.default_rng([13, index])
    signed = bool(rng.integers(2))
    step = index // 2
    return QuantizeProblem(
        index=index,
        m=1 + step % 11,
        k=1 + step % 281,
        dtype=_pick(rng, FLOAT_DTYPES),
        hostile=rng.random() < 0.2,
        signed=signed,
        symmetric=None if index % 2 == 0 else bool(rng.integers(2)),
        scale=random_scale(rng, 1e-4, 1e2),
        zero_point=int(rng.integers(-128, 128)) if signed else int(rng.integers(0, 256)),
        magnitude=random_scale(rng, 1e-30, 1e30) if rng.random() < 0.1 else random_scale(rng, 1e-2, 1e2),
    )


def fill_inputs(rng: np.random.Generator, shape: tuple[int, ...], p: _Common) -> tuple[Array, float]:
    """x for a linear or convolution problem, and the static scale that fits it."""
    if p.in_dtype == "u8":
        q = np.full(shape, 255, np.uint8) if p.extreme else rng.integers(0, 256, size=shape, dtype=np.uint8)
        return q, random_scale(rng, 1e-3, 0.1)
    magnitude = random_scale(rng, 0.1, 10.0)
    x = float_values(rng, shape, p.in_dtype, magnitude)
    if p.hostile:
        spoil(rng, x, p.in_dtype)
    return x, float(np.float32(magnitude * 6.0 / 255.0))


def fill_weights(
    rng: np.random.Generator, shape: tuple[int, ...], k: int, x_scale: float, p: _Common
) -> tuple[Array, Array, Array | None]:
    """int8 weight, scales that put results near 1, where activations bend, and a bias."""
    weight = _weights(rng, shape, p.extreme)
    spread = np.exp(rng.uniform(np.log(0.3), np.log(6.0), size=shape[0]))
    weight_scale = (spread / (75.0 * 75.0 * np.sqrt(k) * x_scale)).astype(np.float32)
    if isinstance(p, FourBitConv):  # -128 .. 127 to -8 .. 7, corners to corners
        weight, weight_scale = weight >> 4, weight_scale * np.float32(16)
    bias = rng.standard_normal(shape[0], dtype=np.float32) if p.has_bias else None
    return weight, weight_scale, bias
