"""Weights in groups, written down in NumPy from docs/architecture.md: what a layer must hold and compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Weights", "bits_of", "product", "quantized"]

F32 = np.float32
Array = NDArray[Any]


@dataclass
class Weights:
    """Integers ``[out, in]``, and a scale and a zero point for each group, ``[out, groups]``."""

    values: Array
    scale: Array
    zero: Array
    group_size: int

    def spread(self, by_group: Array) -> Array:
        return np.repeat(by_group, self.group_size, axis=1)[:, : self.values.shape[1]]

    @property
    def floats(self) -> Array:
        difference = (self.values - self.spread(self.zero)).astype(F32)
        return difference * self.spread(self.scale)


def bits_of(x: Array, dtype: torch.dtype) -> Array:
    """float32 rounded to ``dtype`` and back; bfloat16 by hand, nearest even."""
    if dtype == torch.float32:
        return x.astype(F32)
    if dtype == torch.float16:
        return x.astype(np.float16).astype(F32)
    words = x.astype(F32).view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) & np.uint32(0xFFFF0000)).view(F32)


def quantized(
    weight: Tensor,
    bits: int,
    group_size: int | None,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> Weights:
    """Each weight to the nearest of its group's values."""
    w = weight.detach().float().numpy()
    size = w.shape[1] if group_size is None else group_size
    values, scales, zeros = np.zeros(w.shape, np.int64), [], []
    for start in range(0, w.shape[1], size):
        part = w[:, start : start + size]
        if symmetric:
            reach, zero = (F32(7.5), np.full(len(w), 8)) if bits == 4 else (F32(127), np.zeros(len(w), np.int64))
            scale = bits_of(np.maximum(np.abs(part).max(1) / reach, F32(2.0**-100)), scale_dtype)
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = bits_of(np.maximum((high - low) / F32(15), F32(2.0**-100)), scale_dtype)
            zero = np.clip(np.rint(-low / scale), 0, 15).astype(np.int64)
        bottom, top = (0, 15) if bits == 4 else (-127, 127)
        steps = np.rint(part / scale[:, None]).astype(np.int64) + zero[:, None]
        values[:, start : start + size] = np.clip(steps, bottom, top)
        scales.append(scale)
        zeros.append(zero)
    return Weights(values, np.stack(scales, 1), np.stack(zeros, 1), size)


def product(x: Tensor, w: Weights, mode: str, bias: Tensor | None = None, minimum: Array | None = None) -> Array:
    """Rows of ``x [M, in]`` times the weights, float32 steps in the prescribed order; ``[M, out]``."""
    a = x.detach().float().numpy()
    zero = np.zeros_like(w.zero) if minimum is not None else w.zero
    step = np.maximum(np.abs(a).max(1, keepdims=True) * (F32(1) / F32(127)), F32(2.0**-100))
    low = np.clip(np.rint(a * (F32(1) / step)), -127, 127).astype(np.int64)
    total, terms = np.zeros((len(a), len(w.values)), F32), []
    for g in range(w.scale.shape[1]):
        part = slice(g * w.group_size, (g + 1) * w.group_size)
        weights = (w.values[:, part] - zero[:, g : g + 1]).T
        if mode == "dynamic_symmetric":
            sums, own = (low[:, part] @ weights).astype(F32), F32(1)
            inputs = low[:, part].sum(1, keepdims=True).astype(F32)
        else:
            own = np.maximum(np.abs(a[:, part]).max(1, keepdims=True) * (F32(1) / F32(32639)), F32(2.0**-100))
            q = np.rint(a[:, part] * (F32(1) / own)).astype(np.int64)
            high = (q + 128) >> 8
            rest = q - 256 * high
            sums = (high @ weights).astype(F32) * F32(256) + (rest @ weights).astype(F32)
            inputs = high.sum(1, keepdims=True).astype(F32) * F32(256) + rest.sum(1, keepdims=True).astype(F32)
        terms.append((sums * w.scale[:, g]) * own)
        if minimum is not None:  # what minima give is added up before the groups
            total = total + (inputs * own) * minimum[:, g]
    for term in terms:
        total = total + term
    if mode == "dynamic_symmetric":
        total = total * step
    return total if bias is None else total + bias.detach().float().numpy()
