"""`prepare` and `set_fake_quant`: what is put on, in which states, and what is refused."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.errors import CheckpointError
from fastcompress.nn.mask import original_weight
from fastcompress.pruning import prune_channels
from fastcompress.quantization import (
    QATConfig,
    fake_quantized,
    freeze_batchnorm,
    freeze_observers,
    set_fake_quant,
)
from tests.quantization.qat_models import METHODS, conv_net, images, input_of, mlp, rows, weight_of


@pytest.mark.parametrize("method", METHODS)
def test_state_keys_and_parameters_are_stable(method: str) -> None:
    model = mlp()
    parameters = {id(p) for p in model.parameters()}
    prepared = fc.prepare(model, QATConfig(method=method, targets=("0",)), inplace=True)
    assert prepared is model
    assert list(fake_quantized(model)) == ["0"]
    step, unit = (["step"], ["unit"]) if method == "lsq" else ([], [])
    mean = ["mean_magnitude"] if method == "lsq" else []
    assert list(model.state_dict()) == [
        "0.bias",
        "0.parametrizations.weight.original",
        *(f"0.parametrizations.weight.0.{key}" for key in [*step, "state", "scale", *unit, "norm_frozen"]),
        *(f"0.input_fake_quant.{key}" for key in [*step, "state", "scale", *unit, "zero_point", "low", "high", *mean]),
        "2.weight",
        "2.bias",
    ]
    now = [id(p) for p in model.parameters()]
    assert parameters <= set(now)
    assert len(now) == len(parameters) + (2 if method == "lsq" else 0)
    for state in ("off", "observe", "train", "off", "train"):
        set_fake_quant(model, state)
        model(rows())
    freeze_observers(model)
    assert [id(p) for p in model.parameters()] == now


@pytest.mark.parametrize("state", ["off", "observe"])
@pytest.mark.parametrize("method", METHODS)
def test_without_rounding_the_model_is_the_float_model(method: str, state: str) -> None:
    model = conv_net()
    expected = model(images())
    expected.sum().backward()
    other = fc.prepare(conv_net(), QATConfig(method=method), images(), state=state)
    found = other(images())
    found.sum().backward()
    assert torch.equal(found, expected)
    for index in (0, 3, 6):
        assert torch.equal(original_weight(other[index]).grad, model[index].weight.grad)
    # DistributedDataParallel waits for the gradient of every parameter.
    assert all(p.grad is not None for p in other.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", ["train", "frozen"])
def test_every_parameter_has_a_gradient_in_every_state(method: str, state: str) -> None:
    model = fc.prepare(conv_net(), QATConfig(method=method), calibration_data=images(), state=state)
    model(images()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    steps = {name: float(p.grad.abs().sum()) for name, p in model.named_parameters() if name.endswith("step")}
    assert len(steps) == (6 if method == "lsq" else 0)
    assert all((value > 0) == (state == "train") for value in steps.values())


def test_an_unseen_input_stays_unrounded(caplog: pytest.LogCaptureFixture) -> None:
    model = fc.prepare(mlp())
    with pytest.raises(ValueError, match=r"'frozen' fixes the input ranges, but no layer has seen an input"):
        freeze_observers(model)
    assert weight_of(model[0]).mode == "train"
    assert torch.equal(input_of(model[0].eval())(rows()), rows())
    model[0].train()(rows())
    with caplog.at_level(logging.WARNING, "fastcompress"):
        freeze_observers(model)
    assert "these layers saw no input, which stays unrounded: 2" in caplog.text


def test_layers_that_stay_float_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).double(), nn.Conv2d(4, 4, 3, padding_mode="reflect"))
    model[0].register_forward_hook(lambda module, args, out: None)
    with pytest.raises(ValueError, match=r"no layer can be prepared:\n  0: it has hooks[^\n]*\n  1: [^\n]*\n  2: pad"):
        fc.prepare(model)
    with caplog.at_level(logging.WARNING, "fastcompress"):
        fc.prepare(nn.Sequential(nn.Linear(8, 8), model[1]))
    assert "prepare: 1 layers stay float:\n  1: its weight is torch.float64" in caplog.text


def test_targets_and_ignore() -> None:
    assert list(fake_quantized(fc.prepare(conv_net(), targets=nn.Conv2d, ignore="0"))) == ["3"]
    assert list(fake_quantized(fc.prepare(conv_net(), QATConfig(ignore=("0",)), ignore="re:[36]"))) == ["0"]
    with pytest.raises(ValueError, match=r"prepare: targets entry 'fc' matches no layer that can be prepared"):
        fc.prepare(conv_net(), targets="fc")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"config": "W8A9"},
            ValueError,
            "QATConfig: scheme 'W8A9' is unknown; valid are 'W8A8', 'W4A8', 'W4A16'; did you",
        ),
        ({"config": 8}, TypeError, "prepare: config must be a scheme such as 'W8A8' or a QATConfig, got 8"),
        ({"state": "on"}, ValueError, "prepare: state 'on' is unknown; valid are 'off', 'observe', 'train', 'frozen'"),
        ({"state": "frozen"}, ValueError, "prepare: state 'frozen' needs calibration_data"),
        ({"forward_fn": 3}, TypeError, "prepare: forward_fn must be callable"),
        ({"calibration_data": []}, ValueError, "prepare: calibration_data yielded no batches"),
        ({"calibration_data": 3}, TypeError, "prepare: calibration_data must be an iterable of batches"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = mlp()
    before = list(model.state_dict())
    with pytest.raises(kind) as caught:
        fc.prepare(model, inplace=True, **arguments)
    assert str(caught.value).startswith(message)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("method", "lsg", ValueError),
        ("method", None, TypeError),
        ("step_init", "max", ValueError),
        ("observer_momentum", 0.0, ValueError),
        ("observer_momentum", float("nan"), ValueError),
        ("observer_momentum", "0.1", TypeError),
        ("symmetric_activations", 1, TypeError),
        ("fold_batchnorm", None, TypeError),
        ("targets", (), ValueError),
        ("ignore", (3,), TypeError),
    ],
)
def test_wrong_configurations_name_the_field(field: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"QATConfig: {field} .*"):
        QATConfig(**{field: value})


def test_wrong_states() -> None:
    model = fc.prepare(mlp())
    with pytest.raises(ValueError, match=r"state 'trian' is unknown; .*did you mean 'train'\?"):
        set_fake_quant(model, "trian")
    with pytest.raises(TypeError, match=r"state must be one of"):
        set_fake_quant(model, 1)  # type: ignore[arg-type]
    for function in (freeze_batchnorm, freeze_observers):
        with pytest.raises(ValueError, match=r"Sequential has no fake quantization; call fastcompress.prepare first"):
            function(mlp())
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
            function(3)  # type: ignore[arg-type]
    state = model.state_dict()
    state["0.input_fake_quant.state"] = torch.tensor(9, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"0\.input_fake_quant\.state must hold one number from 0 to 3, got 9"):
        model.load_state_dict(state)


def test_other_functions_refuse_a_prepared_model(tmp_path: Path) -> None:
    model = fc.prepare(mlp(), calibration_data=rows())
    with pytest.raises(ValueError, match=r"layer '0' \(Linear\) is prepared already; convert the model first"):
        fc.prepare(model)
    assert list(fake_quantized(fc.prepare(fc.prepare(mlp(), targets="0"), targets="2"))) == ["0", "2"]
    with pytest.raises(ValueError, match=r"quantize: layer '0' has fake quantization .* call fastcompress.convert"):
        fc.quantize(model, "W8A8", rows())
    with pytest.raises(ValueError, match=r"layer '0' .* has the parametrization WeightFakeQuantize"):
        prune_channels(model, rows())
    with pytest.raises(CheckpointError, match=r"WeightFakeQuantize has no place in the file format"):
        fc.save(model, tmp_path / "out")


def test_an_error_on_the_way_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_net()
    before = {name: (id(m), type(m)) for name, m in model.named_modules()}
    keys = list(model.state_dict())

    def fail(*args: Any) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(sys.modules["fastcompress.quantization.prepare"], "set_fake_quant", fail)
    with pytest.raises(RuntimeError, match="no more"):
        fc.prepare(model, "W8A8", images(), inplace=True)
    assert {name: (id(m), type(m)) for name, m in model.named_modules()} == before
    assert sorted(model.state_dict()) == sorted(keys)
    assert not model[0]._forward_pre_hooks
