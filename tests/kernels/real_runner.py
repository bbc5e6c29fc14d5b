"""Problems of block-sparse float layers: the answer in float64, and how far a float32 kernel may be from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import oracles, problems, tolerances
from tests.block_problems import BlockConv, BlockLinear, block_mask
from tests.kernels.runner import Case, Expected, block_csr, conv_case, only_blocks

__all__ = ["build_real_conv", "build_real_linear"]

Array = NDArray[Any]


def _layer(rng: np.random.Generator, p: BlockLinear | BlockConv, out: int) -> tuple[Array, Array, Array, Array | None]:
    """The matrix (encoded), its float64 values, which of them are stored, and a bias; results are near 1."""
    mask = block_mask(p)
    stored = np.repeat(np.repeat(mask, p.form.height, axis=0), p.form.width, axis=1)
    values = rng.standard_normal((out, p.k), dtype=np.float32) * np.float32(1.0 / np.sqrt(max(1.0, p.k * mask.mean())))
    if p.extreme:  # many magnitudes: small terms drown, large ones cancel
        values *= np.exp2(rng.integers(-24, 8, size=values.shape)).astype(np.float32)
    values = only_blocks(values, mask, p.form)
    matrix = oracles.encode_float(values, p.form.value)
    bias = rng.standard_normal(out, dtype=np.float32) if p.has_bias else None
    return matrix, oracles.decode(matrix, p.form.value).astype(np.float64), stored, bias


def _input(rng: np.random.Generator, p: BlockLinear | BlockConv, shape: tuple[int, ...]) -> Array:
    x = problems.float_values(rng, shape, p.in_dtype, problems.random_scale(rng, 0.1, 10.0))
    if p.hostile:
        problems.spoil(rng, x, p.in_dtype)
    return x


def _residual(rng: np.random.Generator, p: BlockLinear | BlockConv, shape: tuple[int, int]) -> Array | None:
    return None if p.residual is None else problems.float_values(rng, shape, p.residual, 1.0)


def _quantized(y: Array, error: Array, scale: float, zero_point: int, signed: bool) -> tuple[Array, Array]:
    """Middle and half width of the steps that values within ``error`` of ``y`` may take.

    Rounding is monotonic: what a float32 result becomes lies between what the rounded ends become.
    """
    low, high = (
        oracles.requantize(end.astype(np.float32), scale, zero_point, signed).astype(np.float64)
        for end in (y - error, y + error)
    )
    return (low + high) / 2, (high - low) / 2


def _finish(
    rng: np.random.Generator,
    p: BlockLinear | BlockConv,
    v: NDArray[np.float64],
    error: NDArray[np.float64],
    bias: Array | None,
    residual: Array | None,
) -> tuple[float, int, Expected]:
    """Output scale and zero point, and what is expected of sums ``v`` that are known up to ``error``."""
    with np.errstate(invalid="ignore", over="ignore"):
        for added in (bias, None if residual is None else oracles.decode(residual, p.residual or "")):
            if added is not None:
                v = v + added
                error = tolerances.added_bound(error, np.where(np.isfinite(v), v, 0.0))
        y = oracles.activate64(v, p.activation)
        error = tolerances.real_activation_bound(p.activation, error, v, y)
        if p.out_dtype not in ("u8", "s8"):
            return 1.0, 0, Expected(p.out_dtype, None, y=y, bound=tolerances.rounded_bound(p.out_dtype, error, y))
        signed = p.out_dtype == "s8"
        finite = np.abs(v[np.isfinite(v)])
        top = float(finite.max()) if finite.size else 1.0
        scale = float(np.float32(max(top, 1e-3) * rng.uniform(0.3, 2.0) / 127.0))
        zero_point = int(rng.integers(-128, 128)) if signed else int(rng.integers(0, 256))
        middle, half = _quantized(y, error, scale, zero_point, signed)
    return scale, zero_point, Expected(p.out_dtype, None, y=middle, bound=half)


def _sums(a: NDArray[np.float64], weight: Array, stored: Array) -> tuple[Array, Array]:
    acc, absolute = oracles.block_sums(a, weight, stored)
    return acc, tolerances.block_bound(stored.sum(axis=1), absolute)


def _pack(p: BlockLinear | BlockConv, matrix: Array, shape: tuple[int, ...], bias: Array | None) -> tuple[Any, ...]:
    activation = oracles.ACTIVATIONS.index(p.activation)
    return (*block_csr(matrix, block_mask(p), p.form), shape, None, bias, 0, 1.0, 0, activation)


def build_real_linear(p: BlockLinear) -> Case:
    """Buffers and expected result of a problem of linear_bsr."""
    rng = np.random.default_rng([24, p.index])
    matrix, weight, stored, bias = _layer(rng, p, p.n)
    x, residual = _input(rng, p, (p.m, p.k)), _residual(rng, p, (p.m, p.n))
    acc, error = _sums(oracles.decode(x, p.in_dtype).astype(np.float64), weight, stored)
    scale, zero_point, expected = _finish(rng, p, acc, error, bias, residual)
    arguments = {
        "residual": residual,
        "dtype": p.in_dtype,
        "out_dtype": p.out_dtype,
        "out_scale": scale,
        "out_zero_point": zero_point,
    }
    pack = _pack(p, matrix, (p.n, p.k), bias)
    outputs = {"out": ((p.m, p.n), p.out_dtype)}
    return Case(str(p), "linear_bsr", pack, (x,), outputs, arguments, {"out": expected}, "pack_bsr", exact=False)


def build_real_conv(p: BlockConv) -> Case:
    """Buffers and expected result of a problem of conv2d_bsr."""
    rng = np.random.default_rng([25, p.index])
    matrix, weight, stored, bias = _layer(rng, p, p.out_channels)
    x = _input(rng, p, (p.batch, p.height, p.width, p.channels))
    residual = _residual(rng, p, (p.pixels, p.out_channels))
    image = oracles.decode(x, p.in_dtype).astype(np.float64)
    patches = oracles.conv2d_patches(image, p.kernel, p.stride, p.padding, p.dilation).reshape(p.pixels, p.k)
    acc, error = _sums(patches, weight, stored)
    scale, zero_point, flat = _finish(rng, p, acc, error, bias, residual)
    pack = _pack(p, matrix, (p.out_channels, p.channels, *p.kernel), bias)
    return conv_case(p, "conv2d_bsr", pack, "pack_bsr", x, residual, (scale, zero_point), flat, exact=False)
