"""`quantize` with ``conv_bits=4``: which layers get four bits, how their scales are found, what stays eight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d, SparseQuantConv2d
from fastcompress.quantization import quantize_weight, weight_scales
from tests.errors.expect import error
from tests.quantization.margins import MSE_OPTIMUM


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def images() -> list[Tensor]:
    return [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def quantized(model: nn.Module, **options: Any) -> Any:
    return fc.quantize(model, fc.QuantConfig("W8A8", **{"conv_bits": 4, "only_if_faster": False, **options}), images())


def bits(model: Any) -> dict[int, int]:
    return {i: layer.weight_bits for i, layer in enumerate(model) if isinstance(layer, QuantConv2d)}


def numpy_scale(weight: Tensor) -> np.ndarray:
    rows = np.abs(weight.detach().numpy().reshape(len(weight), -1)).max(axis=1)
    return np.asarray(rows / np.float32(7.5))


def weight_errors(weight: Tensor, scale: np.ndarray) -> np.ndarray:
    """Mean squared error of each row, rounded to -8 .. 7."""
    rows, wide = weight.detach().numpy().astype(np.float64), scale.astype(np.float64)[:, None]
    return np.asarray(((np.clip(np.rint(rows / wide), -8, 7) * wide - rows) ** 2).mean(axis=1))


def test_all_but_depthwise_convolutions_have_four_bits() -> None:
    model = net()
    q = quantized(model)
    assert bits(q) == {0: 4, 3: 8, 5: 4}
    assert bits(quantized(model, conv_bits=8)) == {0: 8, 3: 8, 5: 8}
    weight = model[5].weight
    c = q[5].canonical()
    assert np.array_equal(c.weight_scale.numpy(), numpy_scale(weight))
    wide = numpy_scale(weight)[:, None, None, None]
    assert np.array_equal(c.weight.numpy(), np.clip(np.rint(weight.detach().numpy() / wide), -8, 7))


def test_mse_scales_are_closer() -> None:
    model = net()
    q = quantized(model, weight_observer="mse")
    weight = model[5].weight
    c = q[5].canonical()
    assert c.weight_bits == 4
    assert int(c.weight.min()) >= -8
    rows = weight.flatten(1)
    found, minmax = weight_errors(rows, c.weight_scale.numpy()), weight_errors(rows, numpy_scale(weight))
    assert (found <= minmax).all()
    assert found.sum() < minmax.sum()


@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace", "student"])
def test_mse_scales_match_brute_force(kind: str) -> None:
    rng = np.random.default_rng(3)
    draw = {
        "normal": rng.standard_normal((16, 1000)),
        "uniform": rng.uniform(-1, 1, (16, 1000)),
        "laplace": rng.laplace(size=(16, 1000)),
        "student": rng.standard_t(3, (16, 1000)),
    }[kind]
    weight = torch.from_numpy(draw.astype(np.float32))
    full = numpy_scale(weight)
    assert np.array_equal(weight_scales(weight, bits=4).numpy(), full)
    chosen = weight_errors(weight, weight_scales(weight, "mse", 4).numpy())
    assert (chosen <= weight_errors(weight, full)).all()
    grid = np.stack([weight_errors(weight, full * np.float32(fraction)) for fraction in np.linspace(0.05, 1.0, 400)])
    assert chosen.mean() <= grid.min(axis=0).mean() * MSE_OPTIMUM


def test_rounding_is_numpys() -> None:
    weight = torch.tensor([[-9.0, -8.5, -7.5, -0.5, 0.5, 1.5, 7.4, 7.5, 99.0]])
    got = quantize_weight(weight, torch.ones(1), 4)
    assert got.tolist() == [[-8, -8, -8, 0, 0, 2, 7, 7, 7]]


def test_bias_correction_takes_the_error_of_four_bits() -> None:
    """The corrected layer's mean output is that of the float layer, up to what its activations' rounding adds."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(8, 6, 1)).eval()
    data = [torch.rand(64, 8, 6, 6, generator=torch.Generator().manual_seed(2))]

    def shift(corrected: bool) -> tuple[Tensor, Tensor]:
        """How far off the mean of each channel is, and how far activations alone can move it: half a step each."""
        config = fc.QuantConfig("W8A8", conv_bits=4, only_if_faster=False, bias_correction=corrected)
        q: Any = fc.quantize(model, config, data)
        bound = 0.5 * q[0].input_scale * q[0].dequantize().abs().sum(dim=(1, 2, 3))
        return (q(data[0]).double() - model(data[0]).double()).mean(dim=(0, 2, 3)).abs(), bound

    off, bound = shift(corrected=True)
    assert (off <= bound).all()
    off, bound = shift(corrected=False)
    assert (off > bound).any()


def test_pruned_convolutions_become_blocks_of_eight_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
    pruned = fc.prune(model, 0.9, "16x4", targets=["0"])
    data = [torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(1))]
    q = fc.quantize(pruned, fc.QuantConfig("W8A8", conv_bits=4, only_if_faster=False), data)
    assert isinstance(q[0], SparseQuantConv2d)
    assert bits(q) == {0: 8, 2: 4}


@pytest.mark.parametrize("faster", [True, False])
def test_the_speed_contract_holds(faster: bool) -> None:
    """The stopwatch is asked about four-bit layers, and its answer decides."""
    asked = []

    def timer(calls: Any) -> dict[str, float]:
        asked.append(set(calls))
        return {name: 1.0 if (name == "dense") == faster else 0.5 for name in calls}

    config = fc.QuantConfig("W8A8", conv_bits=4, ignore=("9",))
    q = fc.quantize(net(), config, images(), timer=timer)
    assert bits(q) == ({0: 4, 3: 8, 5: 4} if faster else {})
    assert {"dense", "four-bit"} in asked
    assert {"dense", "int8"} in asked
    record: Any = q._fastcompress_record
    if faster:
        assert record["5"].reason.startswith("four-bit measured 2.00× as fast")
        assert record["5"].kernel.startswith("conv2d_w4a8_")
        assert record["3"].kernel.startswith("conv2d_w8a8_")


def test_frozen_models_give_the_same_bits_and_chain_no_four_bit_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(6))).eval()
    data = [torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(1))]
    q = fc.quantize(model, fc.QuantConfig("W8A8", only_if_faster=False), data)
    one = nn.Sequential(model[2])
    four: Any = fc.quantize(one, fc.QuantConfig("W8A8", conv_bits=4, only_if_faster=False), data)
    q[2] = four[0]
    frozen: Any = fc.freeze(q, data[0])
    assert torch.equal(frozen(data[0]), q(data[0]))
    assert frozen.chains == 2  # two in front of it, three behind
    all_four: Any = fc.freeze(
        fc.quantize(model, fc.QuantConfig("W8A8", conv_bits=4, only_if_faster=False), data), data[0]
    )
    assert all_four.chains == 0


@pytest.mark.parametrize("value", [3, 16, 0, None, "4", True])
def test_config_refuses_other_bits(value: Any) -> None:
    with error(ValueError, f"QuantConfig: conv_bits must be 4 or 8, got {value!r}"):
        fc.QuantConfig("W8A8", conv_bits=value)


@pytest.mark.parametrize("scheme", ["W8A8-dynamic", "W4A8", "W4A16", "W8A16"])
def test_config_refuses_schemes_without_convolutions(scheme: str) -> None:
    with error(
        ValueError,
        "QuantConfig: conv_bits=4 belongs to scheme 'W8A8', which quantizes convolutions; scheme is "
        f"{scheme!r}; leave it out",
    ):
        fc.QuantConfig(scheme, conv_bits=4)
    assert fc.QuantConfig(scheme, conv_bits=8).conv_bits == 8
