"""SparseGPT: the Hessian, exact counts, and outputs that change less than with magnitude."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.pruning import Hessian, as_matrix, mask_from_scores, parse_pattern, prune, pruning_of, sparsegpt
from fastcompress.pruning import evidence as evidence_module
from fastcompress.pruning.selection import block_scores
from fastcompress.pruning.sparsegpt import inverse_factor

from .models import mlp, vectors


def correlated(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(columns, columns, generator=generator) @ torch.diag(torch.logspace(0, -1.5, columns))
    mix = mix @ torch.randn(columns, columns, generator=generator) / columns + 0.02 * torch.eye(columns)
    return torch.randn(rows, columns, generator=generator) @ mix


def error(x: Tensor, weight: Tensor, pruned: Tensor) -> float:
    """Squared output error over the squared output."""
    return float((x @ (weight - pruned).T).square().sum() / (x @ weight.T).square().sum())


CASES = [(pattern, s) for pattern in ("unstructured", "16x4", "4x4", "1x4", "4x1", "16x1") for s in (0.5, 0.8)]


@pytest.mark.parametrize(("pattern", "sparsity"), [*CASES, ("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75)])
def test_beats_magnitude_on_correlated_inputs(pattern: str, sparsity: float) -> None:
    parsed = parse_pattern(pattern)
    torch.manual_seed(0)
    weight, x = torch.randn(64, 160), correlated(512, 160)
    found = sparsegpt(weight, x.T @ x, pattern, sparsity)
    naive = mask_from_scores(weight.abs(), pattern, sparsity)
    assert error(x, weight, found.weight) < error(x, weight, weight * naive)
    # The update itself helps, not only the choice of the mask.
    assert error(x, weight, found.weight) < error(x, weight, weight * found.mask)
    blocks = block_scores(found.mask.float(), parsed)
    assert int((found.mask == 0).sum()) == int((~naive).sum())
    assert set(blocks.unique().tolist()) <= {0.0, float(parsed.block_rows * parsed.block_cols)}
    assert bool((found.weight[~found.mask] == 0).all())


def test_nm_masks_hold_in_every_group() -> None:
    torch.manual_seed(0)
    x = correlated(256, 24)
    found = sparsegpt(torch.randn(5, 24), x.T @ x, "2:4", 0.5)
    assert bool((found.mask.reshape(-1, 4).sum(1) == 2).all())


def test_sparsity_zero_changes_nothing() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(8, 16), correlated(64, 16)
    found = sparsegpt(weight, x.T @ x, "unstructured", 0.0)
    assert torch.equal(found.weight, weight)
    assert bool(found.mask.all())


def test_an_earlier_mask_stays_pruned() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(16, 32), correlated(256, 32)
    earlier = mask_from_scores(torch.rand(16, 32), "unstructured", 0.4)
    found = sparsegpt(weight, x.T @ x, "unstructured", 0.7, mask=earlier)
    assert bool((found.weight[~earlier] == 0).all())
    assert not bool(found.mask[~earlier].any())
    assert int((~found.mask).sum()) == round(0.7 * 512)
    less = sparsegpt(weight, x.T @ x, "unstructured", 0.2, mask=earlier)
    assert torch.equal(less.mask, earlier)
    assert bool((less.weight[~earlier] == 0).all())


def test_dead_inputs_go_first_and_cost_nothing() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(8, 16), correlated(64, 16)
    x[:, 5] = 0.0
    found = sparsegpt(weight, x.T @ x, "unstructured", 8 / 128)
    assert (~found.mask).nonzero().tolist() == [[row, 5] for row in range(8)]
    assert error(x, weight, found.weight) == 0.0


def test_rank_deficient_inputs_are_dampened() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(8, 64), torch.randn(4, 64)
    found = sparsegpt(weight, x.T @ x, "unstructured", 0.5)
    assert bool(torch.isfinite(found.weight).all())
    assert error(x, weight, found.weight) < error(x, weight, weight * found.mask)


def test_dampening_is_retried() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, -0.05]))  # 0.01 of the mean is not enough, 0.1 of it is
    factor = inverse_factor(matrix)
    assert bool(torch.isfinite(factor).all())
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_factor(torch.tensor([[1.0, 1e9], [1e9, 1.0]]))


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "held NaN or infinity"), (0.0, "its inputs were zero throughout calibration")],
)
def test_useless_hessians(value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsegpt(torch.ones(2, 4), torch.full((4, 4), value), "unstructured", 0.5)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"sparsegpt: hessian has shape \[3, 3\], expected \[4, 4\]"):
        sparsegpt(torch.ones(2, 4), torch.eye(3), "unstructured", 0.5)
    with pytest.raises(ValueError, match="sparsegpt: pattern 16x4 needs outputs divisible by 16, it has 2"):
        sparsegpt(torch.ones(2, 4), torch.eye(4), "16x4", 0.5)
    with pytest.raises(TypeError, match=r"Hessian: SparseGPT does not know grouped convolutions \(it has 2 groups\)"):
        Hessian(nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(TypeError, match=r"Hessian: layer must be nn\.Linear or nn\.Conv2d, got Conv1d"):
        Hessian(nn.Conv1d(4, 4, 1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": (2, 1), "padding_mode": "reflect"},
        {"kernel_size": (1, 3), "stride": (2, 1)},
    ],
    ids=str,
)
def test_hessian_of_a_convolution(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["fastcompress.pruning.sparsegpt"], "_UNFOLDED_ELEMS", 500)  # several pieces
    generator = torch.Generator().manual_seed(3)
    conv = nn.Conv2d(3, 5, **({"kernel_size": 3} | options), bias=False)
    conv.weight.data = torch.randint(-2, 3, conv.weight.shape, generator=generator).float()
    x = torch.randint(-2, 3, (4, 3, 7, 6), generator=generator).float()
    hessian = Hessian(conv)
    hessian.update(x)
    matrix = as_matrix(conv.weight.detach())
    # y^T y = W X^T X W^T, in small integers and therefore exact.
    y = conv(x).detach().movedim(1, -1).reshape(-1, 5)
    assert torch.equal(matrix @ hessian.matrix @ matrix.T, y.T @ y)
    assert hessian.rows == y.shape[0]


def test_hessian_streams() -> None:
    hessian = Hessian(nn.Linear(3, 2))
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(2, 2, 3)
    for batch in (a, b, torch.zeros(0, 3)):
        hessian.update(batch)
    rows = torch.cat([a, b.reshape(-1, 3)])
    assert torch.equal(hessian.matrix, rows.T @ rows)
    assert hessian.rows == 5


def test_hessians_that_do_not_fit_together_take_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    once = prune(mlp(), 0.5, "4x4", "sparsegpt", calibration_data=vectors(), ignore="4")
    monkeypatch.setattr(evidence_module, "_HESSIAN_ELEMS", 1)
    calls = []
    again = prune(
        mlp(),
        0.5,
        "4x4",
        "sparsegpt",
        calibration_data=iter(vectors()),
        ignore="4",
        forward_fn=lambda model, batch: calls.append(1) or model(batch),
    )
    assert len(calls) == 2 * 3
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), again.state_dict().values(), strict=True))


def test_whole_model_beats_magnitude() -> None:
    model, x = mlp().requires_grad_(False), torch.cat(vectors())
    expected = model(x)
    for pattern in ("4x4", "2:4"):
        errors = {}
        for criterion in ("magnitude", "sparsegpt"):
            pruned = prune(model, 0.5, pattern, criterion, calibration_data=vectors(), ignore="4")
            errors[criterion] = float((pruned(x) - expected).square().sum())
            assert pruning_of(pruned).counts() == {"pruned": 2, "kept": 1}
        assert errors["sparsegpt"] < errors["magnitude"]
