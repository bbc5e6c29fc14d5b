"""Random block-sparse weights and calls of their kernels on raw buffers, for the suites about sparse weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastcompress.ops import native

__all__ = ["FORMS", "Form", "Packed", "Shape", "dense_int8", "dense_int8_calls", "linear_call", "pack_random"]

_C = native.require("the block-sparse benchmarks")

Shape = tuple[int, int, int]
Packed = NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """A kind of blocks: the weights' type and the block's height and width."""

    value: str
    height: int
    width: int

    @property
    def block(self) -> str:
        """``"16x4"``."""
        return f"{self.height}x{self.width}"

    @property
    def is_float(self) -> bool:
        """Whether weights and activations are floats."""
        return self.value != "s8"


#: Every kind that has kernels, by the name of its block.
FORMS = {
    form.block: form
    for form in (
        Form("s8", 16, 4),
        Form("s8", 4, 4),
        Form("s8", 1, 4),
        Form("f32", 16, 1),
        Form("f32", 4, 1),
        Form("f32", 1, 1),
        Form("bf16", 16, 2),
    )
}


def _values(rng: np.random.Generator, form: Form, blocks: int) -> NDArray[Any]:
    shape = (blocks, form.height, form.width)
    if form.value == "s8":
        return rng.integers(-127, 128, shape, dtype=np.int8)
    values = rng.standard_normal(shape, dtype=np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16) if form.value == "bf16" else values


def pack_random(form: Form, weight_shape: tuple[int, ...], sparsity: float) -> tuple[Packed, int]:
    """Return a packed layer of `weight_shape` whose blocks are kept at random, and its multiply-adds of one token."""
    rng = np.random.default_rng(0)
    out, columns = weight_shape[0], int(np.prod(weight_shape[1:]))
    keep = rng.random((out // form.height, columns // form.width)) >= sparsity
    col = np.nonzero(keep)[1].astype(np.int32)
    crow = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int32)
    scale = None if form.is_float else rng.uniform(1e-3, 2e-3, out).astype(np.float32)
    bias = rng.standard_normal(out).astype(np.float32)
    static = (0, 1.0, 0) if form.is_float else (0, 0.02, 128)
    packed = _C.pack_bsr(crow, col, _values(rng, form, len(col)), weight_shape, scale, bias, *static)
    return packed, form.height * form.width * len(col)


def dense_int8(weight_shape: tuple[int, ...]) -> Packed:
    """Return a packed dense int8 layer with random weights."""
    rng = np.random.default_rng(0)
    out = weight_shape[0]
    weight = rng.integers(-127, 128, weight_shape, dtype=np.int8)
    scale, bias = rng.uniform(1e-3, 2e-3, out).astype(np.float32), rng.standard_normal(out).astype(np.float32)
    return _C.pack_w8a8(weight, scale, bias, 0, 0.02, 128, 0)


def linear_call(
    packed: Packed, shape: Shape, *, is_float: bool = False, out_dtype: str = "f32"
) -> Callable[[], object]:
    """Return a call of the kernel on buffers of its own: u8 in, or f32 in for float weights."""
    m, k, n = shape
    out = torch.zeros(m, n, dtype={"f32": torch.float32, "u8": torch.uint8}[out_dtype]).numpy()
    rng = np.random.default_rng(1)
    if is_float:
        x = torch.from_numpy(rng.standard_normal((m, k), dtype=np.float32)).clone().numpy()
        return lambda: _C.linear_bsr(x, packed, out)
    q = torch.from_numpy(rng.integers(0, 256, (m, k), dtype=np.uint8)).clone().numpy()
    return lambda: _C.linear_w8a8(q, packed, out, dtype="u8", out_dtype=out_dtype, out_scale=0.05)


def dense_int8_calls(shape: Shape) -> dict[str, Callable[[], object]]:
    """Return the dense int8 candidates of a linear shape: ours and torch's."""
    m, k, n = shape
    a = torch.randint(-127, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-127, 128, (n, k), dtype=torch.int8).t()
    return {"dense": linear_call(dense_int8((n, k)), shape), "_int_mm": lambda: torch._int_mm(a, b)}
