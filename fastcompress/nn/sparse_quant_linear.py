"""``nn.Linear`` with block-sparse int8 weights and int8 activations."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ..ops import packing
from ..ops.block_csr import BlockCSR
from ..ops.canonical_sparse import SparseW8A8Canonical
from ..ops.packing import KERNEL_BLOCKS
from .quant_linear import QuantLinear

__all__ = ["SparseQuantLinear"]


class SparseQuantLinear(QuantLinear):
    """Drop-in replacement of a pruned ``nn.Linear``: a `QuantLinear` that stores and runs only non-zero 16x4 blocks.

    Its ``state_dict`` holds block-CSR: ``crow`` int32 ``[out/16 + 1]``, ``col`` int32 ``[blocks]``, ``values`` int8
    ``[blocks, 16, 4]``. Time and memory grow with the number of blocks.

    Raises:
        ValueError: ``out_features`` is not a multiple of 16 or ``in_features`` of 4.

    Example:
        >>> dense = torch.nn.Linear(64, 32)
        >>> with torch.no_grad():
        ...     _ = dense.weight[:, 4:].zero_()
        >>> layer = SparseQuantLinear.from_float(dense, input_mode="dynamic")
        >>> layer.density
        0.0625

    Source: the block format is that of ``torch.sparse_bsr_tensor``; csrc/cpu/families/bsr_impl.h explains the kernel.
    """

    canonical_class = SparseW8A8Canonical

    def __init__(self, c: SparseW8A8Canonical, *, dtype: torch.dtype = torch.float32) -> None:
        super(QuantLinear, self).__init__(c, dtype)
        self.out_features, self.in_features = c.weight_shape

    @staticmethod
    def problem(module: nn.Linear) -> str | None:
        """Why a layer of this shape cannot be cut into blocks, or None."""
        height, width = KERNEL_BLOCKS[torch.int8][0]
        if module.out_features % height or module.in_features % width:
            return (
                f"its {module.out_features}x{module.in_features} weight cannot be cut into blocks of {height}x{width}"
            )
        return None

    @classmethod
    def from_canonical(  # type: ignore[override]
        cls, c: SparseW8A8Canonical, *, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Make a layer from canonical tensors; `dtype` is the logical dtype of ``weight``.

        Raises:
            TypeError, ValueError: see ``fastcompress.ops.pack``.
        """
        return cls(c, dtype=dtype)

    @staticmethod
    def _canonical_of(weight: Tensor, *rest: Any) -> SparseW8A8Canonical:
        return SparseW8A8Canonical(BlockCSR.from_dense(weight, KERNEL_BLOCKS[torch.int8][0]), *rest)

    def canonical(self) -> SparseW8A8Canonical:
        """The portable tensors behind this layer, bit for bit (without native kernels, all-zero blocks are dropped)."""
        c = packing.unpack(self.packed)
        assert isinstance(c, SparseW8A8Canonical)
        return c

    @property
    def density(self) -> float:
        """Stored blocks over all blocks."""
        header = packing.info(self.packed)
        height, width = KERNEL_BLOCKS[torch.int8][0]
        total = self.out_features // height * (self.in_features // width)
        return float(header["blocks"]) / total if "blocks" in header else self.canonical().blocks.density

    def kernel_name(self) -> str:
        """The kernel that runs this layer, for example ``linear_w8a8_bsr16x4_avx512vnni``."""
        header = packing.info(self.packed)
        return str(header.get("kernel") or f"{header['family']}_bsr16x4_{header['isa']}")

    def extra_repr(self) -> str:
        """The constructor's view, for ``print(model)``."""
        return f"{super().extra_repr()}, density={self.density:.3g}"
