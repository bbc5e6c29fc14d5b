"""`convert`: masks become block-sparse layers where the stopwatch says so, and zeros in dense layers elsewhere."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantLinear, SparseConv2d, SparseLinear, SparseQuantLinear
from fastcompress.pruning import apply_mask, mask_of, masked
from fastcompress.record import record_of
from tests.nn.sparse_cases import prune_blocks

Timer = Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]


def stopwatch(dense: float, sparse: float, seen: list[Any] | None = None) -> Timer:
    """Runs both functions, which must do the same work, and says what the test wants."""

    def timer(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        assert list(calls) == ["dense", "sparse"]
        a, b = calls["dense"](), calls["sparse"]()
        torch.testing.assert_close(a, b)
        if seen is not None:
            seen.append(a.shape)
        return {"dense": dense, "sparse": sparse}

    return timer


WINS, LOSES = stopwatch(3.0, 1.0), stopwatch(1.0, 2.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.Flatten(), nn.Linear(144, 32)
    ).eval()


def images() -> Tensor:
    return torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def linears() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).eval()


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def test_where_sparse_wins_masks_become_sparse_layers() -> None:
    pruned = fc.prune(network(), 0.9, "16x1")
    seen: list[Any] = []
    sparse = fc.convert(pruned, example_inputs=images(), timer=stopwatch(3.0, 1.0, seen))
    assert [type(layer) for layer in sparse] == [SparseConv2d, nn.ReLU, SparseConv2d, nn.Flatten, SparseLinear]
    assert seen == [(2, 16, 8, 8), (2, 16, 3, 3), (2, 32)]
    for index in (0, 2, 4):
        assert sparse[index].block_size == (16, 1)
        assert torch.equal(sparse[index].dequantize(), pruned[index].weight)
    torch.testing.assert_close(outputs(sparse, images()), outputs(pruned, images()))
    assert not masked(sparse)
    assert list(masked(pruned)) == ["0", "2", "4"]
    record = record_of(sparse)
    assert record is not None
    assert record.scheme == "sparse"
    decision = record["4"]
    assert (decision.action, decision.kind, decision.speedup) == ("sparse", "Linear", 3.0)
    assert decision.shapes == ((2, 144),)
    assert decision.kernel == sparse[4].kernel_name()
    assert decision.reason == "sparse measured 3.00× as fast as dense here; 10% of its 16x1 blocks are not zero"


def test_where_sparse_loses_the_zeros_are_written_down() -> None:
    pruned = fc.prune(network(), 0.9, "16x1")
    dense = fc.convert(pruned, example_inputs=images(), timer=LOSES)
    assert [type(layer) for layer in dense] == [type(layer) for layer in network()]
    assert not masked(dense)
    assert list(dense.state_dict()) == list(network().state_dict())
    assert torch.equal(outputs(dense, images()), outputs(pruned, images()))
    decision = record_of(dense)["4"]  # type: ignore[index]
    assert (decision.action, decision.dense_seconds, decision.quantized_seconds) == ("kept", 1.0, 2.0)
    assert decision.reason == (
        "sparse measured 0.50× as fast as dense here, dense is kept; 10% of its 16x1 blocks are not zero; its zeros "
        "are written into the dense weight"
    )


@pytest.mark.parametrize(
    ("pattern", "sparsity", "block", "share"),
    [
        ("16x1", 0.9, (16, 1), "10% of its 16x1"),
        ("4x1", 0.9, (4, 1), "10% of its 4x1"),
        ("16x4", 0.75, (16, 1), "25% of its 16x1"),
        ("unstructured", 0.98, (1, 1), "2% of its 1x1"),
        ("1:8", 0.875, (1, 1), "12% of its 1x1"),
    ],
)
def test_every_pattern_runs_through_the_nearest_blocks(
    pattern: str, sparsity: float, block: tuple[int, int], share: str
) -> None:
    torch.manual_seed(0)
    pruned = fc.prune(nn.Sequential(nn.Linear(256, 64)).eval(), sparsity, pattern)
    sparse = fc.convert(pruned, timer=WINS)
    assert sparse[0].block_size == block
    assert share in record_of(sparse)["0"].reason  # type: ignore[index]


def test_of_two_forms_the_faster_one_is_taken() -> None:
    pruned = fc.prune(nn.Sequential(nn.Linear(64, 64)).eval(), 0.95, "unstructured")
    calls: list[tuple[int, int]] = []

    def timer(functions: Mapping[str, Any]) -> dict[str, float]:
        block = functions["sparse"].func.block_size
        calls.append(block)
        return {"dense": 1.0, "sparse": 0.5 if block == (4, 1) else 0.7}

    sparse = fc.convert(pruned, timer=timer)
    assert set(calls) == {(1, 1), (4, 1)}
    assert len(calls) == 4  # two forms at 1 and at 128 tokens
    assert sparse[0].block_size == (4, 1)


def test_what_keeps_too_many_blocks_is_not_even_measured() -> None:
    pruned = fc.prune(nn.Sequential(nn.Linear(64, 64).bfloat16()).eval(), 0.5, "2:4")

    def never(functions: Mapping[str, Any]) -> dict[str, float]:
        raise AssertionError("measured")

    dense = fc.convert(pruned, timer=never)
    assert type(dense[0]) is nn.Linear
    reason = record_of(dense)["0"].reason  # type: ignore[index]
    assert reason.startswith("100% of its 16x2 blocks are not zero, too many to gain anything (up to 50% are expected")


def test_without_examples_linears_are_measured_and_convolutions_go_by_density() -> None:
    pruned = fc.prune(network(), {"0": 0.9, "2": 0.1, "4": 0.9}, "16x1")
    seen: list[Any] = []
    sparse = fc.convert(pruned, timer=stopwatch(3.0, 1.0, seen))
    assert [type(sparse[i]) for i in (0, 2, 4)] == [SparseConv2d, nn.Conv2d, SparseLinear]
    assert seen == [(1, 32), (128, 32)]
    record = record_of(sparse)
    assert record is not None
    assert record["0"].reason.startswith("not measured; 10% of its 16x1 blocks are not zero; up to 80% are expected")
    assert "90% of its 16x1 blocks are not zero, too many to gain anything (up to 80%" in record["2"].reason


def test_only_if_faster_false_takes_every_layer_that_fits() -> None:
    pruned = fc.prune(network(), 0.5, "16x1")

    def never(functions: Mapping[str, Any]) -> dict[str, float]:
        raise AssertionError("measured")

    sparse = fc.convert(pruned, only_if_faster=False, timer=never)
    assert [type(sparse[i]) for i in (0, 2, 4)] == [SparseConv2d, SparseConv2d, SparseLinear]
    assert record_of(sparse)["0"].reason == "not measured; 50% of its 16x1 blocks are not zero"  # type: ignore[index]


def test_targets_and_ignore_leave_masks_alone() -> None:
    pruned = fc.prune(linears(), 0.75, "16x1")
    some = fc.convert(pruned, targets="0", timer=WINS)
    assert isinstance(some[0], SparseLinear)
    assert list(masked(some)) == ["2"]
    assert record_of(some)["2"].reason == "not among the targets; it keeps its mask"  # type: ignore[index]
    rest = fc.convert(some, ignore="re:0", timer=LOSES)  # a finished layer may be named too
    assert isinstance(rest[0], SparseLinear)
    assert not masked(rest)
    record = record_of(rest)
    assert record is not None
    assert (record["0"].action, record["2"].action) == ("sparse", "kept")
    with pytest.raises(ValueError, match=r"convert: targets entry '1' matches no layer that can be converted"):
        fc.convert(pruned, targets="1")


def test_models_without_masks_and_finished_layers_are_left_alone() -> None:
    model = linears()
    same = fc.convert(model)
    assert same is not model
    assert record_of(same) is None
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    assert fc.convert(model, inplace=True) is model
    quantized = fc.quantize(fc.prune(linears(), 0.75, "16x4"), "W8A8-dynamic", targets="0", only_if_faster=False)
    both = fc.convert(quantized, timer=WINS)
    assert [type(both[0]), type(both[2])] == [SparseQuantLinear, SparseLinear]
    record = record_of(both)
    assert record is not None
    assert record.scheme == "W8A8-dynamic + sparse"
    assert (record["0"].action, record["2"].action) == ("quantized", "sparse")
    again = fc.convert(both)
    assert record_of(again) == record
    assert torch.equal(outputs(again, torch.ones(1, 16)), outputs(both, torch.ones(1, 16)))


def test_sparse_models_go_through_files_and_copies(tmp_path: Path) -> None:
    sparse = fc.convert(fc.prune(network(), 0.9, "16x1"), timer=WINS)
    want = outputs(sparse, images())
    fc.save(sparse, tmp_path)
    loaded = fc.load(tmp_path, model=network())
    assert torch.equal(outputs(loaded, images()), want)
    assert record_of(loaded) == record_of(sparse)
    assert torch.equal(outputs(copy.deepcopy(sparse), images()), want)
    assert fc.verify(sparse) == ["0", "2", "4"]


def test_bfloat16_models_take_their_own_blocks() -> None:
    pruned = fc.prune(linears().bfloat16(), 0.75, "16x2")
    sparse = fc.convert(pruned, example_inputs=torch.randn(4, 16).bfloat16(), timer=lambda f: {"dense": 2, "sparse": 1})
    assert [sparse[0].block_size, sparse[2].block_size] == [(16, 2), (16, 2)]
    assert sparse[0].weight.dtype == torch.bfloat16


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


def test_a_converted_model_can_be_quantized_where_it_is_dense() -> None:
    mixed = fc.convert(fc.prune(linears(), 0.75, "16x4"), targets="0", timer=WINS)
    quantized = fc.quantize(mixed, "W8A8-dynamic", only_if_faster=False)
    assert isinstance(quantized[0], SparseLinear)
    assert isinstance(quantized[2], QuantLinear)
    assert record_of(quantized)["0"].action == "sparse"  # type: ignore[index]


def test_the_real_stopwatch_decides_something() -> None:
    sparse = fc.convert(fc.prune(linears(), 0.75, "16x1"), example_inputs=torch.randn(4, 16))
    record = record_of(sparse)
    assert record is not None
    for decision in record:
        assert decision.action in ("sparse", "kept")
        assert decision.speedup is not None
        assert (decision.action == "sparse") == (decision.speedup > 1)
