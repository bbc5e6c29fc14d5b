"""`explain`: the right facts for every layer, with and without a record, with and without timing."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fastcompress.nn import QuantLinear
from fastcompress.record import RECORD_ATTRIBUTE, CompressionRecord, LayerDecision
from fastcompress.report import Explanation, explain, isa_name
from tests.formats.models import make_float, make_input, make_quantized


def make_explained() -> nn.Module:
    model = make_quantized()
    decisions = (
        LayerDecision(
            "conv", "Conv2d", "quantized", "int8 measured 4.00× as fast", ((2, 3, 6, 7),), 4e-3, 1e-3, "relu"
        ),
        LayerDecision("norm", "BatchNorm2d", "fused", "folded into conv"),
        LayerDecision("act", "ReLU", "fused", "fused into conv"),
        LayerDecision("hidden", "Linear", "quantized", "not measured"),
        LayerDecision("out", "Linear", "kept", "int8 measured 0.50× as fast, dense is kept", ((2, 5),), 1e-6, 2e-6),
    )
    setattr(model, RECORD_ATTRIBUTE, CompressionRecord("W8A8", {}, decisions, "0.1.0"))
    return model


def rows(explanation: Explanation) -> dict[str, object]:
    return {row.name: row for row in explanation.rows}


def test_facts_of_every_layer() -> None:
    found = explain(make_explained())
    assert [row.name for row in found.rows] == ["conv", "norm", "act", "hidden", "out"]
    assert found.counts() == {"quantized": 2, "fused": 2, "kept": 1}
    assert (found.scheme, found.isa, found.threads) == ("W8A8", isa_name(), torch.get_num_threads())
    assert found.total_seconds is None
    by_name = rows(found)
    conv = by_name["conv"]
    assert (conv.kind, conv.shape, conv.input_mode, conv.activation) == ("Conv2d", "3×3 3→4", "static", "relu")
    assert conv.kernel.startswith("conv2d_w8a8")
    assert conv.isa
    assert (conv.dense_seconds, conv.quantized_seconds, conv.speedup) == (4e-3, 1e-3, 4.0)
    assert by_name["hidden"].input_mode == "dynamic"
    assert by_name["hidden"].kernel.startswith("linear_w8a8")
    out = by_name["out"]
    assert (out.action, out.kernel, out.speedup, out.shape) == ("kept", "", 0.5, "5→6")
    assert out.reason == "int8 measured 0.50× as fast, dense is kept"


def test_timing_adds_up_and_leaves_no_hooks() -> None:
    model = make_explained()
    found = explain(model, make_input())
    timed = [row for row in found.rows if row.action != "fused"]
    assert all(row.seconds is not None and row.seconds > 0 for row in timed)
    assert found.total_seconds is not None
    assert sum(row.seconds for row in timed) <= found.total_seconds * 1.5
    assert all(0 < row.share < 1 for row in timed)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_removed_after_a_failure() -> None:
    model = make_explained()
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        explain(model, torch.rand(1, 5, 6, 7))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_mode_is_given_back() -> None:
    model = make_float().train()
    statistics = model.norm.running_mean.clone()
    explain(model, make_input())
    assert model.training
    assert model.norm.training
    assert torch.equal(model.norm.running_mean, statistics)


def test_layers_that_never_run_take_no_time() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    by_name = rows(explain(Lazy(), torch.rand(1, 3)))
    assert by_name["unused"].seconds == 0.0
    assert by_name["used"].seconds > 0.0


def test_text_names_kernel_and_reason() -> None:
    found = explain(make_explained(), make_input())
    text = str(found)
    for part in (
        "W8A8: 2 quantized, 2 fused, 1 kept",
        "conv",
        "relu",
        "4.00×",
        "torch (kept)",
        "0.50×",
        "everything else",
    ):
        assert part in text
    assert "norm" not in text  # fused modules are told by what they are fused into
    assert max(map(len, text.splitlines())) <= 200


def test_float_model_and_missing_record() -> None:
    assert explain(make_float()).counts() == {"dense": 3}
    model = nn.Sequential(QuantLinear.from_float(nn.Linear(3, 3), input_mode="dynamic"))
    assert explain(model).counts() == {"quantized": 1}
    assert explain(nn.ReLU()).rows == ()
    assert "no layers" in str(explain(nn.ReLU()))


def test_names_with_brackets_are_printed_as_they_are() -> None:
    model = nn.ModuleDict({"[red]x": nn.Linear(2, 2)})
    assert "[red]x" in str(explain(model))


def test_corrupt_header_is_told_not_raised() -> None:
    model = make_explained()
    model.hidden.packed[:8] = 0
    assert rows(explain(model))["hidden"].kernel == "unreadable blob, see fastcompress.verify"


def test_json_form() -> None:
    data = json.loads(json.dumps(explain(make_explained(), make_input()).to_dict()))
    assert data["rows"][0]["name"] == "conv"
    assert data["scheme"] == "W8A8"


def test_model_must_be_a_module() -> None:
    with pytest.raises(TypeError, match=r"explain: model must be a torch\.nn\.Module, got str"):
        explain("model")  # type: ignore[arg-type]
