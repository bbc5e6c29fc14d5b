"""Every tolerance of the test-suite, each with its reason. Nothing else may compare floats with a margin.

Everything up to the activation is compared bit for bit: integer sums are exact and the float32 steps are prescribed. A
margin is needed only where a transcendental function is approximated, where its result is rounded to a short format,
and where a float matrix product or a float *network* is the reference. ``u`` is the unit roundoff, 2^-24 for float32.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "ACTIVATION_ULPS",
    "DEVICE_AGREEMENT",
    "INT_STEPS_AFTER_ACTIVATION",
    "MODEL_AGREEMENT",
    "REFERENCE_AGREEMENT",
    "U_OUT",
    "activation_bound",
    "added_bound",
    "block_bound",
    "dot_bound",
    "folded_bound",
    "group_bound",
    "output_bound",
    "real_activation_bound",
    "rounded_bound",
]

_U = 2.0**-24

#: Unit roundoff of each float output format.
U_OUT: dict[str, float] = {"f32": _U, "bf16": 2.0**-8, "f16": 2.0**-11}

#: Float sums of at most 100 terms in another order, on another device: 100 roundings of terms of one size, and with
#: bfloat16 outputs the rounding to those, on either side.
DEVICE_AGREEMENT = {torch.float32: 100 * _U, torch.bfloat16: 2 * 2.0**-8}

#: |kernel(v) - exact(v)| <= c * u * max(|v|, |y|) + tiny.
#: hardswish and hardsigmoid are three float32 operations (add, clamp, and a multiplication or division by 6 whose
#: constant is rounded once more): relative error <= 4u of a value at most |v|, or 1.
#: gelu, gelu_tanh and silu are v * s(v) with 0 <= s <= 1. An erf by Abramowitz & Stegun 7.1.26 (the coarsest in use) is
#: off by 1.5e-7, half of which (1.3u) reaches s; a degree-6 exp is off by 3.4u relative, at most half of which reaches
#: s; the argument of exp is off by 3u relative, and max |x * s'(x)| < 0.3 adds 1u; then come two or three roundings.
#: 8 is a little over that sum; a wrong coefficient or sign is off by orders of magnitude more.
ACTIVATION_ULPS: dict[str, float] = {
    "none": 0.0,
    "relu": 0.0,
    "relu6": 0.0,
    "hardswish": 4.0,
    "hardsigmoid": 4.0,
    "gelu": 8.0,
    "gelu_tanh": 8.0,
    "silu": 8.0,
}

#: After an activation that is only close, v / scale may fall on the other side of a rounding boundary: one step, never
#: two, as long as the activation bound is below half a step. The problems' output scales are at least
#: max|v| * 0.3 / 127 > 2^-9 max|v|; the bound is at most 2^-21 max|v| (2^-22 for hardsigmoid).
INT_STEPS_AFTER_ACTIVATION = 1

#: Smallest normal and subnormal steps: results that underflow lose absolute, not relative, precision.
_TINY: dict[str, float] = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-25}


def activation_bound(name: str, v: NDArray[np.float32], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest allowed |kernel - y| of a float32 activation result, ``y`` the float64 value."""
    scale = np.ones_like(y) if name == "hardsigmoid" else np.maximum(np.abs(v.astype(np.float64)), np.abs(y))
    return ACTIVATION_ULPS[name] * _U * scale


def output_bound(name: str, dtype: str, v: NDArray[np.float32], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Activation bound plus one rounding to the output format."""
    inner = activation_bound(name, v, y)
    return inner + U_OUT[dtype] * (np.abs(y) + inner) + _TINY[dtype]


#: c of `block_bound`. However a sum of K products is ordered and split into chains, each product meets at most K
#: roundings: its own and those of K - 1 additions (adding a zero is exact; fused operations have fewer). Higham,
#: Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1: the error is at most gamma_K |A||W| with
#: gamma_K = Ku / (1 - Ku), and 1 / (1 - Ku) < 1.005 up to the largest K, 65,793; the float64 reference adds < 1e-8.
BLOCK_SUM_FACTOR = 1.01


def block_bound(terms: NDArray[np.int64], absolute: NDArray[np.float64]) -> NDArray[np.float64]:
    """c * u * K * (|A||W|) for float32 sums of ``terms [N]`` stored products with ``absolute [M,N]`` = |A||W|.

    Products and partial sums below the normal range lose half a subnormal step each.
    """
    k = terms.astype(np.float64)
    return BLOCK_SUM_FACTOR * _U * k * absolute + k * 2.0**-149


#: Roundings of float32 that a group's sum meets before it joins the others: two conversions, their sum, two factors.
GROUP_STEPS = 6

#: How far 16-bit activations are off, as a share of the largest magnitude in their group: half a step of 1/32639, and
#: three roundings (the scale, its inverse, the product).
SIXTEEN_BITS = 0.5 / 32639 + 4 * _U


def group_bound(groups: int, absolute: NDArray[np.float64]) -> NDArray[np.float64]:
    """u (G + 6) * size for float32 sums of G groups whose own sums are exact integers.

    ``absolute`` = sum of max|a| |w| by group, |w| = |q| s + |minimum| where there are minima. The last term is for
    results in the subnormal range.
    """
    steps = float(groups + GROUP_STEPS)
    return 1.001 * _U * steps * absolute + steps * 2.0**-149


def added_bound(error: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """What becomes of ``error`` when one more float32 addition makes ``value``: its result is rounded."""
    return error + _U * (np.abs(value) + error)


#: Largest |activation'|: gelu at sqrt(2) (1.1289, with tanh 1.1291), silu at 2.4 (1.0998), hardswish at 3.
_SLOPE: dict[str, float] = {"gelu": 1.13, "gelu_tanh": 1.13, "silu": 1.1, "hardswish": 1.5, "hardsigmoid": 1.0 / 6.0}


def real_activation_bound(
    name: str, error: NDArray[np.float64], v: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Largest allowed |kernel - y| where ``v`` is known up to ``error`` only; nothing is allowed at infinities."""
    finite = np.where(np.isfinite(v), v, 0.0)
    own = ACTIVATION_ULPS[name] * _U * (1.0 if name == "hardsigmoid" else np.abs(finite) + error)
    return np.where(np.isfinite(v), _SLOPE.get(name, 1.0) * error + own, 0.0)


def rounded_bound(dtype: str, inner: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """u_out * |ref| more for the rounding to the output format; ``dtype`` f32, bf16 or f16."""
    return inner + U_OUT[dtype] * (np.abs(np.where(np.isfinite(y), y, 0.0)) + inner) + _TINY[dtype]


def dot_bound(
    abs_a: NDArray[np.float64], abs_w: NDArray[np.float64], ref: NDArray[np.float64], dtype: str = "f32"
) -> NDArray[np.float64]:
    """c * u * K * (|A||W|) + u_out * |ref| for ``a [M,K]``, ``w [N,K]``: a float matmul against float64.

    c = 2: K * u * |A||W| for products and partial sums (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
    ed., section 3.1), and once more for operands that are themselves rounded products of a scale and an integer.
    """
    k = max(1, abs_a.shape[-1])
    return 2.0 * _U * k * (abs_a @ abs_w.T) + U_OUT[dtype] * np.abs(ref) + _TINY[dtype]


def folded_bound(
    terms: int, absolute: NDArray[np.float64], added: NDArray[np.float64], ref: NDArray[np.float64]
) -> NDArray[np.float64]:
    """An int8 layer, or its simulation in float with a BatchNorm behind it, against float64 on the same integers.

    ``absolute`` = |A||W| of sums of ``terms`` products; ``added`` = |bias g| + |mean g| + |beta|, g the norm's factor.
    As in `dot_bound`, 2 K u covers the sum; the simulated weight is divided by g and its output multiplied by a g of
    its own, each with at most 4 roundings (sqrt, reciprocal, product, and the use): 8 u. The terms that are added meet
    as many. The int8 layer has fewer of each.
    """
    return _U * ((2.0 * terms + 8.0) * absolute + 8.0 * added + np.abs(ref)) + _TINY["f32"]


#: Two correct answers of a float layer, sums of at most 72 products of normal numbers: by `block_bound` each is within
#: 72 u * 72 E|N|^2 < 2e-4 of the truth, and typically within 1e-6; a wrong weight changes them by about 1.
REFERENCE_AGREEMENT = 4e-4

#: Whole networks, int8 against float32: thresholds the project promises, not derived bounds.
#: "minilm" is the scheme of the demo and the benchmarks, with two linears in float; "minilm_all" has every linear in
#: int8 and misses a mean of 0.999 by 0.0001, so its threshold guards what it does reach.
MODEL_AGREEMENT: dict[str, float] = {
    "minilm_mean_cosine": 0.999,
    "minilm_min_cosine": 0.99,
    "minilm_all_mean_cosine": 0.998,
    "minilm_all_min_cosine": 0.99,
    "efficientnet_top1": 0.95,
}
