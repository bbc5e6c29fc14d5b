"""One block-sparse layer of any form, for the tests that are not seeded problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import oracles
from tests.block_problems import Form
from tests.kernels.runner import block_csr, only_blocks

__all__ = ["BlockLayer", "layer"]

Array = NDArray[Any]


@dataclass(frozen=True)
class BlockLayer:
    """``matrix``: the encoded values, zero where ``mask`` has no block; ``shape``: the weight's."""

    form: Form
    mask: NDArray[np.bool_]
    matrix: Array
    shape: tuple[int, ...]
    scale: Array | None
    bias: Array
    activation: int

    @property
    def exact(self) -> bool:
        """Whether its sums are integers."""
        return self.form.value == "s8"

    @property
    def blocks(self) -> tuple[Array, Array, Array]:
        """crow, col, values."""
        return block_csr(self.matrix, self.mask, self.form)

    @property
    def parameters(self) -> tuple[Any, ...]:
        """What follows the weight's shape in the packer's arguments; s8 layers are static with a zero point of 99."""
        input_scale, zero_point = (0.05, 99) if self.exact else (1.0, 0)
        return self.scale, self.bias, 0, input_scale, zero_point, self.activation

    @property
    def weight(self) -> NDArray[np.float64]:
        """The matrix as numbers."""
        values = self.matrix if self.exact else oracles.decode(self.matrix, self.form.value)
        return values.astype(np.float64)

    def pack(self, native: Any) -> Array:
        """The blob for the ISA that is set."""
        return np.asarray(native.pack_bsr(*self.blocks, self.shape, *self.parameters))

    def operator(self, native: Any) -> Any:
        """The function that runs it."""
        kind = "linear" if len(self.shape) == 2 else "conv2d"
        return getattr(native, f"{kind}_{'w8a8' if self.exact else 'bsr'}")


def layer(
    form: Form, mask: NDArray[np.bool_], kernel: tuple[int, int] | None = None, activation: int = 0
) -> BlockLayer:
    """A layer with the blocks of ``mask`` ``[out / height, columns]``; with ``kernel``, a convolution."""
    rng = np.random.default_rng([*mask.shape, form.height])
    out, k = mask.shape[0] * form.height, mask.shape[1] * form.width
    if form.value == "s8":
        matrix: Array = rng.integers(-128, 128, (out, k), dtype=np.int8)
    else:
        matrix = oracles.encode_float(rng.standard_normal((out, k), dtype=np.float32), form.value)
    scale = rng.uniform(0.5, 2.0, out).astype(np.float32) * np.float32(1e-3) if form.value == "s8" else None
    bias = rng.standard_normal(out, dtype=np.float32)
    shape = (out, k) if kernel is None else (out, k // (kernel[0] * kernel[1]), *kernel)
    return BlockLayer(form, mask, only_blocks(matrix, mask, form), shape, scale, bias, activation)
