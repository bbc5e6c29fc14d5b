"""Whole models through `quantize`: accuracy, options, state, and failures that change nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.config import ACTIVATION_OBSERVERS
from fastcompress.nn import QuantConv2d, QuantizedLayer, QuantLinear
from fastcompress.ops import constants


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8, padding="same"),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, dilation=2, groups=2),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    model[1].running_mean.normal_(0, 0.2)
    model[1].running_var.uniform_(0.5, 2.0)
    return model


def images(n: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 12, 12, generator=generator) for _ in range(n)]


def error(model: nn.Module, quantized: nn.Module, x: Any) -> float:
    """Relative error of the output, in the Euclidean norm."""
    model, quantized = copy.deepcopy(model).eval(), copy.deepcopy(quantized).eval()
    with torch.no_grad():
        expected, found = model(x), quantized(x)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("observer", ACTIVATION_OBSERVERS)
def test_static_conv_net(observer: str) -> None:
    model = conv_net()
    q = fc.quantize(model, "W8A8", images(), observer=observer, only_if_faster=False)
    assert [i for i, m in enumerate(q) if isinstance(m, QuantizedLayer)] == [0, 3, 5, 9]
    assert [i for i, m in enumerate(q) if isinstance(m, nn.Identity)] == [1, 2, 4, 6]
    assert error(model, q, images()[0]) < (0.2 if observer == "entropy" else 0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"equalize": True},
        {"bias_correction": True},
        {"equalize": True, "bias_correction": True},
        {"weight_observer": "mse"},
        {"symmetric_activations": True},
        {"observer": "percentile", "observer_options": {"percentile": 99.9}},
    ],
    ids=str,
)
def test_options_keep_the_network_accurate(options: dict[str, Any]) -> None:
    model = conv_net()
    q = fc.quantize(model, fc.QuantConfig("W8A8", only_if_faster=False, **options), iter(images()))
    assert error(model, q, images()[0]) < 0.08


def test_equalization_rescues_unbalanced_channels() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    factor = torch.logspace(-3, 1, 16)
    model[0].weight.data *= factor[:, None]
    model[0].bias.data *= factor
    model[2].weight.data /= factor
    x = torch.randn(64, 16)
    plain, equalized = (
        error(model, fc.quantize(model, fc.QuantConfig("W8A8", equalize=on, only_if_faster=False), [x]), x)
        for on in (False, True)
    )
    assert equalized < 0.02 < 0.1 < plain


class PreNorm(nn.Module):
    """A norm whose output two linears read, with outlier channels as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm.weight.data[3] = 200.0
        self.a.weight.data[:, 3] /= 200.0
        self.b.weight.data[:, 3] /= 200.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.a(y) * self.b(y)


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-dynamic"])
def test_smoothquant_tames_outlier_channels(scheme: str) -> None:
    model, x = PreNorm(), torch.randn(64, 16)
    before = copy.deepcopy(model.state_dict())
    plain, smoothed = (
        fc.quantize(model, fc.QuantConfig(scheme, smoothquant=alpha, only_if_faster=False), [x])
        for alpha in (None, 0.5)
    )
    assert error(model, smoothed, x) < 0.25 * error(model, plain, x)
    assert "smoothed through norm" in smoothed._fastcompress_record["a"].reason
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_smoothquant_leaves_a_norm_alone_that_something_else_reads(caplog: pytest.LogCaptureFixture) -> None:
    class Residual(PreNorm):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.a(y) + self.b(y) + y

    q = fc.quantize(Residual(), fc.QuantConfig("W8A8", smoothquant=0.5, only_if_faster=False), [torch.randn(8, 16)])
    assert torch.equal(q.norm.weight[3], torch.tensor(200.0))
    assert "smoothquant found no norm whose output only quantized linears read" in caplog.text


def test_bias_correction_removes_the_mean_error() -> None:
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(64, 32)), torch.rand(512, 64) + 1.0
    shifts = []
    for on in (False, True):
        q = fc.quantize(model, fc.QuantConfig("W8A8", bias_correction=on, only_if_faster=False), [x])
        with torch.no_grad():
            shifts.append(float((q(x) - model(x)).mean(0).abs().mean()))
    assert shifts[1] < 0.5 * shifts[0]


def test_dynamic_quantizes_linears_only_and_says_so() -> None:
    q = fc.quantize(conv_net(), "W8A8-dynamic", only_if_faster=False)
    assert [i for i, m in enumerate(q) if isinstance(m, QuantizedLayer)] == [9]
    assert q[9].input_mode == "dynamic"
    decision = q._fastcompress_record["0"]
    assert (decision.action, decision.reason) == ("kept", "W8A8-dynamic quantizes linear layers only")
    symmetric = fc.QuantConfig("W8A8-dynamic", symmetric_activations=True, only_if_faster=False)
    assert fc.quantize(conv_net(), symmetric)[9].input_mode == "dynamic_symmetric"


def test_tiny_bert() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.BertModel(config).eval()
    batch = {"input_ids": torch.arange(24).reshape(2, 12)}
    for kwargs in (
        {"scheme": "W8A8-dynamic", "example_inputs": batch},
        {"scheme": "W8A8", "calibration_data": [batch]},
    ):
        q = fc.quantize(model, only_if_faster=False, **kwargs)
        assert q._fastcompress_record.counts() == {"quantized": 13, "fused": 2}
        assert q.encoder.layer[0].intermediate.dense.activation == "gelu"
        with torch.no_grad():
            expected, found = (m(**batch).last_hidden_state for m in (model, q))
        assert float(nn.functional.cosine_similarity(expected, found, dim=-1).min()) > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    model, x = conv_net().to(dtype), images()[0].to(dtype)
    q = fc.quantize(model, "W8A8", [x], only_if_faster=False)
    with torch.no_grad():
        assert q.eval()(x).dtype == dtype
    assert error(model.float(), q.float(), x.float()) < 0.05


def test_the_original_is_untouched_and_the_copy_independent() -> None:
    model = conv_net()
    before = copy.deepcopy(model.state_dict())
    q = fc.quantize(model, "W8A8", images(), only_if_faster=False)
    assert q is not model
    assert not hasattr(model, "_fastcompress_record")
    assert type(model[0]) is nn.Conv2d
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_inplace() -> None:
    model = conv_net()
    assert fc.quantize(model, "W8A8", images(), only_if_faster=False, inplace=True) is model
    assert isinstance(model[0], QuantConv2d)


def test_training_flags_survive() -> None:
    model = conv_net().train()
    model[3].eval()
    q = fc.quantize(model, "W8A8", images(), only_if_faster=False)
    assert [m.training for m in q] == [m.training for m in model] == [i != 3 for i in range(10)]


def test_a_model_that_is_a_single_layer() -> None:
    layer = nn.Linear(8, 4)
    q = fc.quantize(layer, "W8A8-dynamic", only_if_faster=False)
    assert isinstance(q, QuantLinear)
    assert q._fastcompress_record[""].action == "quantized"
    with pytest.raises(ValueError, match="inplace=True cannot turn a Linear into another object"):
        fc.quantize(layer, "W8A8-dynamic", only_if_faster=False, inplace=True)


def test_quantizing_again_finds_the_rest() -> None:
    first = fc.quantize(conv_net(), "W8A8", images(), targets="0", only_if_faster=False)
    second = fc.quantize(first, "W8A8", images(), only_if_faster=False)
    assert [i for i, m in enumerate(second) if isinstance(m, QuantizedLayer)] == [0, 3, 5, 9]
    assert second._fastcompress_record["0"].action == "quantized"
    assert second._fastcompress_record["3"].action == "quantized"
    assert first._fastcompress_record["3"].reason == "not among the targets"


class Picky(nn.Module):
    """A parent that looks into its child: what works with a float layer and breaks with an int8 one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.inner = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.inner, nn.Linear):
            raise TypeError("I want a Linear")
        return self.inner(self.body(x))


def test_a_model_that_fails_with_int8_layers_is_put_back() -> None:
    model, x = Picky(), torch.randn(4, 8)
    with pytest.raises(TypeError, match="I want a Linear") as caught:
        fc.quantize(model, "W8A8", [x], only_if_faster=False, inplace=True)
    assert "pass that layer in ignore=" in caught.value.__notes__[-1]
    assert type(model.body) is type(model.inner) is nn.Linear
    assert model(x).shape == x.shape
    q = fc.quantize(model, "W8A8", [x], only_if_faster=False, ignore="inner")
    assert isinstance(q.body, QuantLinear)


@pytest.mark.parametrize("data", [[], iter(()), [torch.ones(2, 3, 12, 12), torch.ones(2, 5)]])
def test_bad_data_changes_nothing(data: Any) -> None:
    model = conv_net().train()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises((ValueError, RuntimeError)):
        fc.quantize(model, "W8A8", data, only_if_faster=False, inplace=True)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


def test_config_options_are_the_observers_and_activations_there_are() -> None:
    from fastcompress.quantization import OBSERVERS

    assert tuple(OBSERVERS) == ACTIVATION_OBSERVERS
    assert set(constants.INPUT_MODES) == {"static", "dynamic", "dynamic_symmetric", "float"}
