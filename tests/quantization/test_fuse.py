"""Which activations are recognised, and which chains are fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.ops.constants import ACTIVATIONS
from fastcompress.quantization.activations import ACTIVATION_FUNCTIONS, epilogue_activation
from fastcompress.record import CompressionRecord


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class _SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class MemoryEfficientSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _SwishFunction.apply(x)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.Threshold(0.0, 0.0), "relu"),
        (nn.LeakyReLU(0.0), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(0.0, 6.0), "relu6"),
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (Swish(), "silu"),
        (MemoryEfficientSwish(), "silu"),
        (nn.Hardswish(), "hardswish"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (nn.LeakyReLU(0.01), None),
        (nn.Hardtanh(), None),
        (nn.Sigmoid(), None),
        (nn.Mish(), None),
        (nn.PReLU(), None),
        (nn.Identity(), None),
        (nn.Dropout(), None),
        (nn.Softmax(dim=-1), None),
        (nn.Flatten(), None),
        (nn.MaxPool2d(2), None),
        (nn.Sequential(nn.ReLU()), None),
        (TwoInputs(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_activation_by_behaviour(module: nn.Module, name: str | None) -> None:
    assert epilogue_activation(module) == name


def test_every_epilogue_activation_has_a_function() -> None:
    assert set(ACTIVATION_FUNCTIONS) == set(ACTIVATIONS) - {"none"}


def test_transformers_activations() -> None:
    activations = pytest.importorskip("transformers.activations")
    assert epilogue_activation(activations.GELUActivation()) == "gelu"
    assert epilogue_activation(activations.GELUActivation(use_gelu_python=True)) == "gelu"
    assert epilogue_activation(activations.NewGELUActivation()) == "gelu_tanh"
    assert epilogue_activation(activations.FastGELUActivation()) == "gelu_tanh"
    assert epilogue_activation(activations.SiLUActivation()) == "silu"
    assert epilogue_activation(activations.QuickGELUActivation()) is None
    assert epilogue_activation(activations.ClippedGELUActivation(-10, 10)) is None


def quantize(model: nn.Module, x: Tensor) -> tuple[nn.Module, CompressionRecord]:
    q = fc.quantize(model, "W8A8", [x], only_if_faster=False)
    model.eval()
    q.eval()
    with torch.no_grad():
        expected, found = model(x), q(x)
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
    return q, q._fastcompress_record


def conv_net(*tail: nn.Module) -> nn.Sequential:
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, *tail)


def test_conv_norm_activation_become_one_layer() -> None:
    q, record = quantize(conv_net(nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)), torch.randn(4, 3, 8, 8))
    assert q[0].activation == "relu"
    assert [type(m) for m in (q[1], q[2])] == [nn.Identity, nn.Identity]
    assert (record["1"].action, record["2"].reason) == ("fused", "fused into 0")
    assert record["0"].activation == "relu"


def test_activation_outside_the_epilogue_stays() -> None:
    q, _ = quantize(conv_net(nn.Sigmoid()), torch.randn(4, 3, 8, 8))
    assert type(q[1]) is nn.Identity
    assert type(q[2]) is nn.Sigmoid
    assert q[0].activation == "none"


@pytest.mark.parametrize("attached", ["hook", "statistics"])
def test_norms_that_do_not_fold(attached: str) -> None:
    model = conv_net(nn.ReLU())
    if attached == "hook":
        model[1].register_forward_hook(lambda *args: None)
    else:
        model[1].track_running_stats, model[1].running_mean, model[1].running_var = False, None, None
    q, _ = quantize(model, torch.randn(4, 3, 8, 8))
    assert type(q[1]) is nn.BatchNorm2d
    assert type(q[2]) is nn.ReLU  # it does not follow the convolution any more


def test_linear_norm_only_on_two_dimensions() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
    q, _ = quantize(model, torch.randn(16, 6))
    assert type(q[1]) is nn.Identity
    q, _ = quantize(model, torch.randn(16, 8, 6))  # here the norm's channels are dimension 1
    assert type(q[1]) is nn.BatchNorm1d


class SharedActivation(nn.Module):
    """One activation module behind two layers and, if asked, behind something else."""

    def __init__(self, elsewhere: bool) -> None:
        super().__init__()
        self.elsewhere = elsewhere
        self.first, self.second, self.act = nn.Linear(6, 8), nn.Linear(8, 8), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.second(self.act(self.first(x))))
        return self.act(y + 1.0) if self.elsewhere else y


def test_shared_activation_goes_when_all_its_places_are_fused() -> None:
    q, record = quantize(SharedActivation(False), torch.randn(16, 6))
    assert type(q.act) is nn.Identity
    assert record["act"].reason == "fused into first, second"


def test_shared_activation_stays_when_one_place_is_not() -> None:
    q, record = quantize(SharedActivation(True), torch.randn(16, 6))
    assert type(q.act) is nn.SiLU
    assert q.first.activation == q.second.activation == "none"
    assert "act also follows something that is not a layer, so it stays" in record["first"].reason


def test_shared_activation_stays_when_one_layer_is_ignored() -> None:
    model = SharedActivation(False)
    q = fc.quantize(model, "W8A8", [torch.randn(16, 6)], ignore="second", only_if_faster=False)
    assert type(q.act) is nn.SiLU
    assert q.first.activation == "none"


class Residual(nn.Module):
    """The pre-activation is used by a functional addition too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.act(y) + y


def test_functional_consumer_prevents_fusion() -> None:
    q, _ = quantize(Residual(), torch.randn(16, 8))
    assert type(q.act) is nn.ReLU
    assert q.linear.activation == "none"


class SometimesOther(nn.Module):
    """The same layer is followed by the activation in one call and by nothing in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.act(self.linear(x)))


def test_every_call_site_counts() -> None:
    q, _ = quantize(SometimesOther(), torch.randn(16, 8))
    assert type(q.act) is nn.ReLU


def test_fuse_false_leaves_everything_in_place() -> None:
    config = fc.QuantConfig("W8A8", fuse=False, only_if_faster=False)
    q = fc.quantize(conv_net(nn.ReLU()), config, [torch.randn(2, 3, 8, 8)])
    assert [type(m).__name__ for m in q] == ["QuantConv2d", "BatchNorm2d", "ReLU"]
