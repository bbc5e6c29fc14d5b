"""The writer: other tools' layout by a numpy oracle, round trips to identical layers, losses, and atomicity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcompress.errors import CheckpointError
from fastcompress.formats import tensorfile
from fastcompress.formats.checkpoints import StoredLayer, export_compressed_tensors, read_checkpoint, write
from fastcompress.ops.canonical import W8A8Canonical
from fastcompress.ops.canonical_w4 import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical
from tests.formats.checkpoints import writers
from tests.formats.checkpoints.decoders import compressed_weight, values_of
from tests.formats.checkpoints.gguf_writer import llama
from tests.formats.checkpoints.writers import save_directory


def four_bits(
    seed: int,
    out: int,
    inputs: int,
    size: int,
    *,
    zero: bool = False,
    minimum: bool = False,
    dtype: Any = torch.float16,
) -> W4Canonical:
    g = torch.Generator().manual_seed(seed)
    groups = -(-inputs // size)
    values = torch.randint(0, 16, (out, inputs), generator=g)
    words = torch.from_numpy(writers.pack_rows(values.numpy(), 4))
    scale = (torch.rand(out, groups, generator=g) * 0.1 + 0.01).to(dtype)
    return W4Canonical(
        words, scale, torch.randn(out, generator=g), inputs, size, "dynamic_16bit",
        torch.randint(0, 16, (out, groups), generator=g).to(torch.uint8) if zero else None,
        torch.randn(out, groups, generator=g) * 0.5 if minimum else None,
    )  # fmt: skip


def eight_bits(seed: int, out: int, inputs: int, size: int) -> W8Canonical:
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-128, 128, (out, inputs), generator=g).to(torch.int8)
    return W8Canonical(values, torch.rand(out, -(-inputs // size), generator=g).to(torch.bfloat16), None, size)


def integer(seed: int, out: int, inputs: int, mode: str) -> W8A8Canonical:
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, (out, inputs), generator=g).to(torch.int8)
    scale = torch.rand(out, generator=g) + 0.1
    static = (0.125, 131) if mode == "static" else (1.0, 0)
    return W8A8Canonical(values, scale, torch.randn(out, generator=g), mode, *static)


def everything() -> dict[str, Any]:
    return {
        "a": four_bits(1, 16, 64, 32),
        "b": four_bits(2, 11, 64, 32, zero=True),
        "c": four_bits(3, 16, 40, 40, dtype=torch.bfloat16),
        "d": replace(four_bits(4, 16, 64, 32, dtype=torch.float32), input_mode="dynamic_symmetric", bias=None),
        "e": eight_bits(5, 8, 64, 32),
        "f.embed_tokens": eight_bits(6, 24, 64, 64),
        "g": integer(7, 8, 24, "dynamic"),
        "h": integer(8, 8, 24, "dynamic_symmetric"),
        "i": integer(9, 8, 24, "static"),
        "j": four_bits(10, 16, 100, 32),
    }


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, torch.Tensor):
            assert other.dtype == value.dtype, name
            assert torch.equal(other, value), name
        else:
            assert other == value, name


def test_round_trip(tmp_path: Path) -> None:
    layers, norm = everything(), torch.randn(8)
    report = export_compressed_tensors(
        layers, tmp_path / "out", tensors={"norm.weight": norm}, config={"hidden_size": 64, "quantization_config": 1}
    )
    assert not report.losses
    assert report.nbytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    checkpoint = read_checkpoint(tmp_path / "out")
    assert checkpoint.method == "compressed-tensors"
    assert checkpoint.config == {"hidden_size": 64}
    assert torch.equal(checkpoint.tensors["norm.weight"], norm)
    assert set(checkpoint.layers) == set(layers)
    for name, expected in layers.items():
        assert checkpoint.layers[name].input_order is None
        assert_same(checkpoint.layers[name].canonical, expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_round_trip_of_act_order(tmp_path: Path, bits: int) -> None:
    written = writers.gptq(1, shapes={"x": (16, 64)}, bits=bits, act_order=True, symmetric=bits == 8)
    first = read_checkpoint(save_directory(written, tmp_path / "in"))
    export_compressed_tensors(first.layers, tmp_path / "out")
    second = read_checkpoint(tmp_path / "out").layers["x"]
    assert first.layers["x"].input_order is not None
    assert second.input_order is not None
    assert torch.equal(second.input_order, first.layers["x"].input_order)
    assert_same(second.canonical, first.layers["x"].canonical)
    np.testing.assert_array_equal(second.dequantize().numpy(), written.weights["x"])


def test_layout_is_what_others_read(tmp_path: Path) -> None:
    """Decoded with numpy from the raw file and settings."""
    layer, whole = four_bits(11, 11, 64, 32, zero=True), eight_bits(12, 8, 64, 64)
    export_compressed_tensors({"x": layer, "head": whole}, tmp_path / "out", tensors={"emb.weight": torch.ones(4, 8)})
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "compressed-tensors"
    assert settings["format"] == "mixed-precision"
    groups = list(settings["config_groups"].values())
    assert {group["format"] for group in groups} == {"pack-quantized", "int-quantized"}
    assert settings["ignore"] == ["emb", "lm_head"]
    with open(tmp_path / "out" / "model.safetensors", "rb") as file:
        infos, head = tensorfile.read_header(file, (tmp_path / "out" / "model.safetensors").stat().st_size)
        raw = tensorfile.read_tensors(file, infos, head)[0]
    found = {name: t.float().numpy() if t.dtype == torch.bfloat16 else t.numpy() for name, t in raw.items()}
    assert found["x.weight_zero_point"].shape == (2, 2)
    group = next(group for group in groups if group["weights"]["num_bits"] == 4)
    weight = compressed_weight({"config_groups": {"group_0": group}}, found, "x")
    zero = layer.weight_zero_point
    assert zero is not None
    q = values_of(layer.weight_packed.numpy(), 4).astype(np.float32)
    wide = np.repeat(layer.weight_scale.float().numpy(), 32, axis=1)
    np.testing.assert_array_equal(weight, (q - np.repeat(zero.numpy(), 32, axis=1)) * wide)
    np.testing.assert_array_equal(found["head.weight"], whole.weight.numpy())


def test_compressed_tensors_package_agrees(tmp_path: Path) -> None:
    package = pytest.importorskip("compressed_tensors", reason="the package is a second oracle where it is installed")
    layer = four_bits(13, 16, 64, 32)
    export_compressed_tensors({"x": layer}, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    package.quantization.QuantizationConfig.model_validate(settings)


def test_minima_are_requantized(tmp_path: Path) -> None:
    layers = {"x": four_bits(14, 32, 64, 32, minimum=True), "y": four_bits(15, 32, 64, 32)}
    report = export_compressed_tensors(layers, tmp_path / "out")
    assert set(report.losses) == {"x"}
    found = read_checkpoint(tmp_path / "out").layers
    assert_same(found["y"].canonical, layers["y"])
    c = found["x"].canonical
    assert isinstance(c, W4Canonical)
    assert c.weight_min is None
    before, after = layers["x"].dequantize().numpy(), found["x"].dequantize().numpy()
    difference = after - before
    assert report.losses["x"].max_abs == np.abs(difference).max()
    relative = np.square(difference).sum(dtype=np.float64) / np.square(before).sum(dtype=np.float64)
    # Two sums of 2,048 float32 squares: relative error at most 2048 * 2^-24 each.
    assert abs(report.losses["x"].relative_squared - relative) <= 2 * 2048 * 2.0**-24 * relative
    # 16 steps from the least to the largest weight and zero put every weight within half a step, and the error of
    # rounding that step to float16 (2^-11 of 15 steps); the zero point's rounding shifts a group by half a step more.
    grouped = before.reshape(32, 2, 32)
    step = (np.maximum(grouped.max(-1), 0) - np.minimum(grouped.min(-1), 0)) / 15
    bound = (step * 32 * np.square(1.0 + 15 * 2.0**-11) * step).sum()
    assert np.square(difference).sum() <= bound


def test_minima_that_are_zero_points_cost_nothing(tmp_path: Path) -> None:
    exact = four_bits(16, 16, 64, 32, zero=True, dtype=torch.float32)
    scale = torch.exp2(torch.randint(-4, 0, exact.weight_scale.shape).float())  # powers of two: no rounding anywhere
    zero = exact.weight_zero_point
    assert zero is not None
    layer = replace(exact, weight_scale=scale, weight_zero_point=None, weight_min=-zero.float() * scale)
    report = export_compressed_tensors({"x": layer}, tmp_path / "out")
    assert report.losses["x"].max_abs == 0.0
    assert torch.equal(read_checkpoint(tmp_path / "out").layers["x"].dequantize(), layer.dequantize())


def test_gguf_to_compressed_tensors(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(llama(17).to_bytes())
    first = read_checkpoint(tmp_path / "m.gguf")
    report = export_compressed_tensors(first.layers, tmp_path / "out", tensors=first.tensors, config=first.config)
    second = read_checkpoint(tmp_path / "out")
    assert set(second.layers) == set(first.layers)
    assert second.config == first.config
    for name, layer in first.layers.items():
        if name not in report.losses:
            assert_same(second.layers[name].canonical, layer.canonical)


def test_only_into_new_directories(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export_compressed_tensors({"x": four_bits(18, 8, 32, 32)}, tmp_path / "empty")
    before = {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    with pytest.raises(CheckpointError, match="new directory"):
        export_compressed_tensors({"x": four_bits(19, 8, 32, 32)}, tmp_path / "empty")
    assert {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("failing", ["write_tensors", "_synced"])
def test_nothing_is_left_of_a_failed_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, failing, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        export_compressed_tensors({"x": four_bits(20, 8, 32, 32)}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    good = four_bits(21, 8, 32, 32)
    with pytest.raises(ValueError, match="empty"):
        export_compressed_tensors({}, tmp_path / "out")
    with pytest.raises(TypeError, match="layer 'x'"):
        export_compressed_tensors({"x": torch.ones(2)}, tmp_path / "out")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="fused relu"):
        export_compressed_tensors({"x": replace(good, activation="relu")}, tmp_path / "out")
    with pytest.raises(ValueError, match="part of a quantized layer"):
        export_compressed_tensors({"x": StoredLayer(good)}, tmp_path / "out", tensors={"x.bias": torch.ones(8)})
    conv = W8A8Canonical(torch.ones(2, 2, 3, 3, dtype=torch.int8), torch.ones(2), None, "static", 1.0, 0)
    with pytest.raises(ValueError, match="not a linear"):
        export_compressed_tensors({"x": conv}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
