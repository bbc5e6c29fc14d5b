"""Permutations that raise the retained score, and their undoing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcompress.pruning import (
    mask_from_scores,
    mask_of,
    permutation,
    permutation_of,
    permuted,
    prune,
    pruning_of,
    restored,
)

from .models import conv_net, images, mlp, pruned_blocks, vectors


def hidden_blocks(pattern: tuple[int, int], seed: int = 0) -> Tensor:
    """A weight with perfect 4×4 blocks, hidden by shuffled inputs and outputs."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = pattern
    keep = torch.rand(8, 8, generator=generator) < 0.3
    weight = keep.repeat_interleave(rows, 0).repeat_interleave(cols, 1).float()
    weight *= 1 + torch.rand(weight.shape, generator=generator)
    return weight[torch.randperm(8 * rows, generator=generator)][:, torch.randperm(8 * cols, generator=generator)]


def test_finds_hidden_blocks() -> None:
    weight = hidden_blocks((4, 4))
    found = permutation(weight, "4x4", float((weight == 0).float().mean()), outputs=True)
    assert found.before < 0.6
    assert found.after == 1.0
    assert found.gain == found.after - found.before


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["4x4", "1x4", "4x1", "2x3"]),
    st.sampled_from([(12, 12), (24, 36), (12, 12, 3, 2)]),
    st.sampled_from([0.0, 0.5, 0.9, 0.999]),
    st.integers(0, 5),
)
def test_orders_are_permutations_and_never_lose(
    pattern: str, shape: tuple[int, ...], sparsity: float, seed: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = permutation(weight, pattern, sparsity, outputs=True, rounds=50, seed=seed)
    for order, size in ((found.input_order, shape[1]), (found.output_order, shape[0])):
        assert order is None or sorted(order.tolist()) == list(range(size))
    assert 0.0 <= found.before <= found.after <= 1.0
    there = permuted(weight, found.input_order, found.output_order)
    assert torch.equal(restored(there, found.input_order, found.output_order), weight)
    scores = there.abs().double()
    kept = scores * mask_from_scores(scores, pattern, sparsity)
    assert torch.isclose(kept.sum(), scores.sum() * found.after, rtol=1e-12)  # the same sums in another order


def test_like_channels_are_put_together_before_the_search() -> None:
    found = permutation(hidden_blocks((4, 4)), "4x4", 0.7, outputs=True, rounds=0)
    assert found.before < 0.6
    assert found.after > 0.75


def test_same_seed_same_orders() -> None:
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    a, b = (permutation(weight, "4x4", 0.8, seed=4) for _ in range(2))
    assert torch.equal(a.input_order, b.input_order)


def test_sides_that_are_one_wide_stay() -> None:
    weight = torch.randn(32, 32)
    assert permutation(weight, "4x1", 0.5).input_order is None
    assert permutation(weight, "4x1", 0.5, inputs=True, outputs=True).output_order is not None


@pytest.mark.parametrize(
    ("pattern", "shape", "message"),
    [
        ("2:4", (4, 8), "permutation: pattern '2:4' has no blocks; block patterns such as '16x4' can be permuted"),
        ("unstructured", (4, 8), "pattern 'unstructured' has no blocks"),
        ("16x4", (4, 8), "permutation: pattern 16x4 needs outputs divisible by 16, it has 4"),
    ],
)
def test_wrong_arguments(pattern: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permutation(torch.ones(shape), pattern, 0.5)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("permute", ["inputs", "outputs", "both"])
def test_prune_keeps_blocks_in_the_permuted_order(criterion: str, permute: str) -> None:
    model = mlp()
    model[0].weight.data = hidden_blocks((8, 4))
    options = {"calibration_data": vectors(), "ignore": "4"}
    pruned = prune(model, 0.7, "4x4", criterion, permute=permute, **options)
    plain = pruning_of(prune(model, 0.7, "4x4", criterion, **options))
    for name in ("0", "2"):
        inputs, outputs = permutation_of(pruned.get_submodule(name))
        assert (inputs is None) == (permute == "outputs")
        assert (outputs is None) == (permute == "inputs")
        mask = permuted(mask_of(pruned.get_submodule(name)), inputs, outputs)
        kept = mask.reshape(mask.shape[0] // 4, 4, -1, 4).sum((1, 3))
        assert set(kept.unique().tolist()) == {0, 16}
        assert int((kept == 0).sum()) == round(0.7 * kept.numel())
        decision = pruning_of(pruned)[name]
        assert decision.gain > 0
        if criterion != "sparsegpt":  # whose retained share is measured on another saliency than the search's
            assert decision.retained > plain[name].retained


def test_convolutions_and_grouped_ones() -> None:
    pruned = prune(conv_net(), 0.5, "4x4", "wanda", calibration_data=images(), permute=True, ignore=("0", "8"))
    inputs, outputs = permutation_of(pruned[3])
    assert sorted(inputs.tolist()) == list(range(32))
    assert outputs is None
    mask = permuted(mask_of(pruned[3]), inputs, None)
    kept = mask.permute(0, 2, 3, 1).reshape(16, 4, -1, 4).sum((1, 3))
    assert set(kept.unique().tolist()) == {0, 16}
    assert permutation_of(pruned[5]) == (None, None)
    assert pruning_of(pruned)["5"].gain is None
    assert pruned_blocks(pruned[5], 4, 4) == 16 * 72 // 2


def test_too_few_groups_to_swap() -> None:
    found = permutation(hidden_blocks((4, 4))[:, :4], "4x4", 0.5)
    assert found.gain == 0.0
    assert found.input_order is None


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan")])
def test_wrong_sparsity(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\), got"):
        permutation(torch.ones(8, 8), "4x4", sparsity)
