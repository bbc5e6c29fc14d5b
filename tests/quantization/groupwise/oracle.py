"""What the algorithms must find, written down in NumPy from the papers; no code of the package is used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = np.float32
Array = NDArray[Any]


def bf16(x: Array) -> Array:
    """float32 rounded to bfloat16, nearest even."""
    bits = x.astype(F32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(F32)


def spans(inputs: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, inputs)) for start in range(0, inputs, size)]


def minmax(w: Array, bits: int, symmetric: bool) -> tuple[Array, Array]:
    """bfloat16 scale and zero of one group, ``w [out, size]``; each ``[out]``."""
    tiny = F32(2.0**-100)
    if symmetric:
        reach, zero = (F32(7.5), 8) if bits == 4 else (F32(127), 0)
        scale = bf16(np.maximum(np.abs(w).max(1) / reach, tiny))
        return scale, np.full_like(scale, zero)
    low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
    scale = bf16(np.maximum((high - low) / F32(15), tiny))
    return scale, np.clip(np.rint(-low / scale), 0, 15).astype(F32)


def rounded(w: Array, scale: Array, zero: Array, bits: int) -> Array:
    low, high = (0, 15) if bits == 4 else (-127, 127)
    return np.clip(np.rint(w / scale) + zero, low, high)


def rtn(w: Array, size: int, bits: int = 4, symmetric: bool = True) -> tuple[Array, Array]:
    """(integers, dequantized weight)."""
    values, weight = np.empty_like(w), np.empty_like(w)
    for span in spans(w.shape[1], size):
        scale, zero = minmax(w[:, span], bits, symmetric)
        values[:, span] = rounded(w[:, span], scale[:, None], zero[:, None], bits)
        weight[:, span] = (values[:, span] - zero[:, None]) * scale[:, None]
    return values, weight


def gptq(
    w: Array, h: Array, size: int, symmetric: bool, act_order: bool, dampening: float = 0.01
) -> tuple[Array, Array, Array]:
    """Column by column in float64, no blocks: (integers, dequantized weight, distance to the nearest rounding tie).

    The inverse is that of the remaining columns, downdated after each (Frantar et al. 2023, eq. 3), no Cholesky factor.
    """
    inputs = w.shape[1]
    diagonal = np.diag(h).astype(np.float64)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(inputs)
    h = h.astype(np.float64) + np.diag((diagonal == 0) * diagonal.mean())
    h = h + dampening * diagonal.mean() * np.eye(inputs)
    inverse = np.linalg.inv(h)
    work, values, weight, ties = w.astype(np.float64), np.empty_like(w), np.empty_like(w), np.empty(w.shape)
    static = [minmax(w[:, span], 4, symmetric) for span in spans(inputs, size)]
    for j in order:
        g = j // size
        if not act_order and j % size == 0:
            static[g] = minmax(work[:, j : j + size].astype(F32), 4, symmetric)
        scale, zero = static[g]
        steps = work[:, j] / scale
        ties[:, j] = np.abs(steps - np.floor(steps) - 0.5)
        values[:, j] = rounded(work[:, j], scale, zero, 4)
        weight[:, j] = (values[:, j] - zero) * scale
        error = (work[:, j] - weight[:, j]) / inverse[j, j]
        work -= np.outer(error, inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return values, weight, ties
