"""Whole models through `prune`: exact sparsity for every criterion and pattern, state, data."""

from __future__ import annotations

import pytest
import torch

from fastcompress.pruning import CRITERIA, as_matrix, mask_of, masked, prune, pruning_of, sparsity_of

from .models import conv_net, images, mlp, pruned_blocks, vectors

BLOCKS = [("unstructured", 1, 1), ("16x4", 16, 4), ("1x4", 1, 4), ("16x1", 16, 1), ("8x2", 8, 2)]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("pattern", "rows", "cols"), BLOCKS)
def test_exact_sparsity(criterion: str, pattern: str, rows: int, cols: int) -> None:
    model = conv_net()
    pruned = prune(model, 0.7, pattern, criterion, calibration_data=images(), ignore="0")
    expected = {"3": 64 * 32 * 9, "5": 64 * 32 * 9, "8": 16 * 64}
    if criterion == "sparsegpt":
        del expected["5"]  # grouped
    assert list(masked(pruned)) == list(expected)
    for name, elems in expected.items():
        blocks = elems // (rows * cols)
        assert pruned_blocks(pruned.get_submodule(name), rows, cols) == round(0.7 * blocks)
        decision = pruning_of(pruned)[name]
        assert decision.achieved == sparsity_of(pruned.get_submodule(name)) == round(0.7 * blocks) / blocks
        assert decision.asked == 0.7
        assert 0.3 <= decision.retained <= 1.0 if criterion != "random" else 0.0 < decision.retained < 1.0
    assert not masked(model)
    assert pruning_of(model) is None


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nm(criterion: str) -> None:
    pruned = prune(conv_net(), 0.5, "2:4", criterion, calibration_data=images(), ignore="0")
    for module in masked(pruned).values():
        assert bool((as_matrix(mask_of(module)).reshape(-1, 4).sum(1) == 2).all())
    assert len(masked(pruned)) == (2 if criterion == "sparsegpt" else 3)


def test_magnitude_keeps_the_largest() -> None:
    pruned = prune(mlp(), 0.75)
    layer = pruned[0]
    weight, mask = layer.parametrizations.weight.original.detach().abs(), mask_of(layer)
    assert weight[mask].min() >= weight[~mask].max()
    decision = pruning_of(pruned)["0"]
    assert decision.retained == float(weight.double()[mask].sum()) / float(weight.double().sum())


def test_only_sparsegpt_changes_weights() -> None:
    model = mlp()
    for criterion in CRITERIA:
        pruned = prune(model, 0.5, "4x4", criterion, calibration_data=vectors(), ignore="4")
        kept = mask_of(pruned[0])
        assert torch.equal(pruned[0].weight[kept], model[0].weight[kept]) == (criterion != "sparsegpt")


def test_random_depends_on_the_seed_only() -> None:
    masks = [mask_of(prune(mlp(), 0.5, criterion="random", seed=seed)[0]) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_global_random_state_stays() -> None:
    model = mlp()
    before = torch.get_rng_state()
    prune(model, 0.5, "4x4", "random", permute=True, ignore="4")
    assert torch.equal(torch.get_rng_state(), before)


def test_global_scope() -> None:
    model = mlp()
    model[2].weight.data *= 1000  # normalised away
    wide = torch.rand(model[0].weight.shape, generator=torch.Generator().manual_seed(0))
    model[0].weight.data = wide**8  # most of it hardly matters
    pruned = prune(model, 0.5, "2x2", scope="global")
    blocks = {"0": (16 * 32, 2), "2": (16 * 32, 2), "4": (5 * 16, 2)}
    counts = {name: pruned_blocks(pruned.get_submodule(name), 2, 2) for name in blocks}
    total = sum(blocks_ for blocks_, _ in blocks.values())
    assert sum(counts.values()) == round(0.5 * total)
    assert counts["0"] > 0.55 * 512 > counts["2"]
    assert pruning_of(pruned)["0"].reason == "magnitude, global"


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_global_scope_compares_scores_over_their_mean(criterion: str) -> None:
    model, large = mlp(), mlp()
    large[4].weight.data *= 1024.0  # a power of two, so that nothing is rounded
    pruned, same = (prune(m, 0.6, "2x2", criterion, "global", vectors()) for m in (model, large))
    assert all(torch.equal(mask_of(pruned[index]), mask_of(same[index])) for index in (0, 2, 4))


def test_global_scope_never_empties_a_layer() -> None:
    model = mlp()
    model[4].weight.data.fill_(1.0)
    pruned = prune(model, 0.999, scope="global")
    assert all(int(mask_of(module).sum()) >= 1 for module in masked(pruned).values())


def test_all_zero_weights() -> None:
    model = mlp()
    model[0].weight.data.zero_()
    for scope in ("local", "global"):
        pruned = prune(model, 0.5, scope=scope)
        assert pruning_of(pruned)["0"].retained == 1.0
    assert sparsity_of(pruned[0]) == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_other_dtypes(criterion: str, dtype: torch.dtype) -> None:
    data = [batch.to(dtype) for batch in vectors(1)]
    pruned = prune(mlp().to(dtype), 0.5, "4x4", criterion, calibration_data=data, ignore="4")
    assert pruned[0].weight.dtype == dtype
    assert pruned_blocks(pruned[0], 4, 4) == 64


def test_inplace_and_modes() -> None:
    model = mlp().train()
    model[2].eval()
    pruned = prune(model, 0.5, "4x4", "wanda", calibration_data=vectors(), inplace=True)
    assert pruned is model
    assert [m.training for m in pruned] == [True, True, False, True, True]
    assert not any(m._forward_pre_hooks for m in pruned.modules())


def test_data_protocol() -> None:
    model, batches = mlp(), vectors()
    expected = mask_of(prune(model, 0.5, criterion="wanda", calibration_data=batches)[0])
    for data in (iter(batches), [(batch, "label") for batch in batches], [{"input": batch} for batch in batches]):
        assert torch.equal(mask_of(prune(model, 0.5, criterion="wanda", calibration_data=data)[0]), expected)
    by_function = prune(model, 0.5, criterion="wanda", calibration_data=range(3), forward_fn=lambda m, i: m(batches[i]))
    assert torch.equal(mask_of(by_function[0]), expected)


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - {"sparsegpt"}))
@pytest.mark.parametrize(("pattern", "rows", "cols"), [("unstructured", 1, 1), ("4x4", 4, 4)])
def test_global_sparsity_is_exact(criterion: str, pattern: str, rows: int, cols: int) -> None:
    pruned = prune(conv_net(), 0.6, pattern, criterion, "global", images(), ignore=("0", "4"))
    layers = masked(pruned)
    assert list(layers) == ["3", "5", "8"]
    total = sum(module.weight.numel() for module in layers.values()) // (rows * cols)
    assert sum(pruned_blocks(module, rows, cols) for module in layers.values()) == round(0.6 * total)


def test_the_output_is_that_of_the_zeroed_weights() -> None:
    model, x = conv_net().eval(), images()[0]
    pruned = prune(model, 0.5, "4x4", "taylor", calibration_data=images(), ignore="0")
    with torch.no_grad():
        for name, module in masked(pruned).items():
            model.get_submodule(name).weight *= mask_of(module)
        assert torch.equal(pruned(x), model(x))
