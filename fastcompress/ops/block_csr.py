"""The portable form of a block-sparse weight (docs/architecture.md §2): block-CSR, every index validated once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_tensor

__all__ = ["BlockCSR", "matrix_of", "validate_block_csr", "weight_of"]

_INT32_MAX = 2**31 - 1
_INDICES = (torch.int32, torch.int64)
_VALUES = (torch.float32, torch.bfloat16, torch.int8)
_REBUILD = "rebuild it with BlockCSR.from_dense"


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _first(bad: Tensor) -> int:
    return int(bad.nonzero()[0, 0])


def _is_sizes(value: object, count: int) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == count
        and all(isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _INT32_MAX for size in value)
    )


def _check_kind(
    function: str, name: str, value: Tensor, dtypes: Sequence[torch.dtype], dims: int, device: torch.device
) -> None:
    check_tensor(function, name, value)
    at = f"{function}: `{name}`"
    if value.layout != torch.strided:
        raise TypeError(f"{at} has layout {value.layout}, allowed: torch.strided; convert it with .to_dense()")
    if value.dtype not in dtypes:
        raise TypeError(
            f"{at} has dtype {_names([value.dtype])}, allowed: {_names(dtypes)}; convert it with .to({dtypes[0]})"
        )
    if value.dim() != dims:
        raise ValueError(f"{at} must have {dims} dimension(s), got shape {list(value.shape)}; {_REBUILD}")
    if value.device != device:
        raise ValueError(f"{at} is on device {value.device}, the values on {device}; move one of them with .to()")


def _check_crow(at: str, crow: Tensor, nnz: int, block_rows: int) -> None:
    if crow.numel() != block_rows + 1:
        raise ValueError(f"{at} has {crow.numel()} elements, expected {block_rows + 1} (block rows + 1); {_REBUILD}")
    if int(crow[0]) != 0:
        raise ValueError(f"{at} must start at 0, starts at {int(crow[0])}; {_REBUILD}")
    if int(crow[-1]) != nnz:
        raise ValueError(f"{at} ends at {int(crow[-1])}, but `col` has {nnz} elements; {_REBUILD}")
    outside = (crow < 0) | (crow > nnz)
    if bool(outside.any()):
        i = _first(outside)
        raise ValueError(f"{at} is {int(crow[i])} at index {i}, allowed: 0 to {nnz} (the blocks); {_REBUILD}")
    falls = crow[1:] < crow[:-1]
    if bool(falls.any()):
        i = _first(falls)
        raise ValueError(f"{at} decreases from {int(crow[i])} to {int(crow[i + 1])} in block row {i}; {_REBUILD}")


def _block_row(crow: Tensor, block: int) -> int:
    return int((crow <= block).sum()) - 1


def _check_col(at: str, crow: Tensor, col: Tensor, block_columns: int) -> None:
    outside = (col < 0) | (col >= block_columns)
    if bool(outside.any()):
        i = _first(outside)
        raise ValueError(
            f"{at} is {int(col[i])} in block row {_block_row(crow, i)}, allowed: 0 to {block_columns - 1}; {_REBUILD}"
        )
    stalls = col[1:] <= col[:-1]
    # A step into the next block row may go anywhere; crow names those steps.
    starts = crow[(crow > 0) & (crow < col.numel())]
    stalls[starts.long() - 1] = False
    if not bool(stalls.any()):
        return
    i = _first(stalls)
    here, before, row = int(col[i + 1]), int(col[i]), _block_row(crow, i)
    if here == before:
        raise ValueError(f"{at} repeats block column {here} in block row {row}; merge the duplicate blocks")
    raise ValueError(f"{at} is unsorted in block row {row}: {here} follows {before}; sort the blocks of each block row")


def validate_block_csr(
    function: str, name: str, crow: Tensor, col: Tensor, values: Tensor, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Check a block-CSR matrix completely and return ``crow`` and ``col`` as int32; keeps no state, O(blocks) time.

    Args:
        function: who asks, for the messages.
        name: of the layer or tensor, put before the fields' names; may be empty.
        crow: int32 or int64 ``[rows/bh + 1]``, from 0 to the number of blocks, never decreasing.
        col: int32 or int64 ``[nnz_blocks]``, in ``[0, columns/bw)``, increasing within each block row.
        values: int8, float32 or bfloat16 ``[nnz_blocks, bh, bw]``, finite.
        shape: ``(rows, columns)`` of the dense matrix, multiples of the block.

    Raises:
        TypeError: something is no dense tensor or has the wrong dtype.
        ValueError: a shape, an index or a value is wrong; index errors name the block row.

    Example:
        >>> validate_block_csr("pack", "fc1", torch.tensor([0, 1]), torch.tensor([2]), torch.ones(1, 4, 4), (4, 16))
        (tensor([0, 1], dtype=torch.int32), tensor([2], dtype=torch.int32))
    """
    prefix = f"{name}." if name else ""
    check_tensor(function, f"{prefix}values", values)
    _check_kind(function, f"{prefix}values", values, _VALUES, 3, values.device)
    _check_kind(function, f"{prefix}crow", crow, _INDICES, 1, values.device)
    _check_kind(function, f"{prefix}col", col, _INDICES, 1, values.device)
    at = f"{function}: `{prefix}"
    if not _is_sizes(shape, 2):
        raise ValueError(f"{at}shape` must be two integers (rows, columns) from 1 to {_INT32_MAX}, got {shape!r:.80}")
    nnz, height, width = values.shape
    if col.numel() != nnz or nnz > _INT32_MAX or not height or not width:
        raise ValueError(
            f"{at}values` has shape {list(values.shape)}, expected [{col.numel()}, bh, bw]: one block, not empty, for "
            f"each element of `col`, at most {_INT32_MAX}; {_REBUILD}"
        )
    if shape[0] % height or shape[1] % width:
        raise ValueError(
            f"{at}shape` {tuple(shape)} is no multiple of the block {(height, width)}; choose a block that divides it"
        )
    _check_crow(f"{at}crow`", crow, nnz, shape[0] // height)
    _check_col(f"{at}col`", crow, col, shape[1] // width)
    if values.is_floating_point():
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            block = _first(~finite.flatten(1).all(dim=1))
            row = _block_row(crow, block)
            raise ValueError(f"{at}values` holds NaN or infinity in block row {row}; repair the model first")
    return crow.to(torch.int32), col.to(torch.int32)


@dataclass(frozen=True, eq=False)
class BlockCSR:
    """A block-sparse matrix, validated when made; contiguous tensors are shared, so packers validate once more.

    Attributes:
        crow: int32 ``[rows/bh + 1]``: block row ``r`` owns the blocks ``crow[r]`` to ``crow[r + 1]``.
        col: int32 ``[nnz_blocks]``: the block column of each block, increasing within a block row.
        values: int8, float32 or bfloat16 ``[nnz_blocks, bh, bw]``; zeros inside blocks are values like others.
        shape: ``(rows, columns)`` of the dense matrix.

    Raises:
        TypeError, ValueError: as `validate_block_csr`.

    Example:
        >>> b = BlockCSR.from_dense(torch.eye(8), (4, 2))
        >>> b.col.tolist(), b.density
        ([0, 1, 2, 3], 0.5)
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        crow, col = validate_block_csr("BlockCSR", "", self.crow, self.col, self.values, self.shape)
        for field, tensor in (("crow", crow), ("col", col), ("values", self.values)):
            object.__setattr__(self, field, tensor.detach().contiguous())
        object.__setattr__(self, "shape", (self.shape[0], self.shape[1]))

    @classmethod
    def from_dense(cls, matrix: Tensor, block_size: tuple[int, int], mask: Tensor | None = None) -> BlockCSR:
        """Keep the blocks of `matrix` that hold a non-zero (-0.0 is zero), or any True of `mask`, unchanged.

        Args:
            matrix: int8, float32 or bfloat16 ``[rows, columns]``.
            block_size: ``(bh, bw)``, dividing the shape.
            mask: bool ``[rows, columns]``; blocks without a True are dropped whatever they hold.

        Raises:
            TypeError: a wrong dtype.
            ValueError: a wrong shape or block size, or NaN or infinity in a kept block.
        """
        function = "BlockCSR.from_dense"
        check_tensor(function, "matrix", matrix)
        _check_kind(function, "matrix", matrix, _VALUES, 2, matrix.device)
        if matrix.numel() == 0:
            raise ValueError(f"{function}: `matrix` must have no empty dimension, got shape {list(matrix.shape)}")
        if not _is_sizes(block_size, 2) or matrix.shape[0] % block_size[0] or matrix.shape[1] % block_size[1]:
            raise ValueError(
                f"{function}: `block_size` must be two integers (bh, bw) that divide the matrix {list(matrix.shape)}, "
                f"got {block_size!r:.80}"
            )
        if mask is not None:
            _check_kind(function, "mask", mask, (torch.bool,), 2, matrix.device)
            if mask.shape != matrix.shape:
                raise ValueError(
                    f"{function}: `mask` has shape {list(mask.shape)}, expected the matrix's {list(matrix.shape)}"
                )
        (height, width), (rows, columns) = block_size, matrix.shape
        blocks = (rows // height, height, columns // width, width)
        keep = (matrix != 0 if mask is None else mask).reshape(blocks).any(3).any(1)
        crow = torch.nn.functional.pad(keep.sum(1).cumsum(0), (1, 0))
        row, col = keep.nonzero(as_tuple=True)
        return cls(crow, col, matrix.detach().reshape(blocks)[row, :, col, :], (rows, columns))

    def to_dense(self) -> Tensor:
        """The matrix with its zeros, ``[rows, columns]`` in the values' dtype."""
        height, width = self.block_size
        rows, columns = self.shape
        grid = self.values.new_zeros((rows // height, height, columns // width, width))
        row = torch.arange(rows // height, device=self.crow.device).repeat_interleave(self.crow.diff())
        grid[row, :, self.col.long(), :] = self.values
        return grid.reshape(rows, columns)

    @property
    def block_size(self) -> tuple[int, int]:
        """``(bh, bw)``, in elements."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def nnz_blocks(self) -> int:
        """How many blocks are stored."""
        return self.values.shape[0]

    @property
    def density(self) -> float:
        """Stored blocks over all blocks, from 0 to 1."""
        return self.values.numel() / (self.shape[0] * self.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The values' dtype."""
        return self.values.dtype


def matrix_of(weight: Tensor) -> Tensor:
    """The matrix of a weight: ``[out, in/groups, kh, kw]`` becomes ``[out, kh*kw*in/groups]``, 2-D stays as it is.

    Columns are ordered (kh, kw, in), so a block of columns is neighbouring input channels at one tap wherever ``bw``
    divides the input channels.

    Raises:
        TypeError: not a tensor.
        ValueError: neither 2-D nor 4-D.

    Example:
        >>> matrix_of(torch.arange(8.0).reshape(1, 2, 2, 2)).tolist()
        [[0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]]
    """
    check_tensor("matrix_of", "weight", weight)
    if weight.dim() == 2:
        return weight
    if weight.dim() != 4:
        raise ValueError(
            f"matrix_of: `weight` must be [out, in] or [out, in/groups, kh, kw], got shape {list(weight.shape)}; "
            "reshape it first"
        )
    return weight.permute(0, 2, 3, 1).flatten(1)


def weight_of(matrix: Tensor, weight_shape: Sequence[int]) -> Tensor:
    """The weight whose `matrix_of` is `matrix`: contiguous, of shape `weight_shape`; 2-D stays as it is.

    Raises:
        TypeError: `matrix` is no tensor.
        ValueError: `weight_shape` is neither 2-D nor 4-D, or does not fit the matrix.

    Example:
        >>> w = torch.randn(8, 3, 5, 5)
        >>> torch.equal(weight_of(matrix_of(w), w.shape), w)
        True
    """
    check_tensor("weight_of", "matrix", matrix)
    shape = tuple(weight_shape)
    if not (_is_sizes(shape, 2) or _is_sizes(shape, 4)):
        raise ValueError(
            f"weight_of: `weight_shape` must be [out, in] or [out, in/groups, kh, kw], got {weight_shape!r:.80}; "
            "pass the weight's shape"
        )
    if tuple(matrix.shape) != (shape[0], math.prod(shape[1:])):
        raise ValueError(
            f"weight_of: `matrix` has shape {list(matrix.shape)}, expected {[shape[0], math.prod(shape[1:])]} for the "
            f"weight {list(shape)}; pass the shape that matrix_of got"
        )
    if len(shape) == 2:
        return matrix
    out, channels, height, width = shape
    return matrix.reshape(out, height, width, channels).permute(0, 3, 1, 2).contiguous()
