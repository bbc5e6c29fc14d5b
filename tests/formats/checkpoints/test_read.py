"""Readers against checkpoints that numpy wrote: the same float weights to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fastcompress.errors import CheckpointError
from fastcompress.formats.checkpoints import Checkpoint, read_checkpoint
from fastcompress.ops.canonical_w4 import W4Canonical
from tests.formats.checkpoints import writers
from tests.formats.checkpoints.writers import Written, save_directory

SHAPES = {"model.a": (16, 64), "model.b": (24, 96)}


def compare(checkpoint: Checkpoint, written: Written) -> None:
    assert set(checkpoint.layers) == set(written.weights)
    for name, expected in written.weights.items():
        stored = checkpoint.layers[name]
        found = stored.dequantize().numpy()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=name)
        bias = stored.canonical.bias
        if name in written.biases:
            assert bias is not None
            np.testing.assert_array_equal(bias.numpy(), written.biases[name])
        else:
            assert bias is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2", None])
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq(tmp_path: Path, bits: int, version: str | None, group_size: int, act_order: bool) -> None:
    written = writers.gptq(
        1, shapes=SHAPES, bits=bits, version=version, group_size=group_size, act_order=act_order, symmetric=bits == 8
    )
    checkpoint = read_checkpoint(save_directory(written, tmp_path))
    assert checkpoint.method == "gptq"
    compare(checkpoint, written)
    for layer in checkpoint.layers.values():
        assert (layer.input_order is not None) == (act_order and layer.canonical.groups > 1)


def test_gptq_symmetric_has_no_zero_points(tmp_path: Path) -> None:
    written = writers.gptq(2, shapes=SHAPES, symmetric=True, bias=False)
    checkpoint = read_checkpoint(save_directory(written, tmp_path, settings_file="quantize_config.json"))
    compare(checkpoint, written)
    for layer in checkpoint.layers.values():
        assert isinstance(layer.canonical, W4Canonical)
        assert layer.canonical.weight_zero_point is None


def test_input_order_is_how_the_layer_reads_its_input(tmp_path: Path) -> None:
    written = writers.gptq(3, shapes={"x": (16, 64)}, act_order=True)
    stored = read_checkpoint(save_directory(written, tmp_path)).layers["x"]
    assert stored.input_order is not None
    x = torch.randint(-8, 8, (3, 64)).to(torch.float64)
    direct = x @ torch.from_numpy(written.weights["x"]).to(torch.float64).t()
    ordered = x[:, stored.input_order] @ stored.canonical.dequantize().to(torch.float64).t()
    # Sums of the same 64 products, each exact in float64 (11 + 5 + 4 bits), in another order: still exact.
    assert torch.equal(direct, ordered)


@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("spelling", ["version", "format"])
def test_awq(tmp_path: Path, group_size: int, spelling: str) -> None:
    written = writers.awq(4, shapes=SHAPES, group_size=group_size, spelling=spelling)
    checkpoint = read_checkpoint(save_directory(written, tmp_path))
    assert checkpoint.method == "awq"
    compare(checkpoint, written)


def test_other_tensors_come_along(tmp_path: Path) -> None:
    written = writers.awq(5, shapes=SHAPES)
    norm = np.arange(8, dtype=np.float32)
    written.tensors["model.norm.weight"] = norm
    checkpoint = read_checkpoint(save_directory(written, tmp_path, config={"hidden_size": 64}))
    assert set(checkpoint.tensors) == {"model.norm.weight"}
    np.testing.assert_array_equal(checkpoint.tensors["model.norm.weight"].numpy(), norm)
    assert checkpoint.config == {"model_type": "llama", "hidden_size": 64}


def shards(directory: Path, written: Written) -> Path:
    """The same checkpoint in two files and an index."""
    save_directory(written, directory)
    (directory / "model.safetensors").unlink()
    names = sorted(written.tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: np.ascontiguousarray(written.tensors[name]) for name in members}, directory / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_shards(tmp_path: Path) -> None:
    written = writers.gptq(6, shapes=SHAPES, act_order=True)
    compare(read_checkpoint(shards(tmp_path, written)), written)


def edit_index(directory: Path, change: Any) -> None:
    path = directory / "model.safetensors.index.json"
    body = json.loads(path.read_text())
    change(body["weight_map"])
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "model.bin", ".hidden.safetensors", 7, None],
)
def test_shard_names_stay_inside(tmp_path: Path, shard: Any) -> None:
    directory = shards(tmp_path / "in", writers.gptq(7, shapes=SHAPES))
    edit_index(directory, lambda names: names.update({min(names): shard}))
    with pytest.raises(CheckpointError, match=r"index\.json: tensor"):
        read_checkpoint(directory)


def test_links_stay_inside(tmp_path: Path) -> None:
    directory = save_directory(writers.awq(8, shapes=SHAPES), tmp_path / "in")
    (directory / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (directory / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="outside of the directory"):
        read_checkpoint(directory)


def test_links_of_the_hub_cache(tmp_path: Path) -> None:
    written = writers.awq(9, shapes=SHAPES)
    save_directory(written, tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    compare(read_checkpoint(snapshot), written)


def test_tensors_of_index_and_files_agree(tmp_path: Path) -> None:
    directory = shards(tmp_path, writers.gptq(10, shapes=SHAPES))
    edit_index(directory, lambda names: names.pop(min(names)))
    with pytest.raises(CheckpointError, match="is in this file only"):
        read_checkpoint(directory)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: pickle .*convert"):
        read_checkpoint(tmp_path)


def test_no_quantization(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": np.zeros(3, dtype=np.float32)}, tmp_path / "anything.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.method, dict(checkpoint.layers), set(checkpoint.tensors)) == ("none", {}, {"w"})


def zero_points_of_eight_bits(written: Written) -> None:
    written.tensors["model.a.qzeros"] = written.tensors["model.a.qzeros"] ^ 1


def set_g_idx(*changes: tuple[int, int]) -> Any:
    def change(written: Written) -> None:
        g_idx = written.tensors["model.a.g_idx"].copy()
        for at, value in changes:
            g_idx[at] = value
        written.tensors["model.a.g_idx"] = g_idx

    return change


def setting(key: str, value: Any) -> Any:
    return lambda written: written.settings.update({key: value})


def tensor(key: str, change: Any) -> Any:
    return lambda written: written.tensors.update({key: change(written.tensors[key])})


def without(key: str) -> Any:
    return lambda written: written.tensors.pop(key)


def poisoned(values: Any) -> Any:
    result = values.copy()
    result.flat[3] = np.nan
    return result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_g_idx((0, -1)), r"model\.a\.g_idx.*holds -1"),
        (set_g_idx((0, 2)), r"model\.a\.g_idx.*holds 2"),
        (set_g_idx((0, 1)), r"model\.a\.g_idx.*unequal size"),
        (setting("bits", 3), "bits.*not supported"),
        (setting("bits", True), "bits.*integer"),
        (setting("bits", "4"), "bits.*integer"),
        (setting("group_size", 0), "group_size.*multiple of 8"),
        (setting("group_size", 12), "group_size.*multiple of 8"),
        (setting("group_size", -2), "group_size.*multiple of 8"),
        (setting("group_size", 64), r"model\.a\.scales.*expected \[1, 16\]"),
        (setting("checkpoint_format", "marlin"), "checkpoint_format.*not supported"),
        (setting("quant_method", "bitsandbytes"), "quant_method.*not supported"),
        (setting("dynamic", {"-:.*": {}}), "dynamic.*not supported"),
        (setting("sym", 1), "sym.*true or false"),
        (tensor("model.a.scales", poisoned), r"model\.a\.scales.*NaN"),
        (tensor("model.a.bias", poisoned), r"model\.a\.bias.*NaN"),
        (tensor("model.a.bias", lambda b: b[:-1]), r"model\.a\.bias.*shape \[15\]"),
        (tensor("model.a.qzeros", lambda z: z[:1]), r"model\.a\.qzeros.*shape"),
        (tensor("model.a.qweight", lambda w: w.astype(np.int64)), r"model\.a\.qweight.*int64"),
        (tensor("model.a.qweight", lambda w: w[:, :0]), r"model\.a\.qweight.*shape"),
        (tensor("model.a.qweight", lambda w: w[None]), r"model\.a\.qweight.*shape"),
        (without("model.a.qzeros"), r"model\.a\.qzeros.*missing"),
        (without("model.a.qweight"), r"model\.a\..*weight is missing"),
    ],
)
def test_gptq_refuses(tmp_path: Path, change: Any, message: str) -> None:
    written = writers.gptq(11, shapes=SHAPES)
    change(written)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(save_directory(written, tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_gptq_refuses_asymmetric_eight_bits(tmp_path: Path) -> None:
    written = writers.gptq(12, shapes=SHAPES, bits=8, symmetric=True)
    zero_points_of_eight_bits(written)
    with pytest.raises(CheckpointError, match=r"model\.a\.qzeros.*not supported"):
        read_checkpoint(save_directory(written, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("bits", 8), "bits.*not supported"),
        (setting("version", "gemv"), "version.*not supported"),
        (tensor("model.b.scales", poisoned), r"model\.b\.scales.*NaN"),
        (tensor("model.b.scales", lambda s: s.T), r"model\.b\.scales.*shape"),
        (without("model.b.scales"), r"model\.b\.scales.*missing"),
    ],
)
def test_awq_refuses(tmp_path: Path, change: Any, message: str) -> None:
    written = writers.awq(13, shapes=SHAPES)
    change(written)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save_directory(written, tmp_path))


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b'{"a": NaN}', b'{"quantization_config": 3}', b"\xff"])
def test_bad_config(tmp_path: Path, config: bytes) -> None:
    save_directory(writers.awq(14, shapes=SHAPES), tmp_path)
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(tmp_path)
