"""The grid: bounds, tails, the arithmetic of the layer, round to nearest against NumPy, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastcompress.ops import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical
from fastcompress.quantization.groupwise import GroupGrid, hqq, rtn

from . import oracle
from .problems import normal

#: Outputs, inputs, group size: tails, groups larger than rows, whole rows.
SHAPES = [(5, 64, 32), (3, 70, 32), (4, 31, 8), (2, 100, 128), (6, 96, None), (1, 1, 8), (7, 13, None)]


@pytest.mark.parametrize(("out", "inputs", "size"), SHAPES)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
def test_round_to_nearest_is_numpy(out: int, inputs: int, size: int | None, bits: int, symmetric: bool) -> None:
    weight = normal(out, inputs) * 0.1
    found = rtn(weight, GroupGrid(bits, size, symmetric))
    values, dequantized = oracle.rtn(weight.numpy(), min(size or inputs, inputs), bits, symmetric)
    np.testing.assert_array_equal(found.values.numpy(), values)
    np.testing.assert_array_equal(found.dequantize().numpy(), dequantized)


@pytest.mark.parametrize(("out", "inputs", "size"), SHAPES)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["symmetric", "zero point", "minimum", "eight"])
def test_the_canonical_form_is_the_same_weight(
    out: int, inputs: int, size: int | None, scale_dtype: torch.dtype, kind: str
) -> None:
    grid = GroupGrid(8 if kind == "eight" else 4, size, kind in ("symmetric", "eight"), scale_dtype)
    weight, bias = normal(out, inputs), normal(out, seed=1)
    found = hqq(weight, grid) if kind == "minimum" else rtn(weight, grid, search="mse")
    c = found.canonical(bias, "float", "relu")
    assert torch.equal(c.dequantize(), found.dequantize())
    assert isinstance(c, W8Canonical if kind == "eight" else W4Canonical)
    assert (c.input_mode, c.activation, c.weight_scale.dtype) == ("float", "relu", scale_dtype)
    assert c.bias is not None
    assert torch.equal(c.bias, bias)
    if isinstance(c, W4Canonical):
        assert (c.weight_zero_point is not None) == (kind == "zero point")
        assert (c.weight_min is not None) == (kind == "minimum")


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_search_is_never_worse_in_any_group(symmetric: bool) -> None:
    weight = normal(40, 128) ** 3
    grid = GroupGrid(4, 32, symmetric)
    errors = [
        (rtn(weight, grid, search=search).dequantize() - weight).view(40, 4, 32).square().sum(-1)
        for search in ("minmax", "mse")
    ]
    assert bool((errors[1] <= errors[0]).all())
    assert float((errors[1] < errors[0]).float().mean()) > 0.5


def test_a_group_with_one_far_value_gets_a_scale_of_its_sign() -> None:
    weight = torch.full((1, 8), 0.25)
    weight[0, 3] = 8.0  # -8 steps of -1, while +8 does not exist
    found = rtn(weight, GroupGrid(4, 8), search="mse")
    assert float(found.params.scale) < 0.0
    assert float(found.dequantize()[0, 3]) == pytest.approx(8.0, abs=0.25)


def test_zero_groups_and_extremes_survive() -> None:
    weight = torch.zeros(3, 24)
    weight[1] = torch.finfo(torch.float32).tiny
    weight[2, :8] = 6e4
    for symmetric in (True, False):
        for scale_dtype in (torch.float32, torch.bfloat16, torch.float16):
            for make in (rtn, hqq):
                back = make(weight, GroupGrid(4, 8, symmetric, scale_dtype)).dequantize()
                assert bool(torch.isfinite(back).all())
                assert bool((back[0] == 0).all())
                assert bool((back[2, 8:] == 0).all())
                assert torch.allclose(back[2, :8], weight[2, :8], rtol=0.07)  # half of one of 7.5 steps


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"bits": 3}, ValueError, "bits must be 4 or 8"),
        ({"group_size": 12}, ValueError, "multiple of 8"),
        ({"group_size": 0}, ValueError, "multiple of 8"),
        ({"group_size": True}, ValueError, "multiple of 8"),
        ({"bits": 8, "symmetric": False}, ValueError, "symmetric only"),
        ({"scale_dtype": torch.float64}, TypeError, "scale_dtype"),
    ],
)
def test_grids_that_do_not_exist(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        GroupGrid(**arguments)


@pytest.mark.parametrize("make", [rtn, hqq])
def test_weights_that_cannot_be_quantized(make: Any) -> None:
    grid = GroupGrid()
    with pytest.raises(TypeError, match="floating point"):
        make(torch.ones(2, 8, dtype=torch.int32), grid)
    with pytest.raises(ValueError, match=r"\[out, in\]"):
        make(torch.ones(2, 8, 1, 1), grid)
    for bad in (float("nan"), float("inf")):
        weight = normal(4, 16)
        weight[2, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            make(weight, grid)
    with pytest.raises(ValueError, match="search must be"):
        rtn(normal(2, 8), grid, search="output")
    with pytest.raises(ValueError, match="p must lie"):
        hqq(normal(2, 8), grid, p=0.0)
