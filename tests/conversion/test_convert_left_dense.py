"""`convert`: layers that stay dense and why, models it refuses, and failures that change nothing."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import SparseLinear
from fastcompress.pruning import apply_mask, mask_of, masked
from fastcompress.record import record_of
from tests.conversion.cases import LOSES, WINS, linears, outputs, stopwatch
from tests.nn.sparse_cases import prune_blocks


def skipped(model: nn.Module, name: str, **options: Any) -> str:
    """Convert, check that the layer called `name` became dense with its zeros, and return the reason."""
    want = model.get_submodule(name).weight.detach().clone()
    done = fc.convert(model, **options)
    layer = done.get_submodule(name)
    assert mask_of(layer) is None
    assert torch.equal(layer.weight, want)
    decision = record_of(done)[name]  # type: ignore[index]
    assert decision.action == "skipped"
    assert decision.reason.endswith("its zeros are written into the dense weight")
    return decision.reason


def mask_half(module: nn.Module) -> None:
    apply_mask(module, torch.arange(module.weight.numel()).reshape(module.weight.shape) % 2 == 0)  # type: ignore


def test_layers_without_a_kernel_are_named_and_written_down(caplog: pytest.LogCaptureFixture) -> None:
    cases: list[tuple[nn.Module, str]] = [
        (nn.Linear(8, 16).half(), "float16; block-sparse kernels take float32 and bfloat16 values, cast the layer"),
        (nn.Linear(7, 16).bfloat16(), "its 16x7 weight cannot be cut into blocks of 16x2"),
        (nn.Conv2d(8, 16, 3, groups=2), "it has 2 groups"),
        (nn.Conv2d(8, 16, 3, padding=1, padding_mode="circular"), "padding_mode 'circular' is not supported"),
        (nn.Conv1d(8, 16, 3), "Conv1d has a forward of its own and no adapter"),
        (nn.Embedding(8, 16), "Embedding has a forward of its own and no adapter"),
    ]
    for layer, part in cases:
        model = nn.Sequential(layer).eval()
        mask_half(layer)
        with caplog.at_level(logging.WARNING, "fastcompress"):
            assert part in skipped(model, "0", timer=WINS)
        assert "convert: 1 masked layers stay dense:\n  0 (" in caplog.text
        caplog.clear()


def test_hooks_and_unused_layers_stay_dense() -> None:
    model = linears()
    model[0].register_forward_hook(lambda *_: None)
    assert "it has hooks" in skipped(fc.prune(model, 0.75, "16x1"), "0", timer=WINS)

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    pruned = fc.prune(Unused().eval(), 0.75, "16x1")
    reason = skipped(pruned, "unused", example_inputs=torch.randn(2, 16), timer=WINS)
    assert reason.startswith("never called during calibration")


def test_attention_that_reads_its_projection_keeps_it_dense() -> None:
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    pruned = fc.prune(nn.ModuleDict({"attention": attention}), 0.75, "16x1")
    assert "MultiheadAttention reads its weight directly" in skipped(pruned, "attention.out_proj", timer=WINS)


class Conv2dSame(nn.Conv2d):
    """TensorFlow's "SAME" padding, as pretrained EfficientNets have it."""

    def forward(self, x: Tensor) -> Tensor:
        from fastcompress.nn.geometry import same_padding4

        top, bottom, left, right = same_padding4(*x.shape[-2:], self.kernel_size, self.stride, self.dilation)
        return super().forward(nn.functional.pad(x, (left, right, top, bottom)))


@pytest.mark.parametrize("scheme", ["sparse", "W8A8"])
def test_masked_same_convolutions_are_adapted(scheme: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv2dSame(8, 16, 3, stride=2), nn.ReLU()).eval()
    pruned = fc.prune(model, 0.75, "16x4")
    x = torch.randn(1, 8, 9, 9)
    if scheme == "sparse":
        done = fc.convert(pruned, example_inputs=x, timer=WINS)
        torch.testing.assert_close(outputs(done, x), outputs(pruned, x))
    else:
        times = {"dense": 3.0, "int8": 2.0, "sparse int8": 1.0}
        done = fc.quantize(pruned, "W8A8", [x], timer=lambda calls: {n: (f(), times[n])[1] for n, f in calls.items()})
        assert torch.linalg.norm(outputs(done, x) - outputs(pruned, x)) < 0.05 * torch.linalg.norm(outputs(pruned, x))
    assert done[0].same_padding
    assert done[0].density == 4 / 18
    assert outputs(done, torch.randn(1, 8, 10, 7)).shape == (1, 16, 5, 4)


def test_shared_and_tied_layers() -> None:
    shared = prune_blocks(nn.Linear(16, 16), (16, 1), 0.3)
    apply_mask(shared, shared.weight != 0)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    sparse = fc.convert(model, timer=WINS)
    assert sparse[0] is sparse[2]
    assert "shared with 2" in record_of(sparse)["0"].reason  # type: ignore[index]
    tied = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    tied[1].weight = tied[0].weight
    pruned = fc.prune(tied, 0.75, "16x1")
    done = fc.convert(pruned, timer=LOSES)
    assert done[0].weight is done[1].weight
    assert torch.equal(outputs(done, torch.ones(1, 16)), outputs(pruned, torch.ones(1, 16)))


def test_a_weight_that_others_use_without_the_mask_is_refused() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(16, 16), "out": nn.Linear(16, 16, bias=False)}).eval()
    model["out"].weight = model["embed"].weight
    mask_half(model["out"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"convert: layer 'out' \(Linear\) shares its weight with 'embed.weight', "):
        fc.convert(model, inplace=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(masked(fc.convert(model, ignore="out"))) == ["out"]
    apply_mask(model["embed"], torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shares its weight with '\w+', which has not the same mask"):
        fc.convert(model)


def test_other_parametrizations_are_refused_by_name() -> None:
    pruned = fc.prune(linears(), 0.5, "16x4")
    torch.nn.utils.parametrizations.spectral_norm(pruned[2], "weight")
    with pytest.raises(ValueError, match=r"convert: layer '2' \(Linear\) has parametrizations besides its mask; "):
        fc.convert(pruned, inplace=True)
    assert list(masked(pruned)) == ["0", "2"]
    assert not masked(fc.convert(pruned, targets="0", timer=WINS)[0])


def test_a_model_that_is_one_layer() -> None:
    pruned = fc.prune(nn.Linear(16, 32).eval(), 0.75, "16x1")
    sparse = fc.convert(pruned, timer=WINS)
    assert isinstance(sparse, SparseLinear)
    assert record_of(sparse)[""].action == "sparse"  # type: ignore[index]
    with pytest.raises(ValueError, match=r"convert: inplace=True cannot turn a \w*Linear into another object"):
        fc.convert(pruned, inplace=True, timer=WINS)
    assert list(masked(pruned)) == [""]
    assert fc.convert(pruned, inplace=True, timer=LOSES) is pruned
    assert type(pruned) is nn.Linear


def test_training_mode_is_kept_and_forward_fn_used() -> None:
    pruned = fc.prune(linears(), 0.75, "16x1").train()
    pruned[2].eval()
    seen: list[Any] = []

    def forward_fn(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["deep"][0])

    sparse = fc.convert(
        pruned, example_inputs={"deep": [torch.ones(3, 16)]}, forward_fn=forward_fn, timer=stopwatch(2, 1, seen)
    )
    assert seen == [(3, 32), (3, 16)]
    assert [m.training for m in sparse.modules()] == [True, True, True, False]
    assert pruned.training


def test_equal_layers_are_measured_once() -> None:
    layers = [prune_blocks(nn.Linear(16, 16), (16, 1), 0.3, seed=1) for _ in range(4)]
    for layer in layers:
        apply_mask(layer, layer.weight != 0)
    seen: list[Any] = []
    fc.convert(nn.Sequential(*layers).eval(), timer=stopwatch(2.0, 1.0, seen))
    assert len(seen) == 2  # at 1 and at 128 tokens


def test_failures_leave_the_model_as_it_was() -> None:
    class Picky(nn.Module):
        """Accepts its linear as a float layer only."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(self.inner, SparseLinear):
                raise RuntimeError("no sparse layers, please")
            return self.inner(x)

    pruned = fc.prune(nn.Sequential(Picky(), nn.Linear(16, 7)).eval(), 0.5, "unstructured")
    with pytest.raises(RuntimeError, match="no sparse layers") as caught:
        fc.convert(pruned, example_inputs=torch.ones(1, 16), only_if_faster=False, inplace=True)
    assert "pass that layer in ignore=. The model was not changed" in caught.value.__notes__[0]
    assert list(masked(pruned)) == ["0.inner", "1"]

    def broken(functions: Mapping[str, Any]) -> dict[str, float]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fc.convert(fc.prune(linears(), 0.75, "16x1"), timer=broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fc.convert(pruned, example_inputs=torch.ones(1, 5), inplace=True)
    assert list(masked(pruned)) == ["0.inner", "1"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": ()}, ValueError, "convert: targets is empty; use None"),
        ({"targets": 3}, TypeError, "convert: targets must hold module names, 're:…' patterns or classes, got 3"),
        ({"ignore": "re:("}, ValueError, r"convert: ignore: 're:\(' is no regular expression"),
        ({"ignore": "nowhere"}, ValueError, "convert: ignore entry 'nowhere' matches no layer that can be converted"),
        ({"only_if_faster": 1}, TypeError, "convert: only_if_faster must be True or False, got 1"),
        ({"forward_fn": 3}, TypeError, r"convert: forward_fn must be callable as forward_fn\(model, batch\), got 3"),
        ({"example_inputs": 3}, TypeError, "convert: a calibration batch is a int"),
        ({"example_inputs": torch.ones(0, 16)}, ValueError, r"convert: calibration batch 0 is empty"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    pruned = fc.prune(linears(), 0.75, "16x1")
    with pytest.raises(error, match=message):
        fc.convert(pruned, inplace=True, **options)
    assert list(masked(pruned)) == ["0", "2"]
