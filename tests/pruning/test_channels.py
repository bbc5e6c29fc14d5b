"""Structured pruning with the optional package torch-pruning."""

from __future__ import annotations

import builtins
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.pruning import apply_mask, prune, prune_channels, pruning_of
from fastcompress.pruning.channel_run import check_runs, check_ties, count_macs

from .models import conv_net, images, mlp, same, snapshot, vectors


@pytest.fixture(autouse=True)
def _needs_torch_pruning(request: pytest.FixtureRequest) -> None:
    if "missing_package" not in request.node.name:
        pytest.importorskip("torch_pruning", reason="pip install fastcompress[channels]")


class Residual(nn.Module):
    """Two branches that are added, so their channels must go together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.left(x)))
        return torch.softmax(self.head(x.mean((2, 3))), -1)


def test_layers_shrink_together() -> None:
    model = Residual().train()
    before = snapshot(model)
    small = prune_channels(model, images()[0], 0.5)
    assert same(model, before)
    assert tuple(small.stem.weight.shape) == (32, 3, 3, 3)
    assert tuple(small.left.weight.shape) == (32, 32, 3, 3)
    assert small.norm.num_features == 32
    assert tuple(small.head.weight.shape) == (10, 32)
    assert small(images()[0]).shape == (4, 10)
    assert all(module.training for module in small.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in small.parameters())
    record = pruning_of(small)
    assert (record["left"].action, record["left"].achieved) == ("pruned", 0.75)
    assert record["left"].reason == "[out, in] [64, 64] → [32, 32]"
    assert record["head"].reason == "[out, in] [10, 64] → [10, 32]"


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "random"])
@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_channels_are_rounded_and_the_model_runs(scope: str, criterion: str, ratio: float) -> None:
    small = prune_channels(
        conv_net(), images()[0], ratio, round_to=8, criterion=criterion, scope=scope, calibration_data=images()
    )
    widths = [small[index].weight.shape[0] for index in (0, 3, 4, 5)]
    assert all(width % 8 == 0 and width >= 8 for width in widths)
    assert small[8].weight.shape[0] == 16
    assert sum(widths) < 32 + 64 + 64 + 64
    assert small(images()[0]).shape == (4, 16)
    if scope == "local":
        assert widths == ([24, 48, 48, 48] if ratio == 0.3 else [8, 8, 8, 8])


def test_magnitude_keeps_the_large_channels() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[::2] *= 100
    small = prune_channels(model, vectors()[0], 0.5)
    assert torch.equal(small[0].weight, model[0].weight[::2])


def test_cost_of_half() -> None:
    model, x = mlp(), vectors()[0]
    dense = count_macs(model, x)
    assert dense == 64 * (32 * 64 + 64 * 32 + 32 * 10)
    small = prune_channels(model, x, 0.9, cost_ratio=0.5, round_to=4)
    assert 0.4 * dense < count_macs(small, x) <= 0.5 * dense
    assert [module.training for module in small] == [True] * 5


def test_any_cost_can_be_aimed_at() -> None:
    def parameters(model: nn.Module) -> float:
        return float(sum(parameter.numel() for parameter in model.parameters()))

    model = mlp()
    small = prune_channels(model, vectors()[0], 0.9, cost_ratio=0.3, cost=parameters, round_to=4)
    assert 0.2 * parameters(model) < parameters(small) <= 0.3 * parameters(model)


def test_ignored_layers_keep_their_outputs() -> None:
    small = prune_channels(mlp(), vectors()[0], 0.5, ignore="0")
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(64, 32), (16, 64), (10, 16)]
    assert pruning_of(small)["0"].reason == "in ignore"


def test_frozen_parameters_stay_frozen() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    small = prune_channels(model, vectors()[0], 0.5)
    assert [p.requires_grad for p in small.parameters()] == [False, True, True, True, True, True]


def test_random_depends_on_the_seed_only() -> None:
    weights = [prune_channels(mlp(), vectors()[0], 0.5, criterion="random", seed=s)[0].weight for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    model = mlp()
    state = torch.get_rng_state()
    prune_channels(model, vectors()[0], 0.5, criterion="random", seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_of_taylor_are_not_left_behind() -> None:
    model = mlp()
    before = snapshot(model)
    small = prune_channels(model, vectors()[0], 0.5, criterion="taylor", calibration_data=vectors())
    assert same(model, before)
    assert all(parameter.grad is None for parameter in small.parameters())


def test_taylor_keeps_the_channels_that_matter_to_the_loss() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[:, ::2] = 0.0  # nothing reads these outputs of the first layer,
        model[0].weight[::2] *= 100  # however large they are
    small = prune_channels(model, vectors()[0], 0.5, criterion="taylor", calibration_data=vectors(), ignore="2")
    assert torch.equal(small[0].weight, model[0].weight[1::2])


def test_nothing_is_left_in_the_package() -> None:
    """Its default arguments are dicts, which would keep every model pruned so far alive."""
    tp = pytest.importorskip("torch_pruning")
    prune_channels(conv_net(), images()[0], 0.5)
    defaults = inspect.signature(tp.pruner.BasePruner.__init__).parameters.values()
    assert not any(p.default for p in defaults if isinstance(p.default, dict))


def test_calls_do_not_affect_each_other() -> None:
    first = prune_channels(conv_net(), images()[0], 0.5)
    prune_channels(mlp(), vectors()[0], 0.5)
    again = prune_channels(conv_net(), images()[0], 0.5)
    assert [p.shape for p in first.parameters()] == [p.shape for p in again.parameters()]


def test_through_prune() -> None:
    small = prune(mlp(), 0.5, "channel", calibration_data=vectors())
    assert tuple(small[0].weight.shape) == (32, 32)
    assert pruning_of(small).config["pattern"] == "channel"


class Stubborn(nn.Module):
    """Its sizes are written into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"fc": nn.Linear(32, 64), "out": nn.Linear(64, 8)})
        self.reshape = Reshape()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["out"](self.reshape(self.inner["fc"](x)))


class Reshape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 4, 16).transpose(1, 2).reshape(-1, 64)


def test_the_module_that_stops_it_is_named() -> None:
    with pytest.raises(ValueError, match=r"prune_channels: module '.+' \(.*\) does not run any more .* in ignore="):
        prune_channels(Stubborn(), vectors()[0], 0.5)
    small = prune_channels(Stubborn(), vectors()[0], 0.5, ignore="inner.fc")
    assert tuple(small.inner["fc"].weight.shape) == (64, 32)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pruning_ratio": 1.0}, r"pruning_ratio must lie in \[0, 1\) .*, got 1.0"),
        ({"cost_ratio": 0}, r"cost_ratio must lie in \(0, 1\] .*, got 0"),
        (
            {"cost_ratio": 0.01, "pruning_ratio": 0.5},
            r"cost_ratio=0.01 cannot be reached: pruning_ratio=0.5 gives 0.\d+",
        ),
        ({"round_to": 0}, "round_to must be a positive int, got 0"),
        (
            {"criterion": "wanda"},
            "prune_channels: criterion 'wanda' is unknown; valid are 'magnitude', 'taylor', 'random'",
        ),
        ({"criterion": "taylor"}, "prune_channels: criterion 'taylor' needs calibration_data"),
        ({"criterion": "taylor", "calibration_data": []}, "prune_channels: calibration_data yielded no batches"),
        ({"scope": "here"}, "prune_channels: scope 'here' is unknown"),
        ({"ignore": "nix"}, "ignore entry 'nix' matches no layer that can be pruned"),
        ({"pruning_ratio": float("nan")}, "pruning_ratio must lie in .*, got nan"),
        ({"cost_ratio": 0.5, "cost": lambda model: float("nan")}, r"cost\(model\) must return a finite .*, got nan"),
        ({"cost_ratio": 0.5, "cost": lambda model: "3 s"}, r"cost\(model\) must return a finite .*, got '3 s'"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_channels(mlp(), vectors()[0], **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "prune: pattern 'channel' follows the channels through the running model and needs calibration_data"),
        ({"calibration_data": []}, "prune: calibration_data yielded no batches"),
        ({"calibration_data": vectors(), "inplace": True}, r"takes one sparsity .* and inplace=False"),
        (
            {"calibration_data": vectors(), "targets": "0"},
            r"takes one sparsity for all layers, no targets \(use ignore\)",
        ),
    ],
)
def test_wrong_arguments_of_prune(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(mlp(), 0.5, "channel", **kwargs)


def test_masks_stand_in_the_way() -> None:
    model = mlp()
    apply_mask(model[2], torch.ones(32, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match="layer '2' carries a mask, which cannot lose channels; prune channels first"):
        prune_channels(model, vectors()[0])


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "torch_pruning":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs the package torch-pruning; pip install fastcompress\[channels\]"):
        prune_channels(mlp(), vectors()[0])


def test_functions_must_be_callable() -> None:
    with pytest.raises(TypeError, match=r"prune_channels: forward_fn must be callable as forward_fn\(model, batch\)"):
        prune_channels(mlp(), vectors()[0], forward_fn=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"prune_channels: model must be a torch\.nn\.Module, got int"):
        prune_channels(3, vectors()[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "batch", [{"input": vectors()[0]}, (vectors()[0], "label"), [vectors()[0]]], ids=["dict", "tuple", "list"]
)
def test_batches_as_everywhere(batch: Any) -> None:
    assert tuple(prune_channels(mlp(), batch, 0.5)[0].weight.shape) == (32, 32)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_ratio_of_zero_removes_nothing(scope: str) -> None:
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 4))  # 40 is no multiple of 16
    same_size = prune_channels(model, torch.ones(2, 8), 0.0, scope=scope)
    assert [p.shape for p in same_size.parameters()] == [p.shape for p in model.parameters()]
    assert pruning_of(same_size).counts() == {"kept": 2}


def test_a_model_without_layers() -> None:
    small = prune_channels(nn.ReLU(), torch.ones(2, 8), 0.5)
    assert pruning_of(small).layers == ()


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


def test_shared_weights_stay_shared_or_are_named() -> None:
    message = "prune_channels: modules 'a' and 'b' share a weight, and their channels cannot go together"
    with pytest.raises(ValueError, match=message):
        prune_channels(Shared(), vectors()[0], 0.5)
    small = prune_channels(Shared(), vectors()[0], 0.5, ignore=("a", "b"))
    assert small.a.weight is small.b.weight
    check_ties(small, Shared())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.Linear(32, 64)),
            r"layer '0' \(Linear\) has the parametrization _WeightNorm; remove it first",
        ),
        (lambda: nn.LazyLinear(64), r"layer '0' \(LazyLinear\) is lazy; run the model once first"),
    ],
)
def test_layers_that_cannot_lose_channels_are_named(layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"prune_channels: {message}"):
        prune_channels(nn.Sequential(layer(), nn.Linear(64, 8)), vectors()[0])


def test_inference_mode_is_refused() -> None:
    model = mlp()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch.inference_mode\(\) switches off"):
        prune_channels(model, vectors()[0])


def test_outputs_that_changed_are_an_error() -> None:
    message = r"the outputs changed from \[\[64, 8\]\] to \[\[64, 4\]\]; pass the layers that make them in ignore="
    with pytest.raises(ValueError, match=message):
        check_runs(nn.Linear(32, 4), nn.Linear(32, 8), vectors()[0], None)


def test_cost_of_a_grouped_convolution() -> None:
    assert count_macs(nn.Conv2d(8, 4, 3, groups=2, bias=False), torch.ones(1, 8, 4, 4)) == 4 * 2 * 2 * (4 * 9)
