"""The same problems through torch tensors: numpy buffers to tensors, contract names to torch dtypes, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcompress.ops import BlockCSR, SparseCanonical, SparseW8A8Canonical, W8A8Canonical
from tests import oracles, problems

__all__ = ["TORCH", "array", "block_canonical", "canonical", "tensor"]

TORCH: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "u8": torch.uint8,
    "s8": torch.int8,
    "i32": torch.int32,
}


def tensor(a: NDArray[Any], dtype: str) -> Tensor:
    """A tensor with the array's bits."""
    if dtype == "bf16":
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def array(t: Tensor, dtype: str) -> NDArray[Any]:
    """The tensor's bits as the contract's array."""
    t = t.detach().contiguous()
    if dtype == "bf16":
        return t.view(torch.int16).numpy().view(np.uint16)
    return t.numpy()


def canonical(pack: tuple[Any, ...]) -> W8A8Canonical:
    """The packer's positional arguments as the Python layer's dataclass."""
    weight, scale, bias, mode, input_scale, zero_point, activation, *groups = pack
    return W8A8Canonical(
        torch.from_numpy(weight),
        torch.from_numpy(scale),
        None if bias is None else torch.from_numpy(bias),
        problems.MODES[mode],
        input_scale,
        zero_point,
        oracles.ACTIVATIONS[activation],
        *groups,
    )


def block_canonical(pack: tuple[Any, ...]) -> SparseW8A8Canonical | SparseCanonical:
    """`canonical` for the arguments of pack_bsr."""
    crow, col, values, shape, scale, bias, mode, input_scale, zero_point, activation = pack
    values = tensor(values, "bf16" if values.dtype == np.uint16 else "")
    blocks = BlockCSR(torch.from_numpy(crow), torch.from_numpy(col), values, (shape[0], math.prod(shape[1:])))
    kernel_size = (shape[2], shape[3]) if len(shape) == 4 else None
    added = None if bias is None else torch.from_numpy(bias)
    name = oracles.ACTIVATIONS[activation]
    if scale is None:
        return SparseCanonical(blocks, added, name, kernel_size)
    codes = (problems.MODES[mode], input_scale, zero_point, name)
    return SparseW8A8Canonical(blocks, torch.from_numpy(scale), added, *codes, kernel_size=kernel_size)
