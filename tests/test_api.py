"""The public names, configuration errors, the record, and `cpu_info`."""

from __future__ import annotations

import copy
import json
import threading
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.ops import native
from fastcompress.record import CompressionRecord, LayerDecision


def test_every_public_name_exists() -> None:
    assert len(set(fc.__all__)) == len(fc.__all__)
    assert all(hasattr(fc, name) for name in fc.__all__)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"scheme": "w8a8"}, ValueError, "scheme 'w8a8' is unknown; valid are 'W8A8', 'W8A8-dynamic'"),
        ({"scheme": "W8A8-dynamics"}, ValueError, "did you mean 'W8A8-dynamic'"),
        ({"scheme": 8}, TypeError, "scheme must be one of 'W8A8', 'W8A8-dynamic', 'W4A8', 'W4A16', 'W8A16', got 8"),
        ({"observer": "max"}, ValueError, "observer 'max' is unknown; valid are 'minmax', 'moving_average'"),
        ({"weight_observer": "entropy"}, ValueError, "weight_observer 'entropy' is unknown; valid are 'minmax', 'mse'"),
        ({"targets": ()}, ValueError, "targets is empty"),
        ({"targets": 3}, TypeError, "targets must hold module names, 're:…' patterns or classes, got 3"),
        ({"ignore": (int,)}, TypeError, "ignore holds <class 'int'>; allowed are"),
        ({"ignore": "re:("}, ValueError, r"ignore: 're:\(' is no regular expression"),
        ({"fuse": 1}, TypeError, "fuse must be True or False, got 1"),
        ({"only_if_faster": None}, TypeError, "only_if_faster must be True or False"),
        ({"smoothquant": True}, TypeError, "smoothquant must be None or in"),
        ({"smoothquant": 1.5}, ValueError, r"smoothquant must lie in \[0, 1\], got 1.5"),
        ({"smoothquant": float("nan")}, ValueError, "smoothquant must lie in"),
        ({"observer_options": 3}, TypeError, "observer_options must map option names to values"),
        ({"scheme": "W8A8-dynamic", "observer_options": {"bins": 9}}, ValueError, "observer_options belong to static"),
        ({"scheme": "W8A8-dynamic", "equalize": True}, ValueError, "equalize=True needs scheme 'W8A8'"),
    ],
)
def test_config_names_the_field(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fc.QuantConfig(**kwargs)


def test_config_is_frozen_and_replaceable() -> None:
    config = fc.QuantConfig(ignore="head", smoothquant=1)
    with pytest.raises(AttributeError):
        config.fuse = False  # type: ignore[misc]
    assert config.replace(fuse=False).ignore == ("head",)
    assert json.loads(json.dumps(fc.QuantConfig(targets=(nn.Linear, "re:a.*")).to_json()))["targets"] == [
        "torch.nn.modules.linear:Linear",
        "re:a.*",
    ]


@pytest.mark.parametrize(
    ("arguments", "kwargs", "error", "message"),
    [
        ((3,), {}, TypeError, "quantize: model must be a torch.nn.Module, got int"),
        ((nn.Linear(2, 2), "int8"), {}, ValueError, "scheme 'int8' is unknown; valid are"),
        ((nn.Linear(2, 2),), {}, ValueError, "quantize: scheme 'W8A8' needs calibration_data: an iterable of batches"),
        ((nn.Linear(2, 2), "W8A8", 3), {}, TypeError, "calibration_data must be an iterable of batches"),
        ((nn.Linear(2, 2), "W8A8", []), {}, ValueError, "calibration_data yielded no batches"),
        ((nn.Linear(2, 2), "W8A8-dynamic"), {"forward_fn": 3}, TypeError, "forward_fn must be callable"),
        ((nn.Linear(2, 2), "W8A8-dynamic"), {"targets": "x"}, ValueError, "targets entry 'x' matches no layer"),
        (
            (nn.Linear(2, 2), fc.QuantConfig("W8A8-dynamic", smoothquant=0.5, bias_correction=True)),
            {},
            ValueError,
            "quantize: smoothquant and bias_correction needs calibration_data",
        ),
        (
            (nn.Linear(2, 2), fc.QuantConfig("W8A8", observer_options={"bins": 9}), [torch.ones(2)]),
            {},
            TypeError,
            "observer 'minmax' has no option 'bins'",
        ),
    ],
)
def test_quantize_argument_errors(
    arguments: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fc.quantize(*arguments, **kwargs)


def test_keywords_override_the_config() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    q = fc.quantize(model, fc.QuantConfig("W8A8-dynamic", ignore="0"), ignore="1", only_if_faster=False)
    assert [type(m).__name__ for m in q] == ["QuantLinear", "Linear"]


def test_a_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"quantize: Sequential cannot be copied .*; pass inplace=True"):
        fc.quantize(model, "W8A8-dynamic")
    assert fc.quantize(model, "W8A8-dynamic", only_if_faster=False, inplace=True) is model


def quantized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LSTM(4, 4))
    return fc.quantize(model, "W8A8", [torch.randn(3, 4)], timer=lambda fns: {"dense": 2.0, "int8": 1.0})


def test_record_round_trip() -> None:
    record = quantized()._fastcompress_record
    assert CompressionRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert record.counts() == {"quantized": 1, "skipped": 1, "fused": 1}
    assert record["0"].speedup == 2.0
    with pytest.raises(KeyError):
        record["nothing"]


def test_record_survives_deepcopy() -> None:
    q = quantized()
    assert copy.deepcopy(q)._fastcompress_record == q._fastcompress_record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, "record: layers must be a list"),
        ({"layers": [3]}, "record: layer 0: must be an object"),
        ({"layers": [{"name": "a", "kind": "b"}]}, "record: layer 0: field 'action' is missing"),
        (
            {"layers": [{"name": "a", "kind": "b", "action": "eaten"}]},
            "layer 0: action 'eaten' is not one of quantized",
        ),
        ({"layers": [{"name": "a", "kind": "b", "action": "kept", "x": 1}]}, "layer 0: unknown field 'x'"),
        ({"layers": [{"name": 1, "kind": "b", "action": "kept"}]}, "layer 0: name must be a string, got 1"),
        (
            {"layers": [{"name": "a", "kind": "b", "action": "kept", "shapes": [[-1]]}]},
            "layer 0: shapes must be lists of non-negative integers",
        ),
        (
            {"layers": [{"name": "a", "kind": "b", "action": "kept", "dense_seconds": float("inf")}]},
            "layer 0: dense_seconds must be null or a number of seconds",
        ),
        ({"scheme": None}, "record: scheme must be a string"),
        ({"config": []}, "record: config must be an object"),
        ({"more": 1}, "record: unknown field 'more'"),
    ],
)
def test_record_refuses_wrong_json(change: dict[str, Any], message: str) -> None:
    data = CompressionRecord("W8A8", {}, (LayerDecision("a", "Linear", "kept"),), "1").to_json()
    with pytest.raises(ValueError, match=message):
        CompressionRecord.from_json(data | change)
    with pytest.raises(ValueError, match="record: must be an object"):
        CompressionRecord.from_json(None)


def test_convert_leaves_finished_layers_alone() -> None:
    q = quantized()
    assert fc.convert(q, inplace=True) is q
    copied = fc.convert(q)
    assert copied is not q
    assert torch.equal(copied[0].packed, q[0].packed)
    with pytest.raises(TypeError, match=r"convert: model must be a torch.nn.Module, got int"):
        fc.convert(3)  # type: ignore[type-var]


def test_save_and_load_keep_decisions(tmp_path: Any) -> None:
    q = quantized()
    fc.save(q, tmp_path / "out")
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LSTM(4, 4))
    loaded = fc.load(tmp_path / "out", model=model)
    assert loaded._fastcompress_record == q._fastcompress_record
    assert torch.equal(loaded[0](torch.ones(2, 4)), q[0](torch.ones(2, 4)))


def test_cpu_info() -> None:
    info = fc.cpu_info()
    text = str(info)
    assert info.isa in text
    if native.module is None:
        assert info.isa == "reference"
    else:
        assert info.isa in info.supported
        chosen = {kernel["family"] for kernel in info.kernels if kernel["chosen"]}
        assert {"linear_w8a8", "conv2d_w8a8"} <= chosen
        assert all(str(kernel["kernel"]) in text for kernel in info.kernels)


def test_cpu_info_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    info = fc.cpu_info()
    assert (info.isa, info.kernels) == ("reference", ())
    assert "instruction set  reference (built: none; runs here: none)" in str(info)
