"""Block-CSR weights to and from torch's own sparse tensors, which torch itself builds without looking at an index."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcompress.ops.block_csr import BlockCSR, validate_block_csr
from fastcompress.ops.checks import check_tensor

__all__ = ["from_sparse_bsr", "from_sparse_csr", "to_sparse_bsr", "to_sparse_csr"]


def _expect_block_csr(function: str, value: object) -> None:
    if not isinstance(value, BlockCSR):
        raise TypeError(
            f"{function}: `matrix` must be a BlockCSR, got {type(value).__name__}; BlockCSR.from_dense makes one"
        )


def _expect_layout(function: str, tensor: Tensor, layout: torch.layout, remedy: str) -> None:
    check_tensor(function, "tensor", tensor)
    if tensor.layout != layout:
        raise TypeError(f"{function}: `tensor` has layout {tensor.layout}, allowed: {layout}; {remedy}")
    if tensor.dim() != 2:
        raise ValueError(
            f"{function}: `tensor` must be a matrix without batch or dense dimensions, got shape {list(tensor.shape)}; "
            "convert its slices one by one"
        )


def _block_csr(function: str, tensor: Tensor, values: Tensor) -> BlockCSR:
    # Validated under the caller's name first, so that messages say which conversion met the hostile tensor.
    crow, col = tensor.crow_indices(), tensor.col_indices()
    shape = (tensor.shape[0], tensor.shape[1])
    return BlockCSR(*validate_block_csr(function, "", crow, col, values, shape), values, shape)


def to_sparse_bsr(matrix: BlockCSR) -> Tensor:
    """The same matrix as ``torch.sparse_bsr`` of any dtype and block size, sharing memory; zeros in blocks stay.

    Raises:
        TypeError: not a BlockCSR.
        ValueError: its tensors were changed since it was made and are no valid block-CSR any more.

    Example:
        >>> to_sparse_bsr(BlockCSR.from_dense(torch.eye(8), (4, 4))).values().shape
        torch.Size([2, 4, 4])

    Source: https://docs.pytorch.org/docs/stable/sparse.html#sparse-bsr-tensor
    """
    _expect_block_csr("to_sparse_bsr", matrix)
    crow, col = validate_block_csr("to_sparse_bsr", "matrix", matrix.crow, matrix.col, matrix.values, matrix.shape)
    return torch.sparse_bsr_tensor(crow, col, matrix.values, matrix.shape, check_invariants=False)


def from_sparse_bsr(tensor: Tensor) -> BlockCSR:
    """The same matrix as BlockCSR, sharing memory where indices are int32 already; zeros in blocks stay.

    Raises:
        TypeError: another layout, or a dtype that `validate_block_csr` refuses.
        ValueError: batched or hybrid, or an index or value that `validate_block_csr` refuses.

    Example:
        >>> from_sparse_bsr(torch.eye(8).to_sparse_bsr((4, 4))).col.tolist()
        [0, 1]
    """
    _expect_layout("from_sparse_bsr", tensor, torch.sparse_bsr, "convert it with .to_sparse_bsr((bh, bw))")
    return _block_csr("from_sparse_bsr", tensor, tensor.values())


def to_sparse_csr(matrix: BlockCSR) -> Tensor:
    """The same matrix as ``torch.sparse_csr``, sharing memory; the blocks must be 1x1, explicit zeros stay.

    Raises:
        TypeError: not a BlockCSR.
        ValueError: larger blocks, or tensors that were changed and are no valid block-CSR any more.

    Example:
        >>> to_sparse_csr(BlockCSR.from_dense(torch.eye(8), (1, 1))).values().shape
        torch.Size([8])

    Source: https://docs.pytorch.org/docs/stable/sparse.html#sparse-csr-tensor
    """
    _expect_block_csr("to_sparse_csr", matrix)
    crow, col = validate_block_csr("to_sparse_csr", "matrix", matrix.crow, matrix.col, matrix.values, matrix.shape)
    if matrix.block_size != (1, 1):
        raise ValueError(
            f"to_sparse_csr: `matrix` has blocks {matrix.block_size}, allowed: (1, 1); use to_sparse_bsr, or "
            "BlockCSR.from_dense(matrix.to_dense(), (1, 1))"
        )
    return torch.sparse_csr_tensor(crow, col, matrix.values.reshape(-1), matrix.shape, check_invariants=False)


def from_sparse_csr(tensor: Tensor) -> BlockCSR:
    """The same matrix as BlockCSR with 1x1 blocks, sharing memory where indices are int32 already.

    Raises:
        TypeError: another layout, or a dtype that `validate_block_csr` refuses.
        ValueError: batched or hybrid, or an index or value that `validate_block_csr` refuses.

    Example:
        >>> from_sparse_csr(torch.eye(8).to_sparse_csr()).block_size
        (1, 1)
    """
    _expect_layout("from_sparse_csr", tensor, torch.sparse_csr, "convert it with .to_sparse_csr()")
    return _block_csr("from_sparse_csr", tensor, tensor.values().reshape(-1, 1, 1))
