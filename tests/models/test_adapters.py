"""Subclasses with a forward of their own: built-in adapters, the public registry, and the check on calibration data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.models import adapters
from fastcompress.models.adapters import Adapted


class Conv2dSame(nn.Conv2d):
    """TensorFlow's "same", computed from each input."""

    def forward(self, input: Tensor) -> Tensor:
        ends = []
        for size, k, s, d in zip(input.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            ends.append((total // 2, total - total // 2))
        (top, bottom), (left, right) = ends
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StaticSame(nn.Conv2d):
    """The same, fixed at construction."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, input: Tensor) -> Tensor:
        x = self.static_padding(input)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    monkeypatch.setattr(adapters, "_REGISTRY", dict(adapters._REGISTRY))


def check(model: nn.Module, data: Tensor | list[Tensor]) -> nn.Module:
    batches = [data] if isinstance(data, Tensor) else data
    q = fc.quantize(model, "W8A8", batches, only_if_faster=False)
    with torch.no_grad():
        for x in batches:
            expected = model(x)
            assert float((q(x) - expected).abs().max()) < 0.05 * float(expected.abs().max())
    return q


@pytest.mark.parametrize("size", [8, 9])
def test_dynamic_same_padding_holds_at_other_sizes(size: int) -> None:
    model = nn.Sequential(Conv2dSame(3, 8, 3, stride=2), nn.ReLU())
    q = check(model, torch.randn(2, 3, size, size))
    assert q[0].same_padding
    with torch.no_grad():
        x = torch.randn(2, 3, 17 - size, 12).clamp(-2, 2)
        expected = model(x)
        assert float((q(x) - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_dynamic_same_padding_with_stride_one_is_fixed() -> None:
    q = check(nn.Sequential(Conv2dSame(3, 8, 3)), [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 11, 9)])
    assert not q[0].same_padding
    assert q[0].padding4 == (1, 1, 1, 1)


def test_static_same_padding() -> None:
    q = check(nn.Sequential(StaticSame(3, 8, 3, stride=2)), torch.randn(2, 3, 8, 8))
    assert q[0].padding4 == (0, 1, 0, 1)


def test_efficientnet_lite_convolutions() -> None:
    utils = pytest.importorskip("efficientnet_lite_pytorch.utils")
    fixed = utils.Conv2dStaticSamePadding(3, 8, 3, stride=2, image_size=9)
    q = check(nn.Sequential(fixed, utils.Conv2dDynamicSamePadding(8, 8, 3, stride=2)), torch.randn(2, 3, 9, 9))
    assert q[0].padding4 == (1, 1, 1, 1)
    assert [layer.same_padding for layer in q] == [False, True]


def test_transformers_conv1d() -> None:
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(8, 6)
    nn.init.normal_(layer.bias)
    q = check(nn.Sequential(layer), torch.randn(16, 6))
    assert (q[0].in_features, q[0].out_features) == (6, 8)
    dynamic = fc.quantize(nn.Sequential(layer), "W8A8-dynamic", only_if_faster=False)
    assert type(dynamic[0]).__name__ == "QuantLinear"


def test_without_adapter_it_is_skipped_and_says_how() -> None:
    q = fc.quantize(nn.Sequential(Doubled(4, 4)), "W8A8", [torch.randn(8, 4)])
    assert type(q[0]) is Doubled
    assert q._fastcompress_record["0"].reason == (
        "Doubled has a forward of its own and no adapter; tell how it works with fastcompress.register_adapter"
    )


def doubled(module: nn.Module, input_shapes: Sequence[tuple[int, ...]]) -> Adapted:
    assert isinstance(module, Doubled)
    plain = nn.Linear(module.in_features, module.out_features)
    plain.weight = nn.Parameter(2 * module.weight.detach())
    plain.bias = nn.Parameter(2 * module.bias.detach())
    return Adapted(plain)


def test_registered_adapter(registry: None) -> None:
    fc.register_adapter(Doubled, doubled)
    q = check(nn.Sequential(Doubled(4, 4)), torch.randn(8, 4))
    assert type(q[0]).__name__ == "QuantLinear"


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-dynamic"])
def test_wrong_adapter_is_found_out(registry: None, scheme: str) -> None:
    def wrong(module: nn.Module, input_shapes: Sequence[tuple[int, ...]]) -> Adapted:
        assert isinstance(module, nn.Linear)
        plain = nn.Linear(module.in_features, module.out_features)
        plain.weight, plain.bias = module.weight, module.bias
        return Adapted(plain)

    fc.register_adapter(Doubled, wrong)
    data = [torch.randn(8, 4)] if scheme == "W8A8" else None
    q = fc.quantize(nn.Sequential(Doubled(4, 4)), scheme, data)
    assert type(q[0]) is Doubled
    assert (
        "the adapter for Doubled is wrong on calibration data: outputs differ by" in q._fastcompress_record["0"].reason
    )


def test_adapter_may_decline(registry: None) -> None:
    fc.register_adapter(Doubled, lambda module, shapes: None)
    q = fc.quantize(nn.Sequential(Doubled(4, 4)), "W8A8", [torch.randn(8, 4)])
    assert "found no plain layer that does the same" in q._fastcompress_record["0"].reason


def test_register_adapter_checks_its_arguments() -> None:
    with pytest.raises(TypeError, match=r"register_adapter: cls must be a class of torch.nn.Module, got 'Conv'"):
        fc.register_adapter("Conv", doubled)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="register_adapter: adapter must be callable"):
        fc.register_adapter(Doubled, None)  # type: ignore[arg-type]
