"""A weight as the matrix whose columns patterns, masks and kernels speak of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["as_matrix", "from_matrix"]


def as_matrix(weight: Tensor) -> Tensor:
    """The weight as the matrix that kernels multiply with: ``[out, kh*kw*in/groups]``, columns in the order kh, kw, in.

    A linear's ``[out, in]`` stays as it is.

    Raises:
        ValueError: neither 2-D nor 4-D.

    Example:
        >>> as_matrix(torch.arange(8.0).reshape(1, 2, 2, 2)).tolist()
        [[0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]]
    """
    if weight.dim() == 2:
        return weight
    if weight.dim() != 4:
        raise ValueError(
            f"as_matrix: weight must be [out, in] or [out, in/groups, kh, kw], got shape {list(weight.shape)}"
        )
    return weight.permute(0, 2, 3, 1).flatten(1)


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight of this ``shape`` whose `as_matrix` is ``matrix``; contiguous.

    Raises:
        ValueError: the shapes do not belong together.
    """
    shape = tuple(shape)
    if len(shape) not in (2, 4) or tuple(matrix.shape) != (shape[0], math.prod(shape[1:])):
        raise ValueError(f"from_matrix: a matrix of shape {list(matrix.shape)} is no weight of shape {list(shape)}")
    if len(shape) == 2:
        return matrix.contiguous()
    out, channels, height, width = shape
    return matrix.reshape(out, height, width, channels).permute(0, 3, 1, 2).contiguous()
