"""Canonical layers and the two ways to run an operator, shared by the tests of ops and nn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcompress.ops import W8A8Canonical, pack, reference, reference_layout
from tests import oracles

__all__ = [
    "DTYPE_NAMES",
    "IMPLEMENTATIONS",
    "Implementation",
    "as_numpy",
    "canonical_conv2d",
    "canonical_linear",
    "rng",
]

DTYPE_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def rng(seed: int) -> torch.Generator:
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(seed)


def _canonical(shape: list[int], seed: int, **changes: Any) -> W8A8Canonical:
    g = rng(seed)
    fields: dict[str, Any] = {
        "weight": torch.randint(-128, 128, shape, generator=g, dtype=torch.int8),
        "weight_scale": torch.rand(shape[0], generator=g) * 0.01 + 1e-4,
        "bias": torch.randn(shape[0], generator=g),
        "input_mode": "static",
        "input_scale": 0.021,
        "input_zero_point": 117,
    }
    if changes.get("input_mode", "static") != "static":
        fields.update(input_scale=1.0, input_zero_point=0)
    return W8A8Canonical(**{**fields, **changes})


def canonical_linear(n: int = 5, k: int = 7, seed: int = 0, **changes: Any) -> W8A8Canonical:
    """A linear layer with random weights, -128 among them."""
    return _canonical([n, k], seed, **changes)


def canonical_conv2d(
    out: int = 6, per_group: int = 2, kernel: tuple[int, int] = (3, 3), seed: int = 0, **changes: Any
) -> W8A8Canonical:
    """A convolution with random weights, -128 among them."""
    return _canonical([out, per_group, *kernel], seed, **changes)


@dataclass(frozen=True)
class Implementation:
    """The reference functions on reference blobs, or the registered operators on this machine's blobs."""

    name: str
    ops: Any
    pack: Callable[[W8A8Canonical], Tensor]


IMPLEMENTATIONS = (
    Implementation("reference", reference, reference_layout.encode),
    Implementation("operator", torch.ops.fastcompress, pack),
)


def as_numpy(x: Tensor) -> np.ndarray[Any, Any]:
    """A float tensor as the oracle's float32 values, an integer one as it is."""
    if x.dtype == torch.bfloat16:
        return oracles.decode(x.contiguous().view(torch.uint16).numpy(), "bf16")
    return x.float().numpy() if x.is_floating_point() else x.numpy()
