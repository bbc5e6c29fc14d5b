"""The ``sparse-bitmask`` format of compressed-tensors: one bit per element, and the non-zero values in a row.

Four tensors hold one matrix; ``<name>`` is the weight's name (``fc1.weight``), or the layer's in some releases::

    <name>.shape        int64 [2]                       rows, columns
    <name>.bitmask      uint8 [rows, ceil(columns/8)]   bit c % 8 of byte c // 8 (lowest first): element c is stored
    <name>.compressed   [nnz]                           the stored values, row after row
    <name>.row_offsets  int64 [rows]                    where each row starts in `compressed`

Source: github.com/vllm-project/compressed-tensors, compressors/sparse_compressors/sparse_bitmask.py and
utils/helpers.py (pack_bitmasks); checked against release 0.9.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fastcompress.ops.checks import check_tensor

__all__ = ["compress_bitmask", "decompress_bitmask"]

_VALUES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int8)
_INTEGERS = (torch.int64, torch.int32)
#: Values move as integers of their size: bit-exact, and float8 has no masked operations.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FIELDS = ("shape", "bitmask", "compressed", "row_offsets")
_AGAIN = "write the file again"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_BITS[tensor.element_size()])


def _check_dtype(at: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if tensor.layout != torch.strided:
        raise TypeError(f"{at} has layout {tensor.layout}, allowed: torch.strided; convert it with .to_dense()")
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{at} has dtype {got}, allowed: {names}; convert it with .to({allowed[0]})")


def compress_bitmask(dense: Tensor, name: str = "") -> dict[str, Tensor]:
    """The four tensors of `dense`, on the CPU, bit for bit what compressed-tensors writes; -0.0 counts as zero.

    Args:
        dense: float32, bfloat16, float16, float64, float8_e4m3fn or int8 ``[rows, columns]``.
        name: put before the keys: ``"fc1.weight"`` gives ``"fc1.weight.compressed"``; empty gives bare keys.

    Raises:
        TypeError: a wrong dtype.
        ValueError: not a matrix, or an empty one.

    Example:
        >>> compress_bitmask(torch.tensor([[0.0, 7.0, 0.0, 5.0]]), "w")["w.bitmask"]
        tensor([[10]], dtype=torch.uint8)
    """
    at = "compress_bitmask: `dense`"
    check_tensor("compress_bitmask", "dense", dense)
    _check_dtype(at, dense, _VALUES)
    if dense.dim() != 2 or dense.numel() == 0:
        raise ValueError(
            f"{at} must be a matrix with no empty dimension, got shape {list(dense.shape)}; flatten a convolution's "
            "weight with fastcompress.ops.block_csr.matrix_of"
        )
    dense = dense.detach().cpu()
    mask = (dense.float() if dense.dtype == torch.float8_e4m3fn else dense) != 0
    counts = mask.sum(dim=1)
    fields = {
        "shape": torch.tensor(dense.shape, dtype=torch.int64),
        "bitmask": torch.from_numpy(np.packbits(mask.numpy(), axis=1, bitorder="little")),
        "compressed": _bits(dense)[mask].view(dense.dtype),
        "row_offsets": counts.cumsum(0) - counts,
    }
    return {f"{name}.{field}" if name else field: tensor for field, tensor in fields.items()}


def decompress_bitmask(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The dense matrix behind ``<name>.compressed`` and its three companions, on the CPU, after checking all of them.

    Stored zeros are fine (2:4 masks make them). Lists may be columns (``[n, 1]``), as some revisions write them. Memory
    is bounded by what was passed, eight elements for each byte of the bitmask, whatever the numbers in it say.

    Args:
        name: as in `compress_bitmask`.
        tensors: holds the four tensors, perhaps among others.

    Raises:
        TypeError: a field is no dense tensor or has the wrong dtype; the message names it.
        ValueError: a field is missing, or shape, bits, values and offsets disagree; the message names the tensor.

    Example:
        >>> w = torch.tensor([[0.0, 7.0, 0.0, 5.0]])
        >>> decompress_bitmask("w", compress_bitmask(w, "w"))
        tensor([[0., 7., 0., 5.]])
    """
    function = "decompress_bitmask"
    keys = {field: f"{name}.{field}" if name else field for field in _FIELDS}
    at = {field: f"{function}: `{key}`" for field, key in keys.items()}
    fields: dict[str, Tensor] = {}
    allowed = {"shape": _INTEGERS, "bitmask": (torch.uint8,), "compressed": _VALUES, "row_offsets": _INTEGERS}
    for field, key in keys.items():
        if key not in tensors:
            raise ValueError(f"{at[field]} is missing; sparse-bitmask needs {', '.join(keys.values())}")
        check_tensor(function, key, tensors[key])
        _check_dtype(at[field], tensors[key], allowed[field])
        fields[field] = tensors[key].detach().cpu()
    for field in ("shape", "compressed", "row_offsets"):
        tensor = fields[field]
        if tensor.dim() != 1 and (tensor.dim() != 2 or tensor.shape[1] != 1):
            raise ValueError(f"{at[field]} must be a list, [n] or [n, 1], got shape {list(tensor.shape)}; {_AGAIN}")
        fields[field] = tensor.reshape(-1)
    rows, columns = _sizes(at["shape"], fields["shape"])
    mask = _mask(at["bitmask"], fields["bitmask"], rows, columns)
    counts = mask.sum(dim=1)
    values, offsets = fields["compressed"], fields["row_offsets"].long()
    if values.numel() != int(counts.sum()):
        raise ValueError(
            f"{at['compressed']} has {values.numel()} values, but the bitmask has {int(counts.sum())} bits; {_AGAIN}"
        )
    if offsets.numel() != rows:
        raise ValueError(f"{at['row_offsets']} has {offsets.numel()} elements, expected {rows}, one a row; {_AGAIN}")
    expected = counts.cumsum(0) - counts
    wrong = (offsets != expected).nonzero()
    if wrong.numel():
        row = int(wrong[0, 0])
        raise ValueError(
            f"{at['row_offsets']} is {int(offsets[row])} at row {row}, but {int(expected[row])} bits are set in the "
            f"rows before; {_AGAIN}"
        )
    dense = torch.zeros(rows, columns, dtype=values.dtype)
    _bits(dense).masked_scatter_(mask, _bits(values.contiguous()))
    return dense


def _sizes(at: str, shape: Tensor) -> tuple[int, int]:
    sizes = [int(size) for size in shape[:8]]
    if shape.numel() != 2 or min(sizes) < 1:
        raise ValueError(
            f"{at} must be two positive sizes (rows, columns), got {sizes}; only matrices have this format"
        )
    return sizes[0], sizes[1]


def _mask(at: str, bitmask: Tensor, rows: int, columns: int) -> Tensor:
    """The bits as bool ``[rows, columns]``: at most 8 elements for each byte that is there."""
    width = (columns + 7) // 8
    if list(bitmask.shape) != [rows, width]:
        raise ValueError(
            f"{at} has shape {list(bitmask.shape)}, expected {[rows, width]} for {rows} rows of {columns} bits; "
            f"{_AGAIN}"
        )
    array = bitmask.contiguous().numpy()
    if columns % 8:
        padded = (array[:, -1] >> (columns % 8)).nonzero()[0]
        if padded.size:
            raise ValueError(f"{at} has bits beyond column {columns - 1} in row {int(padded[0])}; {_AGAIN}")
    return torch.from_numpy(np.unpackbits(array, axis=1, count=columns, bitorder="little").view(np.bool_))
