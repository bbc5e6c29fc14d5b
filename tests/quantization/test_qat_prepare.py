"""`prepare` and the states of fake quantization: what is put on, what is learned, and what survives."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.errors import CheckpointError
from fastcompress.nn.mask import Mask, original_weight
from fastcompress.pruning import apply_mask, mask_of, masked, prune_channels, remove_mask
from fastcompress.quantization import (
    QATConfig,
    choose_qparams,
    fake_quantized,
    freeze_batchnorm,
    freeze_observers,
    set_fake_quant,
    weight_scales,
)
from tests.quantization.qat_models import OPTIMIZERS, conv_net, images, input_of, mlp, train, weight_of

METHODS = ["ste", "lsq"]


def rows(seed: int = 1) -> Tensor:
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


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


def test_ste_rounds_with_the_scales_of_quantize() -> None:
    model = mlp()
    weight = model[0].weight.detach().clone()
    prepared = fc.prepare(model, "W8A8", calibration_data=rows(), state="frozen").eval()
    scale = weight_scales(weight).numpy()[:, None]
    expected = np.clip(np.rint(weight.numpy() / scale), -127, 127).astype(np.float32) * scale
    assert np.array_equal(prepared[0].weight.detach().numpy(), expected)
    wanted, zero_point = choose_qparams(float(rows().min()), float(rows().max()))
    quantizer = input_of(prepared[0])
    assert (float(quantizer.scale), int(quantizer.zero_point)) == (wanted, zero_point)
    q = np.clip(np.rint(rows().numpy() * (np.float32(1) / np.float32(wanted))) + zero_point, 0, 255)
    assert np.array_equal(quantizer(rows()).numpy(), ((q - zero_point) * np.float32(wanted)).astype(np.float32))


def test_symmetric_activations() -> None:
    model = fc.prepare(mlp(), QATConfig(symmetric_activations=True), calibration_data=rows())
    peak = float(rows().abs().max())
    quantizer = input_of(model[0])
    assert (float(quantizer.scale), int(quantizer.zero_point)) == choose_qparams(-peak, peak, symmetric=True)


def test_the_moving_average() -> None:
    model = fc.prepare(nn.Linear(4, 4), QATConfig(observer_momentum=0.25), state="observe")
    batches = [torch.tensor([[0.0, 0, 0, 0]]), torch.tensor([[-1.0, 0, 2, 3]]), torch.tensor([[-3.0, 1, 1, 1]])]
    for batch in batches:
        model(batch)
    quantizer = input_of(model)
    # Zeros alone are no range; the first range is taken whole.
    assert (float(quantizer.low), float(quantizer.high)) == (-1.5, 2.5)
    model(torch.tensor([[torch.nan, 100.0, 0, 0]]))
    model(torch.tensor([[torch.inf, 100.0, 0, 0]]))
    model(torch.empty(0, 4))
    assert (float(quantizer.low), float(quantizer.high)) == (-1.5, 2.5)
    model.eval()
    model(torch.full((1, 4), 100.0))
    assert (float(quantizer.low), float(quantizer.high)) == (-1.5, 2.5)


def test_calibration_takes_the_mean_of_the_ranges() -> None:
    batches = [torch.tensor([[-1.0, 2.0]]), torch.tensor([[-3.0, 1.0]]), torch.tensor([[-2.0, 6.0]])]
    quantizer = input_of(fc.prepare(nn.Linear(2, 2), calibration_data=batches))
    torch.testing.assert_close((quantizer.low, quantizer.high), (torch.tensor(-2.0), torch.tensor(3.0)))


@pytest.mark.parametrize("pattern", [None, "4x4"])
def test_learned_scales_start_where_the_paper_says(pattern: str | None) -> None:
    model = mlp() if pattern is None else fc.prune(mlp(), 0.75, pattern)
    weight = model[0].weight.detach().clone()
    prepared = fc.prepare(model, QATConfig(method="lsq"))
    means = [row[row != 0].abs().mean() for row in weight if bool(row.any())]
    assert len(means) == (8 if pattern else 16)
    overall = torch.stack(means).mean()  # for channels without a weight
    mean = torch.stack([row[row != 0].abs().mean() if bool(row.any()) else overall for row in weight])
    torch.testing.assert_close(weight_of(prepared[0]).learned_scale(), 2 * mean / 127**0.5)
    quantizer = input_of(prepared[0])
    assert not quantizer.known
    prepared(rows())
    low, high = float(rows().min()), float(rows().max())
    zero_point = choose_qparams(low, high)[1]
    expected = 2 * rows().abs().mean() / max(zero_point, 255 - zero_point) ** 0.5
    assert int(quantizer.zero_point) == zero_point
    torch.testing.assert_close(quantizer.learned_scale(), expected)
    prepared(10 * rows())
    torch.testing.assert_close(quantizer.learned_scale(), expected)
    assert int(quantizer.zero_point) == zero_point


def test_learned_scales_that_clip_nothing() -> None:
    prepared = fc.prepare(mlp(), QATConfig(method="lsq", step_init="minmax"), calibration_data=rows())
    assert torch.equal(weight_of(prepared[0]).learned_scale(), weight_scales(mlp()[0].weight))
    assert input_of(prepared[0]).learned_scale().item() == choose_qparams(float(rows().min()), float(rows().max()))[0]


def test_learned_scales_learn_and_freeze() -> None:
    model = fc.prepare(conv_net(), QATConfig(method="lsq"), calibration_data=images())
    optimizer = OPTIMIZERS["adamw"](model)
    layer = model[3]
    start = weight_of(layer).learned_scale(), input_of(layer).learned_scale()
    train(model, optimizer)
    learned = weight_of(layer).learned_scale(), input_of(layer).learned_scale()
    assert all(bool((a != b).all()) for a, b in zip(start, learned, strict=True))
    freeze_observers(model)
    train(model, optimizer)  # weight decay and momentum move the parameter, but not what is in use
    assert torch.equal(weight_of(layer).scale, learned[0])
    assert torch.equal(input_of(layer).qparams()[0], learned[1])
    set_fake_quant(model, "train")
    assert torch.equal(weight_of(layer).learned_scale(), learned[0])


def test_the_gradient_of_a_learned_scale_is_scaled() -> None:
    model = fc.prepare(
        nn.Linear(8, 4, bias=False), QATConfig(method="lsq", step_init="minmax"), calibration_data=rows()
    )
    x = rows()
    model(x).sum().backward()
    quantizer, inputs = weight_of(model), input_of(model)
    rounded_x = inputs(x).detach().double()
    w, scale = original_weight(model).detach(), quantizer.learned_scale()
    v = w / scale[:, None]
    slope = (torch.round(v) - v).double()
    expected = (rounded_x.sum(dim=0) * slope).sum(dim=1) / (8 * 127) ** 0.5 / scale
    torch.testing.assert_close(quantizer.step.grad.double(), expected, rtol=1e-4, atol=1e-6)
    zero_point = int(inputs.zero_point)
    u = x * (1 / inputs.learned_scale())
    slope = torch.where((torch.round(u) + zero_point - 127.5).abs() <= 127.5, torch.round(u) - u, torch.nan).double()
    slope = torch.where(slope.isnan(), torch.where(u > 0, 255.0 - zero_point, 0.0 - zero_point), slope)
    expected = (model.weight.detach().double().sum(dim=0) * slope).sum() / (
        8 * max(zero_point, 255 - zero_point)
    ) ** 0.5
    torch.testing.assert_close(inputs.step.grad.double(), expected / inputs.learned_scale(), rtol=1e-4, atol=1e-6)


def test_sgd_moves_a_learned_scale_as_in_the_paper_and_adam_by_the_learning_rate() -> None:
    def after(optimizer: Any, lr: float) -> tuple[Tensor, Tensor, Tensor]:
        model = fc.prepare(nn.Linear(8, 4), QATConfig(method="lsq"), calibration_data=rows())
        quantizer = weight_of(model)
        before = quantizer.learned_scale()
        model(rows()).square().sum().backward()
        gradient = quantizer.step.grad * before  # the paper's
        optimizer(model.parameters(), lr=lr).step()
        return before, gradient, quantizer.learned_scale()

    before, gradient, now = after(torch.optim.SGD, 1e-3)
    torch.testing.assert_close(now, before - 1e-3 * gradient)
    assert bool((now != before).all())
    before, _, now = after(torch.optim.Adam, 0.01)
    torch.testing.assert_close((now / before - 1).abs(), torch.full((4,), 0.01), rtol=1e-3, atol=0.0)


def test_an_optimizer_that_oversteps_does_not_end_in_zero() -> None:
    model = fc.prepare(nn.Linear(8, 4), QATConfig(method="lsq"), calibration_data=rows())
    quantizer = weight_of(model)
    unit = quantizer.learned_scale()
    with torch.no_grad():
        quantizer.step.fill_(-3.0)
    assert torch.equal(quantizer.learned_scale(), unit * 2.0**-10)
    model(rows()).sum().backward()
    assert float(quantizer.step.grad.abs().min()) > 0.0


def test_learned_scales_that_start_in_zeros() -> None:
    layer = nn.Linear(8, 4)
    nn.init.zeros_(layer.weight)
    model = fc.prepare(layer, QATConfig(method="lsq"))
    model(torch.zeros(2, 8))
    inputs = input_of(model)
    assert weight_of(model).learned_scale().tolist() == pytest.approx([1 / 127] * 4)
    assert float(inputs.learned_scale()) == pytest.approx(1 / 127)
    assert int(inputs.zero_point) == 128


def test_a_norm_is_folded_into_what_is_rounded() -> None:
    model = fc.prepare(conv_net(), "W8A8", images())
    conv, norm = model[0], model[1]
    assert [weight_of(model[i]).norm is norm for i in (0, 3, 6)] == [True, False, False]
    factor = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).float().detach()
    factor[5] = 1.0  # gamma is 0 there
    folded = original_weight(conv).detach() * factor.reshape(-1, 1, 1, 1)
    scale = weight_scales(folded).reshape(-1, 1, 1, 1)
    expected = torch.round(folded / scale) * scale / factor.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(conv.weight.detach(), expected, rtol=2.0**-22, atol=0.0)
    assert bool(torch.isfinite(conv.weight).all())
    model(images()).square().sum().backward()
    assert float(norm.weight.grad[5]) != 0.0
    assert bool(torch.isfinite(original_weight(conv).grad).all())
    assert "0.parametrizations.weight.0.norm_frozen" in model.state_dict()
    assert sum(key.endswith("running_var") for key in model.state_dict()) == 1


def test_norms_are_folded_only_where_that_is_seen_and_wanted() -> None:
    assert weight_of(fc.prepare(conv_net())[0]).norm is None
    assert weight_of(fc.prepare(conv_net(), QATConfig(fold_batchnorm=False), images())[0]).norm is None

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    assert weight_of(fc.prepare(Twice(), "W8A8", images()).conv).norm is None


def test_frozen_norms_stay_with_their_running_statistics() -> None:
    model = fc.prepare(conv_net(), "W8A8", images())
    norm = model[1]
    before = norm.running_mean.clone()
    model.train()
    model(images())
    assert not torch.equal(norm.running_mean, before)
    freeze_batchnorm(model)
    freeze_observers(model)
    before = norm.running_mean.clone()
    model.train()
    in_training = model(images())
    assert torch.equal(norm.running_mean, before)
    assert torch.equal(model.eval()(images()), in_training)
    in_training.sum().backward()
    assert norm.weight.grad is not None
    twin = copy.deepcopy(model).train()
    assert torch.equal(twin(images()), in_training)
    assert weight_of(twin[0]).norm is twin[1]
    other = fc.prepare(conv_net(), "W8A8", images())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.train()(images()), in_training)
    assert not other[1].training


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_masks_survive(method: str, optimizer: str) -> None:
    pruned = fc.prune(conv_net(), 0.75, "4x4")
    model = fc.prepare(pruned, QATConfig(method=method), images())
    assert list(masked(model)) == ["0", "3", "6"]
    before = {name: original_weight(layer).detach().clone() for name, layer in masked(model).items()}
    made = OPTIMIZERS[optimizer](model)
    train(model, made)
    freeze_observers(model)
    train(model, made, start=5)
    for name, layer in masked(model).items():
        mask = mask_of(layer)
        assert isinstance(layer.parametrizations.weight[0], Mask)
        assert bool((layer.weight[~mask] == 0).all())
        assert bool((original_weight(layer).grad[~mask] == 0).all())
        assert float((original_weight(layer)[mask] != before[name][mask]).float().mean()) > 0.9


def test_masks_may_come_and_go_later() -> None:
    model = fc.prepare(mlp(), "W8A8", calibration_data=rows())
    mask = torch.zeros(16, 8, dtype=torch.bool)
    mask[::2] = True
    apply_mask(model[0], mask)
    assert bool((model[0].weight[~mask] == 0).all())
    assert float((model[0].weight[mask] != 0).float().mean()) > 0.9
    weight = model[0].weight.detach().clone()
    remove_mask(model[0])
    assert torch.equal(model[0].weight, weight)
    assert list(fake_quantized(model)) == ["0", "2"]
    again = fc.prune(model, 0.5, "4x4")
    assert list(masked(again)) == ["0", "2"]
    assert float((again[0].weight == 0).float().mean()) >= 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", ["train", "frozen"])
def test_training_resumes_bit_for_bit(method: str, state: str, tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = fc.prepare(conv_net(), QATConfig(method=method), images(), state="off")
        return model, OPTIMIZERS["adamw"](model)

    model, optimizer = fresh()
    set_fake_quant(model, "train")
    train(model, optimizer, 3)
    set_fake_quant(model, state)
    freeze_batchnorm(model)
    train(model, optimizer, 2, start=3)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "run.pt")
    train(model, optimizer, 3, start=5)
    resumed, other = fresh()
    saved, saved_optimizer = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.load_state_dict(saved)
    other.load_state_dict(saved_optimizer)
    train(resumed, other, 3, start=5)
    assert equal_states(model, resumed)


def test_deepcopies_are_independent() -> None:
    model = fc.prepare(conv_net(), QATConfig(method="lsq"), calibration_data=images()).eval()
    twin = copy.deepcopy(model)
    expected = model(images())
    assert torch.equal(twin(images()), expected)
    train(twin, OPTIMIZERS["momentum"](twin))
    set_fake_quant(twin, "off")
    assert torch.equal(model(images()), expected)


@pytest.mark.parametrize(("method", "backend"), [("ste", "eager"), ("lsq", "aot_eager")])
def test_compiled_training_is_the_same(method: str, backend: str) -> None:
    torch._dynamo.reset()
    runs = []
    for compiled in (False, True):
        model = fc.prepare(conv_net(), QATConfig(method=method, targets=("0",)), images())
        call: Any = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        for step in range(3):
            if step == 2:
                freeze_observers(model)
                freeze_batchnorm(model)
            model.train()
            model.zero_grad()
            call(images(step)).square().sum().backward()
        runs.append((model.state_dict(), [p.grad for p in model.parameters()]))
    torch._dynamo.reset()
    for key, value in runs[0][0].items():
        torch.testing.assert_close(runs[1][0][key], value)
    torch.testing.assert_close(runs[1][1], runs[0][1])


def test_scales_stay_in_float32() -> None:
    model = fc.prepare(mlp(), QATConfig(method="lsq"), calibration_data=rows())
    before = {key: value.clone() for key, value in model.state_dict().items() if "scale" in key or "step" in key}
    model.bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    out = model(rows().bfloat16())
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert original_weight(model[0]).grad.dtype == torch.bfloat16


def test_keyword_inputs_and_nan() -> None:
    model = fc.prepare(nn.Linear(8, 4), calibration_data=rows())
    assert torch.equal(model(input=rows()), model(rows()))
    broken = rows()
    broken[0, 0] = torch.nan
    assert bool(model(broken)[0].isnan().all())  # a loss shows it
    assert bool(torch.isfinite(model.eval()(broken)).all())  # as the kernels do


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
        ({"config": "W8A9"}, ValueError, "QATConfig: scheme 'W8A9' is unknown; valid are 'W8A8'; did you mean 'W8A8'"),
        ({"config": 8}, TypeError, "prepare: config must be a scheme such as 'W8A8' or a QATConfig, got 8"),
        ({"state": "on"}, ValueError, "prepare: state must be one of 'off', 'observe', 'train', 'frozen', got 'on'"),
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
