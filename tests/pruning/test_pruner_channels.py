"""Channels are masked while the model trains, and the smaller model that remains computes the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.pruning import Pruner, PrunerConfig, mask_of, masked, pruning_of

from .models import mlp, same, snapshot, vectors

pytest.importorskip("torch_pruning", reason="needs the extra 'channels'")


class Residual(nn.Module):
    """A residual block, a depthwise convolution, an activation that is not zero at zero, flattening, two linears."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.hidden = nn.Linear(16 * 4, 24)
        self.head = nn.Linear(24, 5)
        for norm in (self.norm1, self.norm2):
            nn.init.normal_(norm.weight, 1.0, 0.2)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm1(self.first(x)))
        x = x + torch.relu(self.norm2(self.second(x)))
        x = nn.functional.adaptive_avg_pool2d(self.depthwise(x), 2).flatten(1)
        return self.head(torch.sigmoid(self.hidden(x)))


def pictures() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def config(sparsity: float = 0.5, **kwargs: Any) -> PrunerConfig:
    kwargs = {"start_step": 1, "end_step": 7, "frequency": 2, "round_to": 4} | kwargs
    return PrunerConfig(sparsity, "channel", **kwargs)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    optimizer.step()


def alive(model: nn.Module, name: str) -> int:
    """Outputs with anything left."""
    return int(mask_of(model.get_submodule(name)).flatten(1).any(dim=1).sum())


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "taylor", "random"])
def test_the_smaller_model_computes_the_same(criterion: str) -> None:
    model, x = Residual(), pictures()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=0.01)
    pruner = Pruner(model, config(criterion=criterion), optimizer, example_inputs=x)
    counts, before = [], {name: mask_of(module).clone() for name, module in masked(model).items()}
    for _ in range(9):
        train_step(model, optimizer, x)
        pruner.step()
        counts.append((alive(model, "first"), alive(model, "hidden")))
        for name, module in masked(model).items():
            assert not bool((mask_of(module) & ~before[name]).any())
            before[name] = mask_of(module).clone()
    shares = [config().sparsity_at(step) / 0.5 for step in (1, 1, 3, 3, 5, 5, 7, 7, 7)]
    assert counts == [(16 - round(8 * share), 24 - round(12 * share)) for share in shares]
    small = pruner.finish()
    assert not masked(small)
    assert masked(model)
    shapes = {name: list(module.weight.shape) for name, module in small.named_children()}
    assert shapes == {
        "first": [8, 3, 3, 3],
        "norm1": [8],
        "second": [8, 8, 3, 3],
        "norm2": [8],
        "depthwise": [8, 1, 3, 3],
        "hidden": [12, 32],
        "head": [5, 12],
    }
    model.eval(), small.eval()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    record = pruning_of(small)
    assert (record["second"].action, record["second"].pattern, record["second"].achieved) == ("pruned", "channel", 0.75)
    assert record.config["schedule"] == "cubic"


def test_magnitude_removes_the_channels_with_the_smallest_weights() -> None:
    model, x = mlp(), vectors()[0]
    weak = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:32]
    with torch.no_grad():
        model[0].weight[weak] *= 0.1
        model[2].weight[:, weak] *= 0.1
    expected = model[0].weight.detach().clone()
    pruner = Pruner(model, config(schedule="one-shot", end_step=None), example_inputs=x)
    pruner.step()
    small = pruner.finish()
    strong = sorted(set(range(64)) - set(weak.tolist()))
    assert torch.equal(small[0].weight, expected[strong])
    assert small[4].weight.shape == (10, 16)


def test_rounding_and_what_stays() -> None:
    model, x = Residual(), pictures()
    pruner = Pruner(
        model, config(0.7, ignore="hidden", round_to=8, schedule="one-shot", end_step=None), example_inputs=x
    )
    pruner.step()
    assert (alive(model, "first"), alive(model, "second"), alive(model, "depthwise")) == (8, 8, 8)
    assert bool(mask_of(model.hidden).flatten(1).any(dim=1).all())  # loses inputs, keeps outputs
    assert mask_of(model.head) is None
    assert pruning_of(model)["head"].reason == "its channels are the model's outputs"


class Attention(nn.Module):
    """Heads and LayerNorm: channels that cannot be masked first and removed later, besides those inside the MLP."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).reshape(x.shape[0], -1, 4, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.norm(x + self.out(mixed))
        return self.head(x + self.down(torch.nn.functional.gelu(self.up(x))))


def test_only_what_can_be_removed_is_pruned() -> None:
    model, x = Attention(), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    pruner = Pruner(model, config(schedule="one-shot", end_step=None), example_inputs=x)
    assert sorted(masked(model)) == ["down", "up"]
    pruner.step()
    small = pruner.finish()
    assert small.up.weight.shape == (16, 16)
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    reasons = {decision.name: decision.reason for decision in pruning_of(model) if decision.action == "kept"}
    assert reasons["head"] == "its channels are the model's outputs"
    assert "LayerNorm, which mixes them" in reasons["out"]
    assert reasons["q"] == reasons["k"]
    assert all("the model does not run without its channels" in reasons[name] for name in "qkv")


def test_resuming() -> None:
    x = pictures()
    runs = []
    for _ in range(2):
        model = Residual()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        runs.append((model, optimizer, Pruner(model, config(criterion="movement"), optimizer, example_inputs=x)))
    for step in range(8):
        if step == 4:  # the second one takes over what the first one has by then
            for mine, other in zip(runs[1], runs[0], strict=True):
                mine.load_state_dict(copy.deepcopy(other.state_dict()))
        for model, optimizer, pruner in runs[: 1 if step < 4 else 2]:
            train_step(model, optimizer, x)
            pruner.step()
    first, second = (run[2].finish().state_dict() for run in runs)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def test_what_is_stacked_on_the_masks_is_in_the_way() -> None:
    model = Residual()
    pruner = Pruner(model, config(), example_inputs=pictures())
    nn.utils.parametrize.register_parametrization(model.first, "weight", Double())
    with pytest.raises(ValueError, match=r"Pruner.finish: layer 'first' has the parametrization Double on its mask"):
        pruner.finish()
    pruner.step()  # it was not finished


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Pruner(mlp(), config()),
            ValueError,
            "example_inputs, one batch, belongs to pattern 'channel'.*missing",
        ),
        (
            lambda: Pruner(mlp(), PrunerConfig(0.5, end_step=3), example_inputs=vectors()[0]),
            ValueError,
            "belongs to pattern 'channel' and is needed there; pattern is 'unstructured', example_inputs given",
        ),
        (
            lambda: Pruner(fc.prune(mlp(), 0.5), config(), example_inputs=vectors()[0]),
            ValueError,
            "Pruner: layer '0' has the parametrization Mask, and cannot lose channels",
        ),
        (
            lambda: Pruner(nn.Linear(32, 4), config(), example_inputs=vectors()[0]),
            ValueError,
            "(?s)Pruner: Linear has no layer that can be pruned.*its channels are the model's outputs",
        ),
        (
            lambda: Pruner(mlp(), config(ignore="9"), example_inputs=vectors()[0]),
            ValueError,
            "Pruner: ignore entry '9' matches no layer that can be pruned",
        ),
        (lambda: config(targets="0"), ValueError, r"pattern 'channel' takes one sparsity .* no targets \(use ignore\)"),
        (lambda: config({"0": 0.5}), ValueError, "pattern 'channel' takes one sparsity"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_model_is_not_changed_by_looking_at_it() -> None:
    model = Residual().train()
    before = snapshot(model)
    with pytest.raises(ValueError, match="no layer that can be pruned"):
        Pruner(model, config(0.5, round_to=32), example_inputs=pictures())
    assert same(model, before)
