"""SparseQuantLinear: made by quantize, copied, pickled, saved, compiled; faults leave it as it was."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.nn import QuantLinear, SparseQuantLinear
from fastcompress.ops import BlockCSR, pack
from fastcompress.record import record_of


def pruned_linear(out_features: int, in_features: int, density: float = 0.2, seed: int = 0) -> nn.Linear:
    """A linear of which only some 16x4 blocks are not zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(in_features, out_features)
    keep = torch.rand(out_features // 16, in_features // 4, generator=generator) < density
    with torch.no_grad():
        layer.weight.mul_(keep.repeat_interleave(16, 0).repeat_interleave(4, 1))
    return layer.eval()


def pruned_model() -> nn.Sequential:
    return nn.Sequential(pruned_linear(64, 32, 0.4, seed=1), nn.GELU(), pruned_linear(16, 64, 0.4, seed=2))


def quantized() -> nn.Module:
    return fc.quantize(pruned_model(), "W8A8-dynamic", example_inputs=torch.randn(8, 32), only_if_faster=False)


@pytest.mark.parametrize("mode", ["static", "dynamic", "dynamic_symmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_equals_the_dense_int8_layer_bit_for_bit(mode: str, dtype: torch.dtype) -> None:
    dense = pruned_linear(48, 40)
    options = {"input_mode": mode, "activation": "silu"} | (
        {"input_scale": 0.03, "input_zero_point": 90} if mode == "static" else {}
    )
    sparse, full = SparseQuantLinear.from_float(dense, **options), QuantLinear.from_float(dense, **options)
    x = torch.randn(3, 7, 40).to(dtype)
    assert torch.equal(sparse(x), full(x))
    assert torch.equal(sparse.dequantize(), full.dequantize())
    assert torch.equal(sparse.weight + 0, full.weight + 0)


def test_gradients_reach_the_input() -> None:
    dense = pruned_linear(32, 16)
    x = torch.randn(5, 16, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    SparseQuantLinear.from_float(dense, input_mode="dynamic", activation="gelu")(x).sum().backward()
    QuantLinear.from_float(dense, input_mode="dynamic", activation="gelu")(y).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)


def test_quantize_on_a_pruned_model_yields_sparse_layers() -> None:
    model, x = quantized(), torch.randn(8, 32)
    layers = [m for m in model.modules() if isinstance(m, SparseQuantLinear)]
    assert [layer.activation for layer in layers] == ["gelu", "none"]
    assert all(0.0 < layer.density < 0.6 for layer in layers)
    assert "block-sparse" in str(fc.explain(model, x))
    assert layers[0].block_size == (16, 4)


def test_a_measurement_decides_between_the_forms() -> None:
    def timer(calls: dict[str, object]) -> dict[str, float]:
        return {name: {"dense": 3.0, "int8": 1.0, "sparse int8": 2.0}[name] for name in calls}

    model = fc.quantize(pruned_model(), "W8A8-dynamic", example_inputs=torch.randn(8, 32), timer=timer)
    assert not any(isinstance(m, SparseQuantLinear) for m in model.modules())
    assert sum(isinstance(m, QuantLinear) for m in model.modules()) == 2
    record = record_of(model)
    assert record is not None
    assert "dense int8, which is faster" in record["0"].reason


def test_a_layer_that_blocks_do_not_fit_stays_dense_int8() -> None:
    model = nn.Sequential(nn.Linear(30, 20)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 0] = 1.0
    layer = fc.quantize(model, "W8A8-dynamic", only_if_faster=False)[0]
    assert type(layer) is QuantLinear
    with pytest.raises(ValueError, match=r"20x30 weight cannot be cut into blocks of 16x4; use QuantLinear"):
        SparseQuantLinear.from_float(model[0], input_mode="dynamic")


def test_copies_pickles_state_and_compilation_keep_the_bits() -> None:
    model, x = quantized(), torch.randn(8, 32)
    want = model(x)
    assert torch.equal(copy.deepcopy(model)(x), want)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)
    fc.verify(model)
    state = model.state_dict()
    assert state["0.crow"].dtype == torch.int32
    assert state["0.values"].shape[1:] == (16, 4)
    other = fc.quantize(
        nn.Sequential(pruned_linear(64, 32, 0.2, 5), nn.GELU(), pruned_linear(16, 64, 0.2, 6)),
        "W8A8-dynamic",
        example_inputs=x,
        only_if_faster=False,
    )
    other.load_state_dict(state)  # another number of blocks is another value
    assert torch.equal(other(x), want)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("0.col", lambda t: t * 0, "col.*twice|duplicate|increasing|ascending"),
        ("0.col", lambda t: t + 1000, "0.*7|range|below"),
        ("0.crow", lambda t: t.flip(0), "crow"),
        ("0.values", lambda t: t.float(), "dtype mismatch"),
        ("0.crow", lambda t: t[:-1], "shape mismatch"),
        ("0.values", lambda t: t[:-1], "values|blocks"),
    ],
)
def test_a_hostile_state_dict_changes_nothing(key: str, change: object, message: str) -> None:
    model, x = quantized(), torch.randn(8, 32)
    want = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state[key] = change(state[key])  # type: ignore[operator]
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    assert torch.equal(model(x), want)


def test_files_hold_blocks_and_give_back_the_bits(tmp_path: Path) -> None:
    model, x = quantized(), torch.randn(8, 32)
    fc.save(model, tmp_path)
    loaded = fc.load(tmp_path, model=pruned_model())
    assert [type(m) for m in loaded] == [type(m) for m in model]
    assert torch.equal(loaded(x), model(x))


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "fastcompress.json"
    document = json.loads(file.read_text())

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if "blocks" in node and "out_features" in node:
                node.update(changes)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("changes", [{"blocks": 10**9}, {"blocks": -1}, {"blocks": "3"}, {"out_features": 65}])
def test_a_forged_manifest_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    fc.save(quantized(), tmp_path)
    _edit(tmp_path, **changes)
    target = pruned_model()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(fc.CheckpointError):
        fc.load(tmp_path, model=target)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_pack_refuses_other_blocks_and_changed_indices() -> None:
    layer = SparseQuantLinear.from_float(pruned_linear(32, 16, 0.5), input_mode="dynamic")
    c = layer.canonical()
    other = replace(c, blocks=BlockCSR.from_dense(c.blocks.to_dense(), (8, 4)))
    with pytest.raises(ValueError, match=r"blocks` are 8x4, the torch\.int8 kernels take 16x4"):
        pack(other)
    c.blocks.col[0] = 99
    with pytest.raises(ValueError, match="col"):
        pack(c)
