"""Each format decoded with numpy alone: what a file says, for files that the writers here did not make."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["awq_weight", "compressed_weight", "gptq_weight", "values_of"]

Array = NDArray[Any]


def values_of(words: Array, bits: int) -> Array:
    """Unsigned values ``[rows, n * 32 / bits]`` of int32 words, the first one in the lowest bits."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    wide = np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts & np.uint32(2**bits - 1)
    return wide.reshape(words.shape[0], -1).astype(np.int64)


def _weight(q: Array, zero: Array, scale: Array, group: Array) -> Array:
    """``[in, out]`` integers, ``[groups, out]`` zero points and scales, the group of each input."""
    difference = (q - zero[group]).astype(np.float32)
    return (scale.astype(np.float32)[group] * difference).T


def gptq_weight(settings: dict[str, Any], tensors: dict[str, Array], name: str) -> Array:
    """Version 1 with ``bits`` 4 or 8, float32 ``[out, in]``."""
    bits = settings["bits"]
    q = values_of(tensors[name + ".qweight"].T, bits).T
    zero = (values_of(tensors[name + ".qzeros"], bits) + 1) % 2**bits
    neighbours = np.arange(q.shape[0]) // settings["group_size"]
    return _weight(q, zero, tensors[name + ".scales"], tensors.get(name + ".g_idx", neighbours))


def awq_weight(settings: dict[str, Any], tensors: dict[str, Array], name: str) -> Array:
    """float32 ``[out, in]``."""

    def outputs(words: Array) -> Array:
        nibbles = values_of(words, 4).reshape(words.shape[0], -1, 8)
        result = np.empty_like(nibbles)
        result[..., [0, 2, 4, 6, 1, 3, 5, 7]] = nibbles
        return result.reshape(words.shape[0], -1)

    q, zero = outputs(tensors[name + ".qweight"]), outputs(tensors[name + ".qzeros"])
    group = np.arange(q.shape[0]) // settings["group_size"]
    return _weight(q, zero, tensors[name + ".scales"], group)


def compressed_weight(settings: dict[str, Any], tensors: dict[str, Array], name: str) -> Array:
    """``pack-quantized`` with 4 bits and zero points, float32 ``[out, in]``."""
    size = settings["config_groups"]["group_0"]["weights"]["group_size"]
    out, inputs = tensors[name + ".weight_shape"]
    q = values_of(tensors[name + ".weight_packed"], 4)[:, :inputs]
    zero = values_of(tensors[name + ".weight_zero_point"].T, 4)[:, :out]
    return _weight(q.T, zero, tensors[name + ".weight_scale"].T, np.arange(inputs) // size)
