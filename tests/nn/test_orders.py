"""Block-sparse layers whose blocks are those of a permuted weight: the layer undoes the orders exactly."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.errors import CheckpointError
from fastcompress.nn import QuantConv2d, QuantLinear, SparseConv2d, SparseLinear, SparseQuantConv2d, SparseQuantLinear
from fastcompress.nn.orders import restored
from fastcompress.pruning import apply_mask
from tests.formats.models import edit_manifest, edit_tensor
from tests.nn.sparse_cases import pruned_conv2d, pruned_linear

INPUTS = {
    SparseLinear: (5, 16),
    SparseQuantLinear: (5, 16),
    SparseConv2d: (2, 8, 6, 7),
    SparseQuantConv2d: (2, 8, 6, 7),
}
each = pytest.mark.parametrize("cls", list(INPUTS))
sides = pytest.mark.parametrize("side", ["inputs", "outputs", "both"])


def orders(module: Any, side: str = "both") -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    out, channels = module.weight.shape[:2]
    inputs, outputs = torch.randperm(channels, generator=generator), torch.randperm(out, generator=generator)
    return (None if side == "outputs" else inputs, None if side == "inputs" else outputs)


def masked(cls: Any, side: str = "both", seed: int = 0) -> Any:
    """A layer whose mask falls into blocks under its orders only."""
    module: Any = pruned_linear(32, 16, seed=seed) if "Linear" in cls.__name__ else pruned_conv2d(seed=seed)
    found = orders(module, side)
    mask = restored(module.weight.detach() != 0, *found)
    with torch.no_grad():
        module.weight.uniform_(0.5, 1.0, generator=torch.Generator().manual_seed(seed))
        module.weight[::2].neg_()
    apply_mask(module, mask, input_order=found[0], output_order=found[1])
    return module


def make(cls: Any, side: str = "both", seed: int = 0, **options: Any) -> Any:
    if "Quant" in cls.__name__:
        options |= {"input_mode": "static", "input_scale": 0.03, "input_zero_point": 110}
    module = masked(cls, side, seed)
    if "Quant" not in cls.__name__:  # an input order alone saves no 16x1 blocks, so it would not be taken by itself
        options.setdefault("orders", orders(module, side))
    return cls.from_float(module, **options)


def batch(cls: Any) -> torch.Tensor:
    return torch.randn(INPUTS[cls], generator=torch.Generator().manual_seed(7))


@each
@sides
def test_results_and_weights_are_in_the_natural_order(cls: Any, side: str) -> None:
    layer, module, x = make(cls, side), masked(cls, side), batch(cls)
    natural = make(cls, side, orders=(None, None))
    if side != "inputs" or "Quant" in cls.__name__:
        assert layer.density < natural.density
    assert (layer.input_order is None, layer.output_order is None) == (side == "outputs", side == "inputs")
    assert f"reordered={'inputs and outputs' if side == 'both' else side!r}".replace("'", "") in repr(layer).replace(
        "'", ""
    )
    assert torch.equal(layer.weight.clone(), natural.weight.clone())
    assert torch.equal(layer.bias.clone(), natural.bias.clone())
    assert torch.equal(layer.dequantize(), natural.dequantize())
    if "Quant" in cls.__name__:
        dense: Any = QuantLinear if "Linear" in cls.__name__ else QuantConv2d
        want = dense.from_float(module, input_mode="static", input_scale=0.03, input_zero_point=110)(x)
        assert torch.equal(layer(x), want)
        assert torch.equal(make(cls, side, block_size=(1, 4))(x), want)
    else:
        torch.testing.assert_close(layer(x), module(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer(x), natural(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [SparseConv2d, SparseQuantConv2d])
def test_memory_formats_are_kept(cls: Any) -> None:
    layer, x = make(cls), batch(cls)
    last = layer(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    torch.testing.assert_close(last, layer(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x[0]), layer(x)[0], rtol=1e-5, atol=1e-5)


@each
def test_copies_states_casts_and_compilation(cls: Any) -> None:
    layer, x = make(cls), batch(cls)
    want = layer(x)
    state = layer.state_dict()
    assert state["input_order"].dtype == state["output_order"].dtype == torch.int64
    plain = make(cls, seed=1, orders=(None, None))
    assert "input_order" not in plain.state_dict()
    natural = plain(x)
    kept = copy.deepcopy(plain.state_dict())
    plain.load_state_dict(state)
    torch._dynamo.reset()  # each layer is a compilation of the one `forward`, and there is a limit
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), plain, layer.repack(), compiled):
        assert torch.equal(other(x), want)
    torch._dynamo.reset()
    plain.load_state_dict(kept)
    assert not plain.reordered
    assert torch.equal(plain(x), natural)
    cast = copy.deepcopy(layer).to(torch.bfloat16)
    assert torch.equal(cast.input_order, layer.input_order)
    assert torch.equal(cast(x), want)
    assert not any(True for _ in layer.parameters())


@each
def test_gradients_reach_the_input(cls: Any) -> None:
    x = batch(cls).requires_grad_()
    other = x.detach().clone().requires_grad_()
    make(cls)(x).square().sum().backward()
    make(cls, orders=(None, None))(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)


@each
def test_wrong_inputs_and_orders_are_refused(cls: Any) -> None:
    layer, x = make(cls), batch(cls)
    dim = 1
    with pytest.raises(ValueError, match="the layer takes"):
        layer(torch.cat([x, x], dim))
    with pytest.raises(TypeError):
        layer([1.0])
    want = layer(x)
    for wrong in (layer.input_order[:-1], torch.zeros_like(layer.input_order), layer.input_order.int()):
        with pytest.raises(ValueError, match="each number from 0 to"):
            layer.reorder(wrong, None)
        with pytest.raises(RuntimeError, match="each number from 0 to"):
            layer.load_state_dict(layer.state_dict() | {"input_order": wrong})
        assert torch.equal(layer(x), want)


@each
def test_files_bring_the_orders_back_and_forged_ones_are_refused(cls: Any, tmp_path: Any) -> None:
    layer, x = make(cls), batch(cls)
    plain = nn.Sequential(pruned_linear(32, 16, seed=9) if "Linear" in cls.__name__ else pruned_conv2d(seed=9))
    fc.save(nn.Sequential(layer), tmp_path)
    assert torch.equal(fc.load(tmp_path, plain)(x), layer(x))
    for name in ("input_order", "output_order"):
        good = layer.state_dict()[name]
        for bad in (torch.zeros_like(good), good + 1, good - 1):
            edit_tensor(tmp_path, f"0.{name}", bad)
            with pytest.raises(CheckpointError, match=f"{name}` must be an int64 tensor"):
                fc.load(tmp_path, plain)
        edit_tensor(tmp_path, f"0.{name}", good)
    for value in ("inputs", "neither", 1):
        edit_manifest(tmp_path, lambda body, v=value: body["modules"]["0"]["config"].update(reordered=v))
        with pytest.raises(CheckpointError):
            fc.load(tmp_path, plain)


@pytest.mark.parametrize("execute", ["quantize", "convert"])
def test_permuted_masks_run_in_blocks(execute: str) -> None:
    pruned = nn.Sequential(masked(SparseLinear)).eval()
    x = batch(SparseLinear)
    if execute == "quantize":
        made = fc.quantize(pruned, "W8A8-dynamic", only_if_faster=False)
        assert torch.linalg.norm(made(x) - pruned(x)) < 0.05 * torch.linalg.norm(pruned(x))
    else:
        made = fc.convert(pruned, only_if_faster=False)
        torch.testing.assert_close(made(x), pruned(x), rtol=1e-5, atol=1e-5)
    assert made[0].reordered
    assert made[0].density < 0.5
    channels = "inputs and outputs" if execute == "quantize" else "outputs"  # no input order for 16x1 blocks
    assert f"with its {channels} reordered" in fc.explain(made).rows[0].reason


def test_quantize_measures_the_reordered_layer_and_keeps_dense_where_that_wins() -> None:
    pruned = nn.Sequential(masked(SparseLinear)).eval()
    for seconds in (0.5, 2.0):
        tried: list[Any] = []

        def timer(calls: dict[str, Any], seconds: float = seconds, tried: list[Any] = tried) -> dict[str, float]:
            tried += [call.func for name, call in calls.items() if name == "sparse int8"]
            return {name: {"dense": 10.0, "sparse int8": seconds}.get(name, 1.0) for name in calls}

        made: Any = fc.quantize(pruned, "W8A8-dynamic", example_inputs=batch(SparseLinear), timer=timer)
        assert [layer.reordered for layer in tried] == [True] * len(tried)
        assert tried
        assert isinstance(made[0], SparseQuantLinear) == (seconds < 1.0)
        assert "inputs and outputs reordered" in fc.explain(made).rows[0].reason
