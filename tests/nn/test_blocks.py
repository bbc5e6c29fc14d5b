"""Which blocks a weight is cut into: geometry, density, and the order in which forms are tried."""

from __future__ import annotations

import re

import pytest
import torch

from fastcompress.nn.blocks import block_density, block_name, cut, forms, misfit, promising
from fastcompress.ops.packing import KERNEL_BLOCKS


def weight_of_blocks(block: tuple[int, int], density: float, rows: int = 64, columns: int = 64) -> torch.Tensor:
    """A float32 weight of which about `density` of the blocks are not zero, all elements of those are not."""
    generator = torch.Generator().manual_seed(3)
    keep = torch.rand(rows // block[0], columns // block[1], generator=generator) < density
    mask = keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return torch.where(mask, torch.rand(rows, columns, generator=generator) + 0.1, 0.0)


@pytest.mark.parametrize("dtype", KERNEL_BLOCKS)
def test_a_mask_of_blocks_is_cut_into_these_blocks_and_no_finer_ones(dtype: torch.dtype) -> None:
    for block in KERNEL_BLOCKS[dtype]:
        found = forms(weight_of_blocks(block, 0.1), dtype)
        assert found[0].block == block
        assert block_density(weight_of_blocks(block, 0.1), block) == found[0].density
    assert [form.block for form in forms(weight_of_blocks(KERNEL_BLOCKS[dtype][0], 0.1), dtype)] == [
        KERNEL_BLOCKS[dtype][0]
    ]


def test_unstructured_zeros_need_fine_blocks_and_full_weights_have_no_promising_form() -> None:
    sparse = weight_of_blocks((1, 1), 0.05)
    assert [form.block for form in forms(sparse, torch.float32)] == [(1, 1), (4, 1), (16, 1)]
    full = torch.ones(64, 64)
    assert [form.block for form in forms(full, torch.int8)] == [(16, 4)]
    assert promising(full, torch.int8, measuring=False) == []
    assert promising(full, torch.int8, measuring=True) == []
    assert len(promising(sparse, torch.float32, measuring=True)) == 2


def test_more_is_measured_than_is_believed_unmeasured() -> None:
    weight = weight_of_blocks((16, 4), 0.75, 256, 256)
    assert promising(weight, torch.int8, measuring=False) == []
    assert [form.block for form in promising(weight, torch.int8, measuring=True)] == [(16, 4)]


def test_convolutions_are_cut_along_channels_at_one_tap() -> None:
    weight = torch.zeros(16, 4, 3, 3)
    weight[:, 1, 2, 0] = 1.0
    assert block_density(weight, (16, 4)) == 1 / 9
    assert block_density(weight, (16, 1)) == 1 / 36
    blocks = cut("layer", weight, (16, 1))
    assert blocks.col.tolist() == [(2 * 3 + 0) * 4 + 1]


@pytest.mark.parametrize(
    ("shape", "groups", "dtype", "block", "message"),
    [
        ((20, 30), 1, torch.int8, (16, 4), r"its 20x30 weight cannot be cut into blocks of 16x4$"),
        ((20, 32), 1, torch.int8, (16, 4), r"blocks of 16x4 \(but of 4x4 or 1x4\)"),
        ((20, 30, 3, 3), 1, torch.int8, None, r"its 20x30x3x3 weight cannot be cut into blocks of 16x4 or 4x4 or 1x4$"),
        ((16, 4, 3, 3), 2, torch.int8, (16, 4), "it has 2 groups; block-sparse convolutions have one"),
        ((16, 4), 1, torch.float16, None, r"its weight is torch\.float16; block-sparse kernels take float32 and bf"),
        ((16, 4), 1, torch.float32, (8, 4), r"no kernel for 8x4 blocks of torch\.float32, only 16x1, 4x1, 1x1"),
        ((16, 3), 1, torch.bfloat16, None, "blocks of 16x2"),
    ],
)
def test_misfits_say_why(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, block: tuple[int, int] | None, message: str
) -> None:
    problem = misfit(shape, groups, dtype, block)
    assert problem is not None
    assert re.search(message, problem)


def test_what_fits_has_no_misfit() -> None:
    assert misfit((5, 7), 1, torch.float32) is None
    assert misfit((5, 8), 1, torch.int8, (1, 4)) is None
    assert forms(torch.zeros(16, 4), torch.float16) == []
    assert block_name((16, 4)) == "16x4"


def test_nan_is_refused_by_the_layer_s_name() -> None:
    with pytest.raises(ValueError, match="SparseLinear: `weight` holds NaN or infinity; repair the model"):
        cut("SparseLinear", torch.full((16, 4), float("nan")), (16, 1))
