"""`convert` of prepared models as a whole: what pays, what is left out, what is refused, and nothing half done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d, QuantLinear, SparseLinear, SparseQuantConv2d
from fastcompress.nn.mask import original_weight
from fastcompress.quantization import (
    QATConfig,
    fake_quantized,
    set_fake_quant,
)
from fastcompress.record import record_of
from tests.quantization.qat_convert_cases import (
    assert_bit_equal,
    converted,
    stopwatch,
    trained,
)
from tests.quantization.qat_models import conv_net, images, mlp


def test_without_example_inputs_the_norm_is_folded_all_the_same() -> None:
    model = trained(conv_net(), "ste", "frozen")
    q = fc.convert(model, timer=stopwatch(dense=2.0, int8=1.0))
    assert [type(m) for m in q[:3]] == [QuantConv2d, nn.Identity, nn.ReLU]
    assert_bit_equal(model[0], model[1], q[0])
    record = record_of(q)
    assert record is not None
    assert "example_inputs would allow a measurement" in record["0"].reason
    assert record["6"].speedup == 2.0


def test_a_norm_that_training_did_not_fold_stays() -> None:
    model = fc.prepare(conv_net(), QATConfig(fold_batchnorm=False), calibration_data=images())
    q = converted(model)
    assert [type(m) for m in q[:3]] == [QuantConv2d, nn.BatchNorm2d, nn.ReLU]
    assert_bit_equal(model[0], None, q[0])
    assert torch.equal(q[0].dequantize(), model[0].weight.detach())


def test_layers_that_do_not_pay_stay_float() -> None:
    model = trained(conv_net(), "lsq", "frozen").eval()
    q = fc.convert(model, example_inputs=images(), timer=stopwatch(dense=1.0, int8=2.0))
    assert [type(m) for m in q] == [type(m) for m in conv_net()]
    assert list(q.state_dict()) == list(conv_net().state_dict())
    assert not fake_quantized(q)
    assert not q[0]._forward_pre_hooks
    for index in (0, 3, 6):
        assert torch.equal(q[index].weight, original_weight(model[index]))
    record = record_of(q)
    assert record is not None
    assert record.counts() == {"kept": 3}
    assert record["3"].reason == (
        "int8 measured 0.50× as fast as dense here, dense is kept; it lost its fake quantization and stays float"
    )
    set_fake_quant(model, "off")
    with torch.no_grad():
        assert torch.equal(q(images()), model(images()))


def test_masked_layers_that_do_not_pay_in_int8_are_masked_layers() -> None:
    model = fc.prepare(fc.prune(mlp(), 0.75, "4x1", ignore="2"), calibration_data=torch.randn(8, 8))
    timer = stopwatch(dense=2.0, int8=3.0, sparse_int8=4.0, sparse=1.0)
    q = fc.convert(model, timer=timer)
    assert [type(m) for m in q] == [SparseLinear, nn.ReLU, nn.Linear]
    record = record_of(q)
    assert record is not None
    assert record.scheme == "W8A8 + sparse"
    assert "lost its fake quantization and stays float; sparse measured 2.00×" in record["0"].reason
    assert [decision.name for decision in record] == ["0", "2"]


def test_targets_leave_the_others_prepared() -> None:
    model = trained(conv_net(), "ste", "frozen")
    q = fc.convert(model, example_inputs=images(), only_if_faster=False, ignore="6")
    assert list(fake_quantized(q)) == ["6"]
    assert type(q[3]) is QuantConv2d
    record = record_of(q)
    assert record is not None
    assert record["6"].reason == "ignored by '6'; it keeps its fake quantization"
    rest = fc.convert(q, only_if_faster=False)
    assert type(rest[6]) is QuantLinear
    assert torch.equal(rest(images()), converted(model)(images()))


def test_save_and_load(tmp_path: Path) -> None:
    q = converted(trained(fc.prune(conv_net(), 0.75, "16x4"), "lsq", "frozen")).eval()
    fc.save(q, tmp_path / "out")
    assert torch.equal(fc.load(tmp_path / "out", model=conv_net().eval())(images()), q(images()))


def test_a_single_layer() -> None:
    layer = fc.prepare(nn.Linear(8, 4), calibration_data=torch.randn(8, 8))
    q = fc.convert(layer, only_if_faster=False)
    assert type(q) is QuantLinear
    assert_bit_equal(layer, None, q)
    with pytest.raises(ValueError, match=r"convert: inplace=True cannot turn a ParametrizedLinear|Linear into another"):
        fc.convert(layer, only_if_faster=False, inplace=True)
    assert list(fake_quantized(layer)) == [""]
    assert bool(torch.isfinite(layer(torch.randn(2, 8))).all())


class Padded(nn.Conv2d):
    """A convolution with a forward of its own; "same" in its class's name is what the adapters look for."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class PaddedSame(Padded):
    static_padding = nn.ZeroPad2d(1)


def test_subclasses_with_an_adapter() -> None:
    model = nn.Sequential(PaddedSame(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    prepared = fc.prepare(model, calibration_data=images())
    q = converted(prepared)
    assert [type(q[i]) for i in (0, 2)] == [QuantConv2d, QuantConv2d]
    assert q[0].padding4 == (1, 1, 1, 1)
    assert_bit_equal(prepared[0], None, q[0])


def test_a_subclass_without_an_adapter_is_not_prepared(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastcompress"):
        prepared = fc.prepare(nn.Sequential(Padded(4, 16, 3), nn.Conv2d(16, 4, 3)), "W8A8", images())
    assert list(fake_quantized(prepared)) == ["1"]
    assert "Padded has a forward of its own and no adapter" in caplog.text


def test_what_was_never_seen_is_not_converted(caplog: pytest.LogCaptureFixture) -> None:
    model = fc.prepare(mlp())
    with pytest.raises(
        ValueError, match=r"none of the layers .* of '0', its inputs were never seen in training; train"
    ):
        fc.convert(model, inplace=True)
    assert list(fake_quantized(model)) == ["0", "2"]
    model[0](torch.randn(4, 8))
    with caplog.at_level(logging.WARNING, "fastcompress"):
        q = fc.convert(model, only_if_faster=False)
    assert [type(m) for m in q] == [QuantLinear, nn.ReLU, nn.Linear]
    assert "convert: 1 layers stay float:\n  2 (Linear): its inputs were never seen in training" in caplog.text
    zeros = fc.prepare(mlp(), calibration_data=torch.zeros(4, 8))
    assert type(fc.convert(zeros, only_if_faster=False)[0]) is nn.Linear


def unchanged(model: nn.Module, before: dict[str, Any]) -> bool:
    return before == {name: (id(m), type(m), len(m._forward_pre_hooks)) for name, m in model.named_modules()}


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = trained(fc.prune(conv_net(), 0.75, "16x4"), "ste", "frozen").eval()
    before = {name: (id(m), type(m), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    expected = model(images())

    def broken(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        raise RuntimeError("the clock stopped")

    with pytest.raises(RuntimeError, match="the clock stopped"):
        fc.convert(model, example_inputs=images(), timer=broken, inplace=True)
    assert unchanged(model, before)
    assert torch.equal(model(images()), expected)
    runs: list[int] = []

    def fails_later(module: nn.Module, batch: Tensor) -> Tensor:
        runs.append(0)
        if len(runs) == 2:
            raise RuntimeError("no second run")
        return module(batch)

    with pytest.raises(RuntimeError, match="no second run"):
        fc.convert(model, example_inputs=images(), only_if_faster=False, forward_fn=fails_later, inplace=True)
    assert unchanged(model, before)
    assert torch.equal(model(images()), expected)
    converted_ = fc.convert(model, example_inputs=images(), only_if_faster=False, inplace=True)
    assert converted_ is model
    assert type(model[0]) is SparseQuantConv2d


def test_a_norm_that_was_replaced_or_is_used_elsewhere() -> None:
    model = trained(conv_net(), "ste", "frozen")
    norm = model[1]
    model[1] = nn.BatchNorm2d(16)
    with pytest.raises(
        ValueError, match=r"convert: layer '0' was trained with the BatchNorm2d behind it folded in, wh"
    ):
        converted(model)
    model[1] = norm
    hook = norm.register_forward_hook(lambda module, args, out: None)
    with pytest.raises(ValueError, match=r"which has hooks now"):
        converted(model)
    hook.remove()

    def peeking(module: nn.Module, batch: Tensor) -> Tensor:
        y = module[0](batch)
        return module[2:](module[1](y) + y)

    with pytest.raises(ValueError, match=r"but something else uses the output of one of the two now"):
        fc.convert(model, example_inputs=images(), forward_fn=peeking, only_if_faster=False)
    assert type(converted(model)[0]) is QuantConv2d
