"""Masks from scores: exact counts, whole blocks, the best ones, ties, and hostile arguments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcompress.pruning import as_matrix, mask_from_scores, parse_pattern
from fastcompress.pruning.selection import block_scores, lowest, pruned_count

_SPARSITIES = st.floats(0.0, 0.999)


@st.composite
def scores_and_block(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    rows, cols = draw(st.sampled_from([(16, 4), (4, 4), (1, 4), (4, 1), (16, 1), (1, 1), (3, 2)]))
    out, inputs = rows * draw(st.integers(1, 3)), cols * draw(st.integers(1, 4))
    taps = draw(st.sampled_from([(), (1, 1), (3, 2)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    # Few distinct values, so that ties are common.
    levels = draw(st.sampled_from([1, 3, 10_000]))
    return torch.randint(levels, (out, inputs, *taps), generator=generator).float(), rows, cols


@settings(deadline=None)
@given(scores_and_block(), _SPARSITIES)
def test_blocks_exact_count_and_best_kept(case: tuple[torch.Tensor, int, int], sparsity: float) -> None:
    scores, rows, cols = case
    mask = mask_from_scores(scores, f"{rows}x{cols}", sparsity)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    sums = block_scores(scores, parse_pattern(f"{rows}x{cols}"))
    kept = as_matrix(mask).reshape(sums.shape[0], rows, sums.shape[1], cols).sum(dim=(1, 3))
    assert set(kept.unique().tolist()) <= {0, rows * cols}
    keep = kept > 0
    assert int((~keep).sum()) == round(sparsity * sums.numel())
    if bool(keep.any()) and bool((~keep).any()):
        assert sums[keep].min() >= sums[~keep].max()
        # Among equals the first are pruned: no kept block stands before an equal pruned one.
        edge = sums[~keep].max()
        flags = keep.flatten()[sums.flatten() == edge].int()
        assert torch.equal(flags, flags.sort().values)


@settings(deadline=None)
@given(st.sampled_from([(1, 2), (2, 4), (4, 8), (1, 4), (3, 4)]), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_nm_keeps_the_best_n_of_every_m(nm: tuple[int, int], groups: int, conv: bool, seed: int) -> None:
    n, m = nm
    shape = (3, m * groups, 2, 2) if conv else (3, m * groups)
    scores = torch.randint(4, shape, generator=torch.Generator().manual_seed(seed)).float()
    mask = mask_from_scores(scores, f"{n}:{m}", 1 - n / m)
    kept, flat = as_matrix(mask).reshape(-1, m), as_matrix(scores).reshape(-1, m)
    assert bool((kept.sum(dim=1) == n).all())
    for row, values in zip(kept, flat, strict=True):
        assert values[row].min() >= values[~row].max()


def test_convolution_blocks_lie_in_one_tap() -> None:
    scores = torch.ones(4, 4, 2, 2)
    scores[:, :, 1, 0] = 2.0
    mask = mask_from_scores(scores, "4x4", 0.75)
    assert bool(mask[:, :, 1, 0].all())
    assert int(mask.sum()) == 16


def test_ties_prune_the_first() -> None:
    assert mask_from_scores(torch.ones(1, 5), "unstructured", 0.4).tolist() == [[False, False, True, True, True]]
    assert mask_from_scores(torch.ones(1, 4), "2:4", 0.5).tolist() == [[False, False, True, True]]


def test_rounding_of_the_count() -> None:
    pattern = parse_pattern("unstructured")
    assert [pruned_count(s, 10, pattern) for s in (0.0, 0.04, 0.06, 0.5, 0.999)] == [0, 0, 1, 5, 10]
    assert pruned_count(0.67, 9, parse_pattern("1:3")) == 6


def test_infinite_scores_are_ranked() -> None:
    assert lowest(torch.tensor([torch.inf, 1.0, 2.0]), 2).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("scores", "pattern", "sparsity", "message"),
    [
        (torch.ones(4, 6), "4x4", 0.5, r"mask_from_scores: pattern 4x4 needs input .* scores have shape \[4, 6\]"),
        (torch.ones(4, 8), "4x4", 1.0, r"sparsity must lie in \[0, 1\), got 1.0"),
        (torch.ones(4, 8), "4x4", -0.1, r"sparsity must lie in \[0, 1\), got -0.1"),
        (torch.ones(4, 8), "4x4", float("nan"), r"sparsity must lie in \[0, 1\), got nan"),
        (torch.ones(4, 8), "2:4", 0.9, "pattern '2:4' always has sparsity 0.5, got 0.9; pass sparsity=0.5"),
        (torch.full((4, 8), torch.nan), "4x4", 0.5, "scores hold NaN"),
        (torch.full((4, 8), torch.nan), "2:4", 0.5, "scores hold NaN"),
        (torch.ones(4, 8), "channel", 0.5, "removes whole channels"),
    ],
)
def test_hostile_arguments(scores: torch.Tensor, pattern: str, sparsity: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_from_scores(scores, pattern, sparsity)
