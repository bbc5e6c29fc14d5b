"""Layers that must stay float: read by their parents, tied, hooked, unsupported. Skipped and reported, never silent."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantLinear


def reason(model: nn.Module, name: str, x: Tensor | None = None, scheme: str = "W8A8") -> str:
    """Quantize; the layer must have been skipped, and the model must still work. Returns why."""
    q = fc.quantize(model, scheme, None if x is None else [x], only_if_faster=False)
    decision = q._fastcompress_record[name]
    assert decision.action == "skipped"
    assert type(q.get_submodule(name)) is type(model.get_submodule(name))
    if x is not None:
        with torch.no_grad():
            expected, found = model.eval()(x), q.eval()(x)
        assert float((found - expected).abs().max()) <= 0.1 * float(expected.abs().max())
    return decision.reason


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("with_data", [True, False])
def test_multihead_attention(with_data: bool) -> None:
    x = torch.randn(2, 5, 16)
    scheme = "W8A8" if with_data else "W8A8-dynamic"
    why = reason(Attention(), "attention.out_proj", x if with_data else None, scheme)
    assert why == "nn.MultiheadAttention reads its weight directly and never calls it"


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_fused_transformer_layer() -> None:
    why = reason(Encoder(), "layer.linear1", torch.randn(2, 5, 16))
    assert "never called during calibration, but its weight is used directly (by its parent Transformer" in why
    assert "set_fastpath_enabled(False)" in why
    assert "fused path may read its weight directly" in reason(Encoder(), "layer.linear1", None, "W8A8-dynamic")


def test_transformer_layer_without_the_fused_path() -> None:
    x = torch.randn(2, 5, 16)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        q = fc.quantize(Encoder(), "W8A8", [x], only_if_faster=False)
        assert q(x).shape == x.shape
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert isinstance(q.layer.linear1, QuantLinear)
    assert isinstance(q.layer.linear2, QuantLinear)


class Reader(nn.Module):
    """Uses ``inner``'s weight functionally, and calls it as well if asked."""

    def __init__(self, call: bool) -> None:
        super().__init__()
        self.call, self.inner, self.head = call, nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.inner.weight)
        return self.head(y + self.inner(x) if self.call else y)


def test_weight_read_by_the_parent() -> None:
    assert "never called during calibration, but its weight is used" in reason(Reader(False), "inner", torch.ones(2, 8))
    assert "its weight is also used outside its forward" in reason(Reader(True), "inner", torch.ones(2, 8))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_never_called() -> None:
    assert reason(Unused(), "unused", torch.ones(2, 8)) == "never called during calibration"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x.long())))


def test_tied_with_an_embedding() -> None:
    assert (
        reason(Tied(), "head", torch.arange(10.0)) == "its weight is tied to embedding (Embedding), which stays float"
    )
    q = fc.quantize(Tied(), "W8A8-dynamic", only_if_faster=False)
    assert q.head.weight is q.embedding.weight
    assert isinstance(q.body, QuantLinear)


def test_two_layers_that_share_a_parameter_are_both_quantized() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    q = fc.quantize(model, "W8A8", [torch.randn(4, 8)], only_if_faster=False)
    assert isinstance(q[0], QuantLinear)
    assert isinstance(q[1], QuantLinear)
    assert "shared its parameters with 1; each has its own quantized weights now" in q._fastcompress_record["0"].reason


class SharedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a
        self.steps = nn.ModuleList([self.a, nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.steps[1](self.b(self.a(x)))


def test_one_module_in_several_places_stays_one() -> None:
    q = fc.quantize(SharedModule(), "W8A8", [torch.randn(4, 8)], only_if_faster=False)
    assert isinstance(q.a, QuantLinear)
    assert q.a is q.b
    assert q.a is q.steps[0]
    assert q._fastcompress_record["a"].reason == "not measured; shared with b, steps.0"
    assert [layer.name for layer in q._fastcompress_record] == ["a", "steps.1"]


def _hooked() -> nn.Module:
    layer = nn.Linear(8, 4)
    layer.register_forward_hook(lambda *args: None)
    return layer


def _patched() -> nn.Module:
    layer = nn.Linear(8, 4)
    layer.forward = lambda x: F.linear(x, layer.weight)  # type: ignore[method-assign]
    return layer


def _empty() -> nn.Module:
    layer = nn.Linear(8, 4)
    layer.weight = nn.Parameter(torch.empty(0, 8))
    return layer


def _with_nan() -> nn.Module:
    layer = nn.Linear(8, 4)
    layer.weight.data[0, 0] = float("nan")
    return layer


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (_hooked(), "it has hooks, which would be lost; remove them first"),
        (_patched(), "its forward was replaced on the instance"),
        (_with_nan(), "its weight holds NaN or infinity"),
        (nn.utils.parametrizations.orthogonal(nn.Linear(8, 4)), "it is parametrized"),
        (nn.Linear(8, 4).double(), "its weight is torch.float64; supported are float32, bfloat16 and float16"),
        (nn.Linear(8, 4, device="meta"), "its weight is on meta; the kernels run on the CPU"),
        (nn.Linear(70_000, 1), "it sums over 70000 products, int32 accumulators are safe up to 65793"),
        (nn.LazyLinear(4), "it is lazy and was never run"),
        (_empty(), "its weight is empty"),
        (nn.LSTM(8, 4), "there is no int8 kernel for LSTM"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value[:20],
)
def test_layers_that_stay_as_they_are(layer: nn.Module, expected: str) -> None:
    model = nn.ModuleList([layer])
    q = fc.quantize(model, "W8A8-dynamic", inplace=True)
    decision = q._fastcompress_record["0"]
    assert decision.action == "skipped"
    assert expected in decision.reason


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")])
def test_convolutions_without_a_kernel(layer: nn.Module) -> None:
    why = reason(nn.Sequential(layer), "0", torch.randn(1, 3, 8, 8))
    assert why in (
        "there is no int8 kernel for ConvTranspose2d",
        "padding_mode 'reflect' is not supported, only 'zeros'",
    )


def test_inputs_that_were_always_zero() -> None:
    assert "zero throughout calibration" in reason(nn.Sequential(nn.Linear(8, 4)), "0", torch.zeros(2, 8))


def test_one_warning_for_everything_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastcompress"):
        fc.quantize(Attention(), "W8A8-dynamic", only_if_faster=False)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage() == (
        "quantize: 2 layers stay float:\n  attention (MultiheadAttention): its input projections (in_proj) are "
        "parameters of the attention itself, no linear layer: they stay float\n"
        "  attention.out_proj (NonDynamicallyQuantizableLinear): "
        "nn.MultiheadAttention reads its weight directly and never calls it"
    )
