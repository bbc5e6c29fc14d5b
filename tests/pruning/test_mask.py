"""Masks as parametrizations: they hold through training, state_dict, deepcopy and torch.compile."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fastcompress.pruning import apply_mask, mask_of, masked, permutation_of, prune, remove_mask, sparsity_of
from fastcompress.pruning.mask import lift_mask, original_weight

from .models import mlp, vectors


def half(rows: int = 4, cols: int = 8) -> torch.Tensor:
    return torch.arange(rows * cols).reshape(rows, cols) % 2 == 0


def test_a_masked_layer() -> None:
    layer = nn.Linear(8, 4)
    dense = layer.weight
    apply_mask(layer, half())
    assert torch.equal(layer.weight, torch.where(half(), dense, 0.0))
    assert original_weight(layer) is dense
    assert torch.equal(mask_of(layer), half())
    assert sparsity_of(layer) == 0.5
    assert permutation_of(layer) == (None, None)
    assert sorted(layer.state_dict()) == ["bias", "parametrizations.weight.0.mask", "parametrizations.weight.original"]


def test_an_unmasked_layer() -> None:
    layer = nn.Linear(8, 4)
    assert mask_of(layer) is None
    assert mask_of(nn.ReLU()) is None
    assert permutation_of(layer) == (None, None)
    remove_mask(layer)  # nothing to remove
    assert type(layer) is nn.Linear


def test_masked_infinities_and_negative_weights_are_plain_zero() -> None:
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[torch.inf, -1.0]])
    apply_mask(layer, torch.zeros(1, 2, dtype=torch.bool))
    assert layer.weight.tolist() == [[0.0, 0.0]]
    assert not bool(torch.signbit(layer.weight).any())


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for batch in vectors():
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("pattern", ["4x4", "2:4", "unstructured"])
def test_masks_hold_through_training(name: str, pattern: str) -> None:
    """Also when momentum has gathered on weights that are pruned later, which goes on moving what is underneath."""
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    prune(model, 0.5, pattern, ignore="4", inplace=True)
    before = {name: module.weight.detach().clone() for name, module in masked(model).items()}
    assert list(before) == ["0", "2"]
    underneath = {id(p) for group in optimizer.param_groups for p in group["params"]}
    train(model, optimizer)
    for name, module in masked(model).items():
        mask = mask_of(module)
        assert id(original_weight(module)) in underneath
        assert bool((module.weight[~mask] == 0).all())
        assert float((module.weight[mask] != before[name][mask]).float().mean()) > 0.9  # a ReLU may have died
        assert bool((original_weight(module).grad[~mask] == 0).all())


def test_deepcopies_are_independent() -> None:
    model = prune(mlp(), 0.5)
    twin = copy.deepcopy(model)
    x = vectors()[0]
    expected = model(x)
    assert torch.equal(twin(x), expected)
    remove_mask(twin[0])
    apply_mask(twin[2], torch.zeros(32, 64, dtype=torch.bool))
    assert type(twin[0]) is nn.Linear
    assert sparsity_of(twin[2]) == 1.0
    assert torch.equal(model(x), expected)
    assert sparsity_of(model[0]) == sparsity_of(model[2]) == 0.5


def test_state_dict_round_trip(tmp_path: Path) -> None:
    source = prune(mlp(), 0.5, "4x4", ignore="4")
    target = prune(mlp(), 0.75, "4x4", "random", seed=3, ignore="4")
    assert not torch.equal(mask_of(source[0]), mask_of(target[0]))
    torch.save(source.state_dict(), tmp_path / "pruned.pt")
    target.load_state_dict(torch.load(tmp_path / "pruned.pt", weights_only=True))
    assert torch.equal(mask_of(source[0]), mask_of(target[0]))
    assert mask_of(target[0]).dtype == torch.bool
    x = vectors()[0]
    assert torch.equal(source(x), target(x))


def test_a_masked_state_dict_does_not_go_into_a_dense_model() -> None:
    with pytest.raises(RuntimeError, match=r"Unexpected key.*parametrizations\.weight\.0\.mask"):
        mlp().load_state_dict(prune(mlp(), 0.5).state_dict())


def test_state_dict_keeps_the_permutation() -> None:
    model = prune(mlp(), 0.5, "4x4", permute="both", ignore="4")
    inputs, outputs = permutation_of(model[0])
    assert sorted(inputs.tolist()) == list(range(32))
    assert sorted(outputs.tolist()) == list(range(64))
    assert "0.parametrizations.weight.0.input_order" in model.state_dict()
    twin = permutation_of(copy.deepcopy(model)[0])
    assert torch.equal(twin[0], inputs)
    assert torch.equal(twin[1], outputs)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_sees_the_mask(backend: str) -> None:
    torch.compiler.reset()
    model = prune(mlp(), 0.5)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = vectors()[0]
    assert torch.equal(compiled(x), model(x))
    with torch.no_grad():
        original_weight(model[0]).fill_(1.0)
    changed = model(x)
    assert torch.equal(compiled(x), changed)
    assert sparsity_of(model[0]) == 0.5
    compiled(x).sum().backward()
    assert bool((original_weight(model[0]).grad[~mask_of(model[0])] == 0).all())


def test_export_sees_the_mask() -> None:
    model, x = prune(mlp(), 0.5).eval(), vectors()[0]
    exported = torch.export.export(model, (x,)).module()
    assert torch.equal(exported(x), model(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_stays(training: bool) -> None:
    pruned = prune(mlp().train(training), 0.5)
    assert {module.training for module in pruned.modules()} == {training}


def test_orders_are_kept_and_replaced() -> None:
    layer, reverse = nn.Linear(8, 4), torch.arange(3, -1, -1)
    apply_mask(layer, half(), output_order=reverse)
    apply_mask(layer, half())  # no order: that of the earlier mask stays
    assert permutation_of(layer)[0] is None
    assert torch.equal(permutation_of(layer)[1], reverse)
    apply_mask(layer, half(), input_order=torch.arange(8))
    assert torch.equal(permutation_of(layer)[0], torch.arange(8))
    assert permutation_of(layer)[1] is None


def test_the_mask_is_copied() -> None:
    layer, mask = nn.Linear(8, 4), half()
    apply_mask(layer, mask)
    mask.fill_(True)
    assert sparsity_of(layer) == 0.5


def test_masks_combine() -> None:
    layer = nn.Linear(4, 1)
    apply_mask(layer, torch.tensor([[True, True, False, False]]))
    apply_mask(layer, torch.tensor([[True, False, True, False]]))
    assert mask_of(layer).tolist() == [[True, False, False, False]]


def test_removing_bakes_the_zeros_in() -> None:
    layer = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    parameter, names = layer.weight, list(dict(layer.named_parameters()))
    apply_mask(layer, half())
    expected = layer.weight.detach().clone()
    remove_mask(layer)
    assert type(layer) is nn.Linear
    assert not parametrize.is_parametrized(layer)
    assert layer.weight is parameter is optimizer.param_groups[0]["params"][0]
    assert torch.equal(layer.weight, expected)
    assert list(dict(layer.named_parameters())) == names
    assert mask_of(layer) is None


def test_lifting_shows_the_weight_underneath() -> None:
    layer = nn.Linear(8, 4)
    dense = layer.weight.detach().clone()
    apply_mask(layer, half())
    lift_mask(layer)
    assert torch.equal(layer.weight, dense)
    assert type(layer) is nn.Linear


def test_assigning_the_weight_keeps_the_mask() -> None:
    layer = nn.Linear(8, 4)
    apply_mask(layer, half())
    layer.weight = torch.ones(4, 8)
    assert torch.equal(layer.weight, half().float())


def test_half_precision_and_moves() -> None:
    layer = nn.Linear(8, 4)
    apply_mask(layer, half())
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert mask_of(layer).dtype == torch.bool


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            torch.ones(8, 4, dtype=torch.bool),
            ValueError,
            r"layer 'fc' \(Linear\) has shape \[8, 4\], its weight \[4, 8\]",
        ),
        (torch.ones(4, 8), TypeError, "must be a bool tensor, got float32; a float mask converts with mask != 0"),
        ([[True]], TypeError, "must be a bool tensor, got list"),
    ],
)
def test_wrong_masks(mask: Any, error: type[Exception], message: str) -> None:
    layer = nn.Linear(8, 4)
    with pytest.raises(error, match=message):
        apply_mask(layer, mask, name="fc")
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"input_order": torch.arange(4)}, r"from 0 to 7 once, got torch.int64 \[4\]"),
        ({"output_order": torch.arange(4.0)}, r"from 0 to 3 once, got torch.float32 \[4\]"),
        ({"output_order": [0, 1, 2, 3]}, "from 0 to 3 once, got list"),
        ({"output_order": torch.tensor([0, 1, 1, 3])}, "from 0 to 3 once; it repeats some and lacks others"),
        ({"output_order": torch.tensor([-1, 0, 1, 2])}, "from 0 to 3 once; it repeats some and lacks others"),
    ],
)
def test_wrong_orders(orders: dict[str, Any], message: str) -> None:
    layer = nn.Linear(8, 4)
    (argument,) = orders
    with pytest.raises(ValueError, match=rf"apply_mask: {argument} of layer 'fc' \(Linear\) must be .* {message}"):
        apply_mask(layer, half(), name="fc", **orders)
    assert type(layer) is nn.Linear


def test_lazy_layers_have_no_shape_yet() -> None:
    with pytest.raises(ValueError, match="apply_mask: LazyLinear is lazy and was never run"):
        apply_mask(nn.LazyLinear(4), half())


def test_modules_without_weight() -> None:
    with pytest.raises(TypeError, match="apply_mask: ReLU has no weight tensor"):
        apply_mask(nn.ReLU(), half())
    with pytest.raises(ValueError, match="sparsity_of: ReLU has no weight and no masked layer inside"):
        sparsity_of(nn.ReLU())


def test_other_parametrizations_are_left_alone() -> None:
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"Linear.* already has the parametrization _Orthogonal"):
        apply_mask(layer, half(8, 8))
    plain = nn.Linear(8, 8)
    apply_mask(plain, half(8, 8))
    parametrize.register_parametrization(plain, "bias", nn.Identity())
    with pytest.raises(ValueError, match="remove_mask: Linear also has the parametrization Identity"):
        remove_mask(plain)
    assert sparsity_of(plain) == 0.5


def test_sparsity_of_a_model() -> None:
    model = prune(mlp(), {"0": 0.5, "2": 0.75})
    assert sparsity_of(model) == (1024 + 1536) / 4096
