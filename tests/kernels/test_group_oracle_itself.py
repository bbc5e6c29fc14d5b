"""The oracle of weights in groups is judged first: against plain Python loops that round through `struct`."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fastcompress.ops import pack
from fastcompress.ops.canonical_w4 import unpack_nibbles
from tests import group_oracle, group_problems
from tests.kernels.group_runner import build_group_linear, group_canonical, words_of


def _f32(value: float) -> float:
    """Round a Python float to float32 through its bytes."""
    return struct.unpack("<f", struct.pack("<f", value))[0]  # type: ignore[no-any-return]


def _integers(values: list[float], largest: int) -> tuple[list[int], float]:
    """Integers of a stretch of inputs that shares a scale, and the scale."""
    scale = max(_f32(max(abs(v) for v in values) * _f32(1.0 / largest)), 2.0**-100)
    inverse = _f32(1.0 / scale)
    return [round(_f32(v * inverse)) for v in values], scale


def _join(parts: Sequence[tuple[int, ...]], weights: list[int]) -> float:
    """Sum over the inputs of a group: of bytes as they are, or of high and low ones."""
    sums = [_f32(float(sum(p[i] * w for p, w in zip(parts, weights, strict=True)))) for i in range(len(parts[0]))]
    return sums[0] if len(sums) == 1 else _f32(_f32(sums[0] * 256.0) + sums[1])


@pytest.mark.parametrize("sixteen", [False, True])
@pytest.mark.parametrize("kind", group_problems.ZERO_KINDS)
@pytest.mark.parametrize(("k", "size"), [(21, 8), (16, 8), (5, 5), (50, 24)])
def test_weighted_sums_agree_with_python_loops(k: int, size: int, kind: str, sixteen: bool) -> None:
    rng = np.random.default_rng([k, sixteen])
    m, n, groups = 4, 3, -(-k // size)
    x = (rng.standard_normal((m, k)) * 2).astype(np.float32)
    x[1] = 0
    q = rng.integers(0, 16, (n, k))
    scale = rng.standard_normal((n, groups)).astype(np.float32)
    zero = np.full((n, groups), 8) if kind == "middle" else rng.integers(0, 16, (n, groups))
    low = rng.standard_normal((n, groups)).astype(np.float32) if kind == "minimum" else None
    zero = zero if low is None else zero * 0
    got = group_oracle.weighted_sums(x, q, scale, size, zero, low, sixteen)
    starts = range(0, k, size)
    bytes_of: list[list[tuple[int, ...]]]
    for row in range(m):
        values = x[row].tolist()
        if sixteen:
            each = [_integers(values[s : s + size], 127 * 257) for s in starts]
            steps = [step for _, step in each]
            bytes_of = [[((a + 128) // 256, (a + 128) % 256 - 128) for a in integers] for integers, _ in each]
        else:
            integers, row_scale = _integers(values, 127)
            bytes_of = [[(a,) for a in integers[s : s + size]] for s in starts]
        for out in range(n):
            v = 0.0
            for g in range(groups):
                if low is None:
                    break
                of_inputs = _join(bytes_of[g], [1] * len(bytes_of[g]))
                of_inputs = _f32(of_inputs * steps[g]) if sixteen else of_inputs
                v = _f32(v + _f32(of_inputs * float(low[out, g])))
            for g, s in enumerate(starts):
                term = _f32(_join(bytes_of[g], [int(c) - int(zero[out, g]) for c in q[out, s : s + size]]))
                term = _f32(term * float(scale[out, g]))
                v = _f32(v + (_f32(term * steps[g]) if sixteen else term))
            v = v if sixteen else _f32(v * row_scale)
            assert float(got[row, out]) == v


@pytest.mark.parametrize("sixteen", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_row_that_is_not_finite_becomes_nan_and_others_stay(bad: float, sixteen: bool) -> None:
    rng = np.random.default_rng(8)
    x, q = rng.standard_normal((3, 20), dtype=np.float32), rng.integers(0, 16, (5, 20))
    scale, low = np.ones((5, 3), np.float32), np.ones((5, 3), np.float32)
    want = group_oracle.weighted_sums(x, q, scale, 8, 0, low, sixteen)
    x[1, 17] = bad
    got = group_oracle.weighted_sums(x, q, scale, 8, 0, low, sixteen)
    assert np.isnan(got[1]).all()
    assert np.array_equal(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("k", [1, 7, 8, 9, 30])
def test_words_are_the_canonical_ones(k: int) -> None:
    values = np.random.default_rng(k).integers(0, 16, (3, k), dtype=np.uint8)
    assert np.array_equal(unpack_nibbles(torch.from_numpy(words_of(values)), k).numpy(), values)


@pytest.mark.parametrize("family", group_problems.GROUP_FAMILIES)
def test_blobs_of_the_problems_are_those_of_pack(isa: str, native: Any, family: str) -> None:
    """The raw packer that the problems go through, for guard pages, and the one of layers."""
    for index in range(200):
        case = build_group_linear(group_problems.group_problems(family)(index))
        assert case.pack is not None
        assert np.array_equal(case.packed(native), pack(group_canonical(case.pack)).numpy()), case.label
