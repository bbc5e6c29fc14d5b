"""The margins of the quantization tests, with their reasons; everything else here is compared exactly."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MSE_OPTIMUM", "assert_same_function"]

#: The MSE searches look at some hundred ranges, a brute-force grid at thousands of others: the best errors of the two
#: differ by what the error varies between neighbouring candidates. Clipping at a wrong place costs tens of per cent.
MSE_OPTIMUM = 1.01


def assert_same_function(got: Tensor, want: Tensor) -> None:
    """Two float64 networks that are equal in exact arithmetic.

    Each output is a sum of at most some hundred products over a few layers: an error of 2^-53 * 1000 of the largest
    value is generous, and rewriting a weight wrongly costs at least 2^-24 (a float32 rounding somewhere) of it.
    """
    assert got.dtype == want.dtype == torch.float64
    assert got.shape == want.shape
    assert float((got - want).detach().abs().max()) <= 1000 * 2.0**-53 * float(want.detach().abs().max())
