"""Which layers `prune` takes, which stay dense and why: patterns that do not fit, targets, tied weights."""

from __future__ import annotations

import copy
import json
import logging
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.pruning import CRITERIA, mask_of, masked, prune, pruning_of, remove_mask, sparsity_of

from .models import conv_net, images, mlp, pruned_blocks, same, snapshot

REASONS = {
    "0": "pattern 16x4 needs input channels divisible by 4, it has 3",
    "4": "it is depthwise: each output has a single input channel",
    "5": "SparseGPT does not know grouped convolutions (it has 2 groups)",
}


def test_layers_that_do_not_fit_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fastcompress"):
        pruned = prune(conv_net(), 0.5, "16x4", "sparsegpt", calibration_data=images())
    record = pruning_of(pruned)
    assert {d.name: d.reason for d in record if d.action == "skipped"} == REASONS
    assert record.counts() == {"pruned": 2, "skipped": 3}
    assert [d.name for d in record] == ["0", "3", "4", "5", "8"]
    (message,) = [entry.getMessage() for entry in caplog.records]
    lines = "".join(f"\n  {name} (Conv2d): {REASONS[name]}" for name in ("0", "4", "5"))
    assert message == f"prune: 3 layers stay dense:{lines}"


@pytest.mark.parametrize(
    ("kwargs", "argument"), [({"targets": ["{}", "8"]}, "targets"), ({"sparsity": {"{}": 0.5, "8": 0.5}}, "sparsity")]
)
@pytest.mark.parametrize("name", list(REASONS))
def test_naming_such_a_layer_is_an_error(name: str, kwargs: dict[str, Any], argument: str) -> None:
    kwargs = json.loads(json.dumps(kwargs).replace("{}", name))
    options = {"sparsity": 0.5, "pattern": "16x4", "criterion": "sparsegpt", "calibration_data": images()} | kwargs
    model = conv_net()
    before = snapshot(model)
    message = f"prune: layer '{name}' (Conv2d) is named in {argument} but cannot be pruned: {REASONS[name]}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        prune(model, inplace=True, **options)
    assert same(model, before)


def test_patterns_classes_and_containers_are_no_exact_names() -> None:
    for targets in ("re:[04]", nn.Conv2d):
        assert "0" in {d.name for d in pruning_of(prune(conv_net(), 0.5, "16x4", targets=targets)) if d.reason}


def test_a_grouped_convolution_whose_pattern_fits() -> None:
    pruned = prune(conv_net(), 0.5, "16x4", targets="5")
    assert pruned_blocks(pruned[5], 16, 4) == 4 * 72 // 2
    reason = "pattern 64x4 needs outputs per group divisible by 64, it has 32 in each of 2 groups"
    assert pruning_of(prune(conv_net(), 0.5, "64x4"))["5"].reason == reason


def test_targets_and_ignore() -> None:
    record = pruning_of(prune(mlp(), 0.5, targets=nn.Linear, ignore=("0", "re:4")))
    assert {d.name: (d.action, d.reason) for d in record} == {
        "0": ("kept", "ignored by '0'"),
        "2": ("pruned", "magnitude, local"),
        "4": ("kept", "ignored by 're:4'"),
    }
    assert pruning_of(prune(mlp(), 0.5, targets="2"))["0"].reason == "not among the targets"


def test_sparsity_per_layer() -> None:
    pruned = prune(mlp(), {"0": 0.25, nn.Linear: 0.5, "re:4": 0})
    record = pruning_of(pruned)
    assert [(d.name, d.action, d.asked) for d in record] == [
        ("0", "pruned", 0.25),  # its own name is stronger than a class that comes later
        ("2", "pruned", 0.5),
        ("4", "kept", 0.0),
    ]
    assert record["4"].reason == "the sparsity asked for is 0"
    assert sparsity_of(pruned[0]) == 0.25
    assert pruning_of(prune(mlp(), {"0": 0.5}))["2"].reason == "no key of sparsity matches it"


class Tied(nn.Module):
    """Two linears with one weight, and a head tied to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight
        self.alias = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.alias(self.a(self.embedding(x)))))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_tied_weights(criterion: str) -> None:
    model = Tied()
    tokens = torch.randint(16, (4, 8), generator=torch.Generator().manual_seed(0))
    pruned = prune(model, 0.5, "4x4", criterion, calibration_data=tokens)
    assert torch.equal(mask_of(pruned.a), mask_of(pruned.b))
    assert pruned.a.parametrizations.weight.original is pruned.b.parametrizations.weight.original
    assert pruned.alias is pruned.a
    assert pruned_blocks(pruned.a, 4, 4) == 2
    record = pruning_of(pruned)
    assert record["b"].reason == f"{criterion}, local; shares its weight and mask with a"
    assert record["head"].reason == "its weight is tied to embedding (Embedding), which is not pruned with it"
    assert pruned.head.weight is pruned.embedding.weight
    again = prune(pruned, 0.75, "4x4", criterion, calibration_data=tokens)
    assert pruned_blocks(again.b, 4, 4) == 3


def test_tied_weights_that_are_asked_for_differently() -> None:
    reason = "its weight is shared by a and b, for which sparsities 0.5 and 0.75 are asked"
    assert pruning_of(prune(Tied(), {"re:a": 0.5, "re:b": 0.75}))["b"].reason == reason
    reason = "its weight is tied to b (Linear), which is not pruned with it"
    assert pruning_of(prune(Tied(), 0.5, ignore="b"))["a"].reason == reason


def test_wanda_of_tied_weights_adds_their_inputs() -> None:
    model = Tied()
    seen: dict[str, list[Tensor]] = {"a": [], "b": []}
    hooks = [
        module.register_forward_pre_hook(lambda m, args, n=name: seen[n].append(args[0].detach()))
        for name, module in (("a", model.a), ("b", model.b))
    ]
    tokens = torch.arange(8).reshape(2, 4)
    model(tokens)
    for hook in hooks:
        hook.remove()
    rows = torch.cat([x.reshape(-1, 8) for name in seen for x in seen[name]])
    scores = model.a.weight.detach().abs() * rows.norm(dim=0)
    kept = mask_of(prune(model, 0.5, criterion="wanda", calibration_data=tokens).a)
    assert scores[kept].min() >= scores[~kept].max()


def test_what_cannot_be_pruned() -> None:
    model = nn.ModuleDict(
        {
            "lazy": nn.LazyLinear(4),
            "broken": nn.Linear(4, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "float64": nn.Linear(4, 4).double(),
            "embedding": nn.Embedding(4, 4),
            "meta": nn.Linear(4, 4, device="meta"),
        }
    )
    model["integers"] = nn.Linear(4, 4).requires_grad_(False)
    model["integers"].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    model["list"] = nn.Linear(4, 4)
    del model["list"].weight
    model["list"].weight = [1.0]
    model["sparse"] = nn.Linear(4, 4)
    model["sparse"].weight = nn.Parameter(torch.eye(4).to_sparse())
    model["empty"] = nn.Linear(4, 4)
    model["empty"].weight = nn.Parameter(torch.zeros(0, 4))
    model["broken"].weight.data[0, 0] = torch.nan
    record = pruning_of(prune(model, 0.5, inplace=True))  # sparse tensors cannot be copied
    assert {d.name: d.reason for d in record} == {
        "lazy": "it is lazy and was never run",
        "broken": "its weight holds NaN or infinity",
        "integers": "its weight is torch.int8; supported are float32, bfloat16, float16 and float64",
        "list": "it has no weight tensor",
        "sparse": "its weight has layout torch.sparse_coo",
        "empty": "its weight is empty",
        "normed": "it has the parametrization _WeightNorm; remove it first",
        "float64": "magnitude, local",
        "meta": "its weight is on the meta device and has no values",
    }


def test_models_that_read_weights_themselves() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    pruned = prune(model, 0.5, "4x4")
    assert list(masked(pruned)) == ["self_attn.out_proj", "linear1", "linear2"]
    assert pruning_of(pruned)["linear1"].kind == "Linear"
    baked = copy.deepcopy(pruned)
    for module in list(masked(baked).values()):
        remove_mask(module)
    with torch.no_grad():
        assert torch.equal(pruned(x), baked(x))


def test_a_single_layer() -> None:
    pruned = prune(nn.Linear(8, 8), 0.5, "4x4")
    assert pruned_blocks(pruned, 4, 4) == 2
    assert pruning_of(pruned)[""].action == "pruned"


def test_a_model_without_layers() -> None:
    pruned = prune(nn.ReLU(), 0.5)
    assert pruning_of(pruned).layers == ()
    with pytest.raises(ValueError, match="prune: targets entry 'a' matches no layer that can be pruned; ReLU has none"):
        prune(nn.ReLU(), 0.5, targets="a")


def test_layers_whose_forward_is_not_called() -> None:
    """Attention reads the weight of its output projection itself, so nothing is known about its inputs."""
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    record = pruning_of(prune(model, 0.5, "4x4", "wanda", calibration_data=torch.randn(2, 5, 16)))
    assert {d.name: d.action for d in record} == {
        "self_attn.out_proj": "skipped",
        "linear1": "pruned",
        "linear2": "pruned",
    }
    assert record["self_attn.out_proj"].reason == "it was never called during calibration"


@pytest.mark.parametrize("pattern", ["16x4", "2:4", "1x3"])
def test_every_reason_names_pattern_and_size(pattern: str) -> None:
    model = nn.Sequential(nn.Linear(10, 24), nn.Conv2d(10, 24, 1), nn.Linear(24, 32))
    record = pruning_of(prune(model, 0.5, pattern))
    for name in ("0", "1"):
        assert record[name].action == "skipped"
        assert record[name].reason.startswith(f"pattern {pattern} needs ")
    assert record["2"].action == "pruned"


class Custom(nn.Linear):
    pass


def test_subclasses_count() -> None:
    model = nn.Sequential(Custom(8, 8), nn.Linear(8, 8))
    pruned = prune(model, 0.5, targets=Custom)
    assert list(masked(pruned)) == ["0"]
    assert isinstance(pruned[0], Custom)
    assert pruning_of(pruned)["0"].kind == "Custom"
