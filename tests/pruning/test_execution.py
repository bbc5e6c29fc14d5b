"""From mask to kernel: `prune`, then `quantize` or `convert`."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.nn import QuantLinear, SparseQuantConv2d, SparseQuantLinear
from fastcompress.pruning import mask_of, masked


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


def calibration() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 64, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-dynamic"])
def test_masks_become_block_sparse_int8_layers(criterion: str, scheme: str) -> None:
    data = calibration()
    pruned = fc.prune(model(), 0.75, "16x4", criterion, calibration_data=data, ignore="4")
    q = fc.quantize(pruned, scheme, calibration_data=data, only_if_faster=False)
    assert [type(layer) for layer in q if not isinstance(layer, nn.Identity)] == [
        SparseQuantLinear,
        SparseQuantLinear,
        QuantLinear,
    ]
    for index in (0, 2):
        assert q[index].density == 0.25
        mask = mask_of(pruned[index])
        assert mask is not None
        assert not bool(q[index].dequantize()[~mask].any())
    x, y = data[0], pruned(data[0])
    assert torch.linalg.norm(q(x) - y) < 0.05 * torch.linalg.norm(y)
    assert not masked(q)


def test_the_pruned_model_is_unchanged_and_layers_left_dense_keep_their_masks() -> None:
    pruned = fc.prune(model(), 0.5, "16x4", ignore="4")
    before = copy.deepcopy(pruned.state_dict())
    q = fc.quantize(pruned, "W8A8-dynamic", ignore="0", only_if_faster=False)
    assert list(masked(q)) == ["0"]
    assert isinstance(q[2], SparseQuantLinear)
    assert list(masked(pruned)) == ["0", "2"]
    assert all(torch.equal(before[name], value) for name, value in pruned.state_dict().items())


def test_other_parametrizations_are_still_refused() -> None:
    pruned = fc.prune(model(), 0.5, "16x4", ignore="4")
    torch.nn.utils.parametrizations.spectral_norm(pruned[2], "weight")
    q = fc.quantize(pruned, "W8A8-dynamic", only_if_faster=False)
    assert isinstance(q[0], SparseQuantLinear)
    assert not isinstance(q[2], QuantLinear)
    with pytest.raises(ValueError, match=r"convert: layer '2' .* has parametrizations besides its mask"):
        fc.convert(pruned)


def test_dense_is_measured_without_the_cost_of_the_mask() -> None:
    seen: list[type] = []

    def timer(calls: dict[str, object]) -> dict[str, float]:
        if "dense" in calls:
            chain = calls["dense"].func.__closure__  # type: ignore[attr-defined]
            seen.extend(type(layer) for cell in chain for layer in _list(cell.cell_contents))
        return dict.fromkeys(calls, 1.0)

    pruned = fc.prune(model(), 0.5, "16x4")
    fc.quantize(pruned, "W8A8-dynamic", example_inputs=calibration()[0], timer=timer)
    assert nn.Linear in seen
    assert not any("Parametrized" in kind.__name__ for kind in seen)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def test_convert_writes_the_zeros_down_and_takes_the_masks_off() -> None:
    pruned = fc.prune(model(), 0.5, "16x4")
    x = calibration()[0]
    slow = {"dense": 1.0, "sparse": 2.0}
    ready = fc.convert(pruned, timer=lambda calls: slow)
    assert not masked(ready)
    assert type(ready[0]) is nn.Linear
    assert torch.equal(ready(x), pruned(x))
    assert list(ready.state_dict()) == list(model().state_dict())
    assert masked(pruned)
    assert fc.convert(pruned, inplace=True, timer=lambda calls: slow) is pruned
    assert not masked(pruned)


def test_masked_convolutions_become_int8_with_their_zeros() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1)).eval()
    data = [torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    pruned = fc.prune(net, 0.5, "16x4", "wanda", calibration_data=data)
    q = fc.quantize(pruned, "W8A8", calibration_data=data, only_if_faster=False)
    layers = [layer for layer in q if isinstance(layer, SparseQuantConv2d)]
    assert len(layers) == 2
    assert all(layer.block_size == (16, 4) and layer.density == 0.5 for layer in layers)
    for layer, index in zip(layers, (0, 2), strict=True):
        weight, mask = layer.dequantize(), mask_of(pruned[index])
        assert not bool(weight[~mask].any())
        assert bool(weight[mask].any())
    with torch.no_grad():
        x, y = data[0], pruned(data[0])
        assert torch.linalg.norm(q(x) - y) < 0.05 * torch.linalg.norm(y)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x4"])
def test_patterns_that_are_no_16x4_blocks_become_int8_with_their_zeros(pattern: str) -> None:
    pruned = fc.prune(model(), 0.5, pattern, ignore="4")
    q = fc.quantize(pruned, "W8A8-dynamic", only_if_faster=False)
    for index in (0, 2):
        assert isinstance(q[index], QuantLinear)
        assert not bool(q[index].dequantize()[~mask_of(pruned[index])].any())


def test_permuted_masks_quantize_to_the_same_function() -> None:
    pruned = fc.prune(model(), 0.5, "16x4", permute="inputs", ignore="4")
    q = fc.quantize(pruned, "W8A8-dynamic", only_if_faster=False)
    x = calibration()[0]
    with torch.no_grad():
        assert torch.linalg.norm(q(x) - pruned(x)) < 0.05 * torch.linalg.norm(pruned(x))


def test_a_quantized_pruned_model_goes_through_a_file(tmp_path: Path) -> None:
    q = fc.quantize(fc.prune(model(), 0.75, "16x4", ignore="4"), "W8A8-dynamic", only_if_faster=False)
    fc.save(q, tmp_path / "out")
    loaded = fc.load(tmp_path / "out", model=model())
    x = calibration()[0]
    with torch.no_grad():
        assert torch.equal(loaded(x), q(x))
