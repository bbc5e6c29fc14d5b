"""The four algorithms through `quantize`: what they are for, and that a failure leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import GroupQuantLinear
from fastcompress.record import RECORD_ATTRIBUTE, record_of
from tests.formats.models import Snapshot
from tests.quantization.groupwise.problems import Stack, correlated, normal, tiny_llama, tokens

ALGORITHMS = ("rtn", "hqq", "gptq", "awq")
SCHEMES = ("W4A8", "W4A16", "W8A16")


def wins(functions: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    return {name: 2.0 if name == "dense" else 1.0 for name in functions}


def batches() -> list[Tensor]:
    return [correlated(64, 12, seed=seed) for seed in (1, 5, 9)]


def quantize(model: nn.Module, algorithm: str, data: Any, scheme: str = "W4A16", **options: Any) -> Any:
    config = fc.QuantConfig(scheme, algorithm=algorithm, group_size=8, **options)
    return fc.quantize(model, config, data, progress=False, timer=wins)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_with_every_scheme(algorithm: str, scheme: str) -> None:
    model = Stack()
    before = Snapshot(model)
    q = quantize(model, algorithm, batches(), scheme)
    before.assert_unchanged(model)
    layers = {name: layer for name, layer in q.named_modules() if isinstance(layer, GroupQuantLinear)}
    assert layers.keys() == {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    record = record_of(q)
    assert record is not None
    assert record.scheme == scheme
    assert record.config["algorithm"] == algorithm
    for name, layer in layers.items():
        assert record[name].action == "quantized"
        assert algorithm == "rtn" or algorithm in record[name].reason
        assert record[name].kernel == layer.kernel_name()
    assert fc.verify(q) == list(layers)
    if algorithm != "rtn":
        assert algorithm in str(fc.explain(q))
    assert not q.training


def weight_only_error(model: nn.Module, q: nn.Module) -> float:
    """Squared error over the squared output: on data, all layers together."""
    with torch.no_grad():
        pairs = [(model(x), q(x)) for x in batches()]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs))


def test_gptq_is_better_than_rounding_to_the_nearest() -> None:
    model = Stack(48)
    errors = {name: weight_only_error(model, quantize(model, name, batches())) for name in ("rtn", "gptq")}
    assert errors["gptq"] < errors["rtn"]


def test_weights_differ_from_those_of_rtn() -> None:
    model = Stack()
    made = {name: quantize(model, name, batches()) for name in ALGORITHMS}
    for name in ("hqq", "gptq", "awq"):
        layers = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        assert any(
            not torch.equal(made[name].get_submodule(n).weight, made["rtn"].get_submodule(n).weight) for n in layers
        )


def test_algorithm_options_reach_the_algorithm() -> None:
    model = Stack()
    plain, other = (
        quantize(model, "gptq", batches(), algorithm_options=options) for options in ({}, {"act_order": False})
    )
    assert not torch.equal(plain.blocks[0].up.weight, other.blocks[0].up.weight)


def test_the_same_data_give_the_same_bits() -> None:
    model = Stack()
    for name in ALGORITHMS:
        one, two = quantize(model, name, batches()), quantize(model, name, iter(batches()))
        for key, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[key]), (name, key)


def test_checkpoint_dir_resumes_to_the_same_bits(tmp_path: Path) -> None:
    model = Stack()
    whole = quantize(model, "gptq", batches())
    options = {"algorithm_options": {"checkpoint_dir": tmp_path / "blocks"}}
    quantize(model, "gptq", batches(), **options)
    files = sorted((tmp_path / "blocks").iterdir())
    assert len(files) >= 3
    files[-1].unlink()  # as if it had been interrupted in the last stage
    resumed = quantize(model, "gptq", batches(), **options)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


def test_awq_folds_scales_into_a_copy() -> None:
    model = tiny_llama(layers=2)
    before = Snapshot(model)
    q = fc.quantize(model, fc.QuantConfig("W4A16", algorithm="awq", group_size=8), tokens(), progress=False)
    before.assert_unchanged(model)
    norms = [name for name in before.tensors if "layernorm" in name]
    state = q.state_dict()
    folded = [name for name in norms if not torch.equal(state[name], before.values[name])]
    assert folded, "no norm took AWQ's scales"
    # a norm divided by s, the weights behind it multiplied by s: columns grew where the norm shrank
    norm = "model.layers.0.input_layernorm.weight"
    assert norm in folded
    s = before.values[norm] / state[norm]
    dense: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
    layer = q.get_submodule("model.layers.0.self_attn.q_proj")
    half_step = layer.state_dict()["weight_scale"].float().repeat_interleave(8, 1)
    # clipping aside, every value is within half a step; clipped ones are the largest of their group
    off = (layer.weight - dense.weight.detach() * s).abs() / half_step
    assert (off <= 0.5 + 2.0**-7).float().mean() > 0.8


class Broken(Exception):
    """What the test lets fail."""


def failing_data() -> Iterator[Tensor]:
    yield from batches()[:2]
    raise Broken("the disk is gone")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inplace_failure_while_data_come(algorithm: str) -> None:
    model = Stack()
    before = Snapshot(model)
    with pytest.raises(Broken):
        quantize_inplace(model, algorithm, failing_data())
    before.assert_unchanged(model)
    assert not hasattr(model, RECORD_ATTRIBUTE)


def quantize_inplace(model: nn.Module, algorithm: str, data: Any, **options: Any) -> nn.Module:
    options = {"scheme": "W4A16", **options}
    config = fc.QuantConfig(options.pop("scheme"), algorithm=algorithm, group_size=8)
    return fc.quantize(model, config, data, progress=False, inplace=True, **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("survive", [0, 3])
def test_inplace_failure_while_layers_are_built(algorithm: str, survive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWQ has folded scales into norms by then: they must come back, bit for bit."""
    model = tiny_llama(layers=2)
    before = Snapshot(model)
    real, made = GroupQuantLinear.__init__, 0

    def init(self: GroupQuantLinear, *args: Any, **options: Any) -> None:
        nonlocal made
        made += 1
        if made > survive:
            raise Broken("no memory")
        real(self, *args, **options)

    monkeypatch.setattr(GroupQuantLinear, "__init__", init)
    with pytest.raises(Broken):
        quantize_inplace(model, algorithm, tokens())
    before.assert_unchanged(model)
    assert not hasattr(model, RECORD_ATTRIBUTE)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inplace_failure_of_the_stopwatch(algorithm: str) -> None:
    def broken(functions: Any) -> dict[str, float]:
        raise Broken("no clock")

    model = Stack()
    before = Snapshot(model)
    with pytest.raises(Broken):
        quantize_inplace(model, algorithm, batches(), scheme="W4A8", timer=broken)
    before.assert_unchanged(model)


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_inplace_failure_in_the_last_block(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks before it are done, the model's own weights were rounded by then."""
    model = Stack()
    before = Snapshot(model)
    last: Any = model.blocks[2]
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Broken("in the middle")

    handle = last.register_forward_pre_hook(hook)
    with pytest.raises(Broken):
        quantize_inplace(model, algorithm, batches())
    handle.remove()
    before.assert_unchanged(model)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inplace_gives_what_a_copy_gives(algorithm: str) -> None:
    model = Stack()
    copied = quantize(model, algorithm, batches())
    assert quantize_inplace(model, algorithm, batches()) is model
    for key, tensor in copied.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_w4a8_that_loses_leaves_the_float_weights(algorithm: str) -> None:
    """What is kept dense must be the trained weight, not one that was rounded or scaled on the way."""

    def loses(functions: Any) -> dict[str, float]:
        return {name: 1.0 if name == "dense" else 2.0 for name in functions}

    model = Stack()
    x = normal(7, 12)
    config = fc.QuantConfig("W4A8", algorithm=algorithm, group_size=8)
    q = fc.quantize(model, config, batches(), progress=False, timer=loses)
    assert not any(isinstance(module, GroupQuantLinear) for module in q.modules())
    for key, tensor in model.state_dict().items():
        assert torch.equal(q.state_dict()[key], tensor), key
    with torch.no_grad():
        assert torch.equal(q(x), model(x))


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_inputs_that_are_not_finite_are_named(algorithm: str) -> None:
    model = Stack()
    before = Snapshot(model)
    bad = batches()
    bad[1][3, 4] = float("inf")
    with pytest.raises(ValueError, match="the input of 'first' held NaN or infinity in calibration"):
        quantize_inplace(model, algorithm, bad)
    before.assert_unchanged(model)
