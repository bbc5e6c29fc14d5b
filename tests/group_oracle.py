"""Independent answers for weights in groups: numpy only, no package code, from ``docs/architecture.md`` section 1.

A group's integer sums are taken in float64, where they are exact; each float32 operation is one operation of numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import oracles

__all__ = ["group_sums", "split_16bit", "weighted_sums"]

Array = NDArray[Any]
F32 = np.float32

_SMALLEST_STEP = F32(2.0**-100)
_INV32639 = F32(1.0) / F32(32639.0)


def _by_group(a: Array, group_size: int) -> NDArray[np.float64]:
    """``[R,K]`` as ``[groups, R, group_size]``; a last group with fewer gets zeros, which add nothing to a sum."""
    rows, k = a.shape
    groups = -(-k // group_size)
    padded = np.zeros((rows, groups * group_size))
    padded[:, :k] = a
    return np.ascontiguousarray(padded.reshape(rows, groups, group_size).transpose(1, 0, 2))


def split_16bit(
    x: NDArray[np.float32], group_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """High and low bytes ``[groups, M, group_size]`` of every input, and the steps ``[groups, M]``.

    A row with a NaN or an infinity has zeros and NaN steps.
    """
    finite: Array = np.asarray(np.isfinite(x).all(axis=1))
    v = _by_group(np.where(finite[:, None], x, F32(0.0)), group_size).astype(np.float32)
    step = np.maximum(np.abs(v).max(axis=2) * _INV32639, _SMALLEST_STEP)
    a = np.rint(v * (F32(1.0) / step)[:, :, None]).astype(np.int64)
    high = (a + 128) >> 8
    low = a - 256 * high
    assert min(high.min(), low.min()) >= -128
    assert max(high.max(), low.max()) <= 127
    return high.astype(np.float64), low.astype(np.float64), np.where(finite, step, F32(np.nan)).astype(np.float32)


def group_sums(a: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float32]:
    """Exact sums over the inputs of each group, rounded once: ``[G,M,S]`` and ``[G,N,S]`` to ``[G,M,N]``."""
    return np.matmul(a, weight.transpose(0, 2, 1)).astype(np.float32)


def weighted_sums(
    x: NDArray[np.float32],
    values: Array,
    scale: NDArray[np.float32],
    group_size: int,
    zero: Array | int = 0,
    minimum: NDArray[np.float32] | None = None,
    sixteen_bits: bool = False,
) -> NDArray[np.float32]:
    """What the epilogue adds the bias to, ``[M,N]``.

    ``x [M,K]``; integers ``values [N,K]``; ``scale``, ``minimum`` and ``zero`` (or one number) ``[N,groups]``.
    """
    groups = scale.shape[1]
    zeros = np.broadcast_to(np.asarray(zero, dtype=np.float64), scale.shape)
    per_input = np.repeat(zeros, group_size, axis=1)[:, : values.shape[1]]
    weight = _by_group(values.astype(np.float64) - per_input, group_size)
    ones = np.ones((groups, 1, group_size))  # zeros of a short group's end count as no input
    total = np.zeros((x.shape[0], values.shape[0]), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if sixteen_bits:
            high, low, step = split_16bit(x, group_size)
            each = step[:, :, None]
            sums = group_sums(high, weight) * F32(256.0) + group_sums(low, weight)
            of_inputs = (group_sums(high, ones) * F32(256.0) + group_sums(low, ones)) * each
        else:
            q, row_scale, _ = oracles.quantize_per_token(x, symmetric=True)
            finite = np.isfinite(row_scale)
            a = _by_group(np.where(finite[:, None], q.astype(np.float64) - 128.0, 0.0), group_size)
            sums, of_inputs = group_sums(a, weight), group_sums(a, ones)
        if minimum is not None:
            for g in range(groups):
                total = total + of_inputs[g] * minimum[None, :, g]
        for g in range(groups):
            scaled = sums[g] * scale[None, :, g]
            total = total + (scaled * each[g] if sixteen_bits else scaled)
        if not sixteen_bits:
            total = total * row_scale[:, None]
    assert total.dtype == np.float32
    return total
