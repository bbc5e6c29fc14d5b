"""Fake quantization of four-bit weights in groups: what is rounded, to what, and which gradients pass."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.nn.mask import original_weight
from fastcompress.quantization import (
    DynamicInputFakeQuantize,
    QATConfig,
    fake_quantized,
    freeze_observers,
    set_fake_quant,
)
from tests.quantization.qat_group_cases import (
    INPUTS,
    SCHEMES,
    codes_of,
    group_net,
    groups_of,
    prepared,
    rounded_rows,
    steps,
    stored,
    tokens,
)
from tests.quantization.qat_models import METHODS, conv_net


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("group_size", "size"), [(None, INPUTS), (-1, INPUTS), (16, 16), (8, 8)])
def test_weights_are_rounded_as_the_definition_says(group_size: int | None, size: int, dtype: str) -> None:
    layer = nn.Linear(INPUTS, 24)
    with torch.no_grad():
        layer.weight[3, :16] = 0.0
        layer.weight[4] *= 2.0**-110
        layer.weight[5] *= 1e4
    expected = codes_of(layer.weight, size, dtype)
    model = fc.prepare(layer, QATConfig("W4A16", group_size=group_size, scale_dtype=dtype))
    assert np.array_equal(model.weight.detach().numpy(), expected[2])
    freeze_observers(model)
    assert np.array_equal(groups_of(model).scale.numpy(), expected[1])
    assert np.array_equal(model.weight.detach().numpy(), expected[2])


def test_the_default_group_has_128_inputs() -> None:
    layer = nn.Linear(300, 4)
    weight = layer.weight.detach().clone()
    model = fc.prepare(layer, "W4A8")
    assert groups_of(model).scale.shape == (4, 3)
    assert np.array_equal(model.weight.detach().numpy(), codes_of(weight, 128)[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_of_w4a8_are_rounded_by_the_row(dtype: torch.dtype) -> None:
    model = fc.prepare(nn.Linear(INPUTS, 4), "W4A8").to(dtype)
    quantizer = model.input_fake_quant
    assert isinstance(quantizer, DynamicInputFakeQuantize)
    x = (tokens() * torch.logspace(-3, 3, 24)[:, None]).to(dtype).reshape(2, 12, INPUTS)
    x[0, 3] = 0.0
    x[1, 2] *= 2.0**-20
    for training in (True, False):
        found = quantizer.train(training)(x)
        assert found.dtype == dtype
        assert torch.equal(found, torch.from_numpy(rounded_rows(x)).to(dtype))
    assert quantizer(x[:, :0]).shape == (2, 0, INPUTS)
    broken = x.clone()
    broken[0, 0, 1], broken[0, 1, 2] = torch.nan, -torch.inf
    assert quantizer(broken).isnan().all(dim=-1).sum() == 2
    assert torch.equal(quantizer(broken)[0, 2:], quantizer(x)[0, 2:])
    set_fake_quant(model, "off")
    assert quantizer(x) is x


def test_activations_are_multiplied_by_the_reciprocal() -> None:
    """Values close to half a step, where a division would round some of them to the other side."""
    generator = torch.Generator().manual_seed(0)
    peak = torch.rand(200, 1, generator=generator) + 0.5
    halves = torch.randint(-126, 126, (200, INPUTS - 1), generator=generator) + 0.5
    x = torch.cat([peak, halves * (peak / 127)], dim=1)
    expected = rounded_rows(x)
    scale = np.abs(x.numpy()).max(axis=1, keepdims=True) * (np.float32(1) / np.float32(127))
    assert (np.rint(x.numpy() / scale) * scale != expected).sum() > 20
    assert np.array_equal(fc.prepare(nn.Linear(INPUTS, 4), "W4A8").input_fake_quant(x).numpy(), expected)


def test_activations_of_w4a16_stay() -> None:
    model = fc.prepare(group_net(), "W4A16")
    assert not [name for name in model.state_dict() if "input_fake_quant" in name]
    layer = model[0]
    expected = nn.functional.linear(tokens(), layer.weight, layer.bias)
    assert torch.equal(layer(tokens()), expected)
    assert torch.equal(layer(input=tokens()), expected)


def test_straight_through_passes_everything_while_scales_follow_the_weights() -> None:
    model = fc.prepare(nn.Linear(INPUTS, 24), QATConfig("W4A8", group_size=16))
    w = original_weight(model).detach().numpy()
    scale = np.repeat(codes_of(original_weight(model), 16)[1], 16, axis=1)[:, :INPUTS]
    assert (np.rint(w / scale) > 7).any()  # half a step beyond the last integer
    x = tokens().requires_grad_()
    model(x).sum().backward()
    # With ones from behind, the gradient of a weight is the sum of its rounded inputs: the clipped ones have it too.
    rows = torch.from_numpy(rounded_rows(x))
    expected = torch.nn.functional.linear(torch.ones(24, 24), rows.t())
    torch.testing.assert_close(original_weight(model).grad, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, torch.ones(24, 24) @ model.weight.detach(), rtol=1e-5, atol=1e-5)


def test_straight_through_stops_beyond_frozen_scales() -> None:
    model = fc.prepare(nn.Linear(INPUTS, 24, bias=False), QATConfig("W4A16", group_size=16), state="frozen")
    with torch.no_grad():
        original_weight(model).mul_(1.5)
    scale = groups_of(model).scale.numpy()
    wide = np.repeat(scale, 16, axis=1)[:, :INPUTS]
    v = np.rint(original_weight(model).detach().numpy() / wide)
    inside = (v >= -8) & (v <= 7)
    assert 20 < (~inside).sum() < inside.sum()
    model(tokens()).sum().backward()
    found = original_weight(model).grad
    assert np.array_equal(found.numpy() != 0, inside)
    full = tokens().sum(dim=0).expand(24, INPUTS)
    torch.testing.assert_close(found[torch.from_numpy(inside)], full[torch.from_numpy(inside)], rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_learned_scale_is_that_of_the_paper() -> None:
    model = fc.prepare(nn.Linear(INPUTS, 24, bias=False), QATConfig("W4A16", "lsq", group_size=16, step_init="minmax"))
    quantizer = groups_of(model)
    with torch.no_grad():
        quantizer.step.mul_(0.6)
    unit = quantizer.unit.numpy()
    scale = stored(quantizer.step.detach().numpy() * unit, "bfloat16")
    assert np.array_equal(quantizer.learned_scale().numpy(), scale)
    model(tokens()).sum().backward()
    w = original_weight(model).detach().numpy()
    x = tokens().double().sum(dim=0).numpy()
    expected, inside = np.zeros(scale.shape), np.zeros(w.shape, bool)
    for g, start in enumerate(range(0, INPUTS, 16)):
        part = slice(start, min(start + 16, INPUTS))
        v = w[:, part] / scale[:, g : g + 1]
        r = np.rint(v)
        inside[:, part] = (r >= -8) & (r <= 7)
        slope = np.where(r > 7, 7.0, np.where(r < -8, -8.0, r - v.astype(np.float64)))
        count = part.stop - part.start  # 16, 16, 8
        expected[:, g] = (x[part] * slope).sum(axis=1) / np.sqrt(count * 7.0)
    assert 0 < (~inside).sum() < inside.sum()
    found = quantizer.step.grad.double().numpy() * unit
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert np.array_equal(original_weight(model).grad.numpy() != 0, inside)


def test_learned_scales_start_where_the_paper_says() -> None:
    model = fc.prune(group_net(), 0.75, "4x4", ignore="2")
    w = model[0].weight.detach().numpy()
    made = fc.prepare(model, QATConfig("W4A8", "lsq", group_size=8))
    groups = w.reshape(32, 5, 8)
    count = (groups != 0).sum(axis=2)
    assert (count == 0).any()
    start = 2 * np.abs(groups).sum(axis=2) / np.maximum(count, 1) / np.sqrt(7)
    start = np.where(count > 0, start, start[count > 0].mean())
    found = groups_of(made[0]).learned_scale()
    torch.testing.assert_close(found, torch.from_numpy(start).float(), rtol=2.0**-8, atol=0.0)  # bfloat16's rounding
    assert torch.equal(found, found.bfloat16().float())
    assert torch.equal(found, groups_of(made[0]).scale)


def test_a_learned_scale_never_reaches_zero() -> None:
    layer = nn.Linear(INPUTS, 4)
    nn.init.zeros_(layer.weight)
    model = fc.prepare(layer, QATConfig("W4A8", "lsq", group_size=16))
    quantizer = groups_of(model)
    unit = quantizer.learned_scale()
    assert torch.equal(unit, torch.full((4, 3), 1 / 7).bfloat16().float())
    for value in (-3.0, 0.0):
        with torch.no_grad():
            quantizer.step.fill_(value)
        assert torch.equal(quantizer.learned_scale(), unit * 2.0**-10)
    model(tokens()).square().sum().backward()
    assert bool(torch.isfinite(quantizer.step.grad).all())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
def test_freezing_keeps_scales(scheme: str, method: str) -> None:
    model = prepared(scheme, method)
    before = [model[i].weight.detach().clone() for i in (0, 2)]
    freeze_observers(model)
    assert all(torch.equal(model[i].weight, w) for i, w in zip((0, 2), before, strict=True))
    scales = [groups_of(model[i]).scale.clone() for i in (0, 2)]
    assert all(torch.equal(s, s.bfloat16().float()) for s in scales)
    steps(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1))
    assert not torch.equal(model[0].weight, before[0])
    for i, scale in zip((0, 2), scales, strict=True):
        assert torch.equal(groups_of(model[i]).scale, scale)
        expected = codes_of(original_weight(model[i]), 16, scale=scale.numpy())[2]
        assert np.array_equal(model[i].weight.detach().numpy(), expected)
    set_fake_quant(model, "train")
    if method == "lsq":
        assert torch.equal(groups_of(model[0]).learned_scale(), scales[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", ["off", "observe", "train", "frozen"])
def test_every_parameter_has_a_gradient_in_every_state(method: str, state: str) -> None:
    model = fc.prepare(group_net(), QATConfig("W4A8", method, group_size=16), state=state)
    model(tokens()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    if state in ("off", "observe"):
        assert torch.equal(model(tokens()), group_net()(tokens()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_copies_and_resumed_runs_go_on_with_the_same_bits(method: str, scheme: str) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = fc.prepare(group_net(), QATConfig(scheme, method, group_size=16))
        return model, torch.optim.Adam(model.parameters(), lr=1e-2)

    straight, optimizer = start()
    steps(straight, optimizer)
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    twin = copy.deepcopy(straight)
    assert torch.equal(twin(tokens()), straight(tokens()))
    steps(straight, optimizer, start=4)
    resumed, other = start()
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    steps(resumed, other, start=4)
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    assert not torch.equal(twin.state_dict()["0.bias"], straight.state_dict()["0.bias"])
    wrong = fc.prepare(group_net(), QATConfig(scheme, method, group_size=8))
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.parametrizations\.weight\.0\.scale"):
        wrong.load_state_dict(saved[0])


def test_scales_stay_in_float32() -> None:
    model = prepared("W4A8", "lsq")
    before = {k: v.clone() for k, v in model.state_dict().items() if "scale" in k or "step" in k or "unit" in k}
    model.bfloat16()
    assert len(before) == 6
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model(tokens().bfloat16()).dtype == torch.bfloat16


def test_convolutions_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = fc.prepare(conv_net(), "W4A8")
    assert list(fake_quantized(model)) == ["6"]
    assert "prepare: 2 layers stay float:\n  0: W4A8 quantizes linear layers only\n  3: W4A8" in caplog.text
    with pytest.raises(ValueError, match=r"no layer can be prepared:\n  0: W4A16 quantizes linear layers only"):
        fc.prepare(conv_net(), "W4A16", targets="0")


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"group_size": 12}, ValueError, r"group_size must be None, -1 \(the whole row\) or a multiple of 8, got 12"),
        ({"group_size": 0}, ValueError, "group_size must be"),
        ({"group_size": -8}, ValueError, "group_size must be"),
        ({"group_size": 16.0}, TypeError, "group_size must be None, -1 or a multiple of 8, got 16.0"),
        ({"group_size": True}, TypeError, "group_size must be"),
        ({"scale_dtype": "float8"}, ValueError, "scale_dtype 'float8' is unknown"),
        ({"scale_dtype": torch.bfloat16}, TypeError, "scale_dtype must be one of"),
        ({"symmetric_activations": True}, ValueError, "symmetric_activations=True belongs to W8A8, scheme is 'W4A8'"),
        ({"observer_momentum": 0.5}, ValueError, "observer_momentum=0.5 belongs to W8A8"),
        ({"scheme": "W8A8", "group_size": 16}, ValueError, "group_size=16 belongs to W4A8, W4A16, scheme is 'W8A8'"),
        ({"scheme": "W8A8", "scale_dtype": "float32"}, ValueError, "scale_dtype='float32' belongs to W4A8, W4A16"),
        ({"scheme": "W8A16"}, ValueError, "scheme 'W8A16' is unknown; valid are 'W8A8', 'W4A8', 'W4A16'"),
    ],
    ids=str,
)
def test_wrong_configurations_name_the_field(fields: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=rf"QATConfig: {message}"):
        QATConfig(**{"scheme": "W4A8", **fields})
