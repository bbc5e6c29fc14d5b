"""compressed-tensors' formats: exact weights, every scheme the settings can say, and what is refused."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcompress.errors import CheckpointError
from fastcompress.formats.checkpoints import read_checkpoint
from fastcompress.formats.checkpoints.patterns import NamePattern
from fastcompress.ops.canonical import W8A8Canonical
from fastcompress.ops.canonical_w4 import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical
from tests.formats.checkpoints import writers
from tests.formats.checkpoints.test_read import SHAPES, compare, poisoned, tensor, without
from tests.formats.checkpoints.writers import Written, save_directory

#: 20 inputs and 11 outputs do not fill words.
TAILS = {"model.a": (16, 64), "model.c": (11, 20)}
TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
TENSOR = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False, "symmetric": False}


@pytest.mark.parametrize("layout", ["pack-quantized", "int-quantized"])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
@pytest.mark.parametrize(
    ("group_size", "strategy", "shapes"),
    [(32, None, SHAPES), (64, None, SHAPES), (None, None, TAILS), (None, "tensor", TAILS)],
)
def test_weights(
    tmp_path: Path,
    layout: str,
    bits: int,
    symmetric: bool,
    group_size: int | None,
    strategy: str | None,
    shapes: dict[str, tuple[int, int]],
) -> None:
    written = writers.compressed(
        1, shapes=shapes, bits=bits, layout=layout, group_size=group_size, symmetric=symmetric, strategy=strategy
    )
    checkpoint = read_checkpoint(save_directory(written, tmp_path))
    compare(checkpoint, written)
    for layer in checkpoint.layers.values():
        assert isinstance(layer.canonical, W4Canonical if bits == 4 else W8Canonical)
        assert layer.canonical.input_mode == "dynamic_16bit"
    assert not checkpoint.tensors


@pytest.mark.parametrize("bits", [4, 8])
def test_act_order(tmp_path: Path, bits: int) -> None:
    written = writers.compressed(2, shapes=SHAPES, bits=bits, act_order=True, symmetric=bits == 8)
    checkpoint = read_checkpoint(save_directory(written, tmp_path))
    compare(checkpoint, written)
    assert all(layer.input_order is not None for layer in checkpoint.layers.values())


def test_no_order_is_written_as_minus_one(tmp_path: Path) -> None:
    written = writers.compressed(3, shapes=SHAPES)
    for name, (_, inputs) in SHAPES.items():
        written.tensors[name + ".weight_g_idx"] = np.full(inputs, -1, np.int32)
    compare(read_checkpoint(save_directory(written, tmp_path)), written)


@pytest.mark.parametrize("symmetric", [True, False])
def test_int8_activations_per_token(tmp_path: Path, symmetric: bool) -> None:
    written = writers.compressed(
        4, shapes=SHAPES, bits=8, layout="int-quantized", group_size=None,
        activations={**TOKEN, "symmetric": symmetric},
    )  # fmt: skip
    checkpoint = read_checkpoint(save_directory(written, tmp_path))
    compare(checkpoint, written)
    for layer in checkpoint.layers.values():
        assert isinstance(layer.canonical, W8A8Canonical)
        assert layer.canonical.input_mode == ("dynamic_symmetric" if symmetric else "dynamic")


def test_int8_activations_from_calibration(tmp_path: Path) -> None:
    written = writers.compressed(5, shapes=SHAPES, bits=8, layout="int-quantized", group_size=None, activations=TENSOR)
    for name in SHAPES:
        written.tensors[name + ".input_scale"] = np.array([0.25], np.float32)
        written.tensors[name + ".input_zero_point"] = np.array([-3], np.int8)
    checkpoint = read_checkpoint(save_directory(written, tmp_path))
    compare(checkpoint, written)
    for layer in checkpoint.layers.values():
        assert isinstance(layer.canonical, W8A8Canonical)
        # Signed -3 + 128: theirs is q = x / scale - 3 in [-128, 127], ours the same plus 128.
        assert (layer.canonical.input_mode, layer.canonical.input_scale) == ("static", 0.25)
        assert layer.canonical.input_zero_point == 125


def test_four_bit_weights_with_int8_activations(tmp_path: Path) -> None:
    written = writers.compressed(6, shapes=SHAPES, activations=TOKEN)
    checkpoint = read_checkpoint(save_directory(written, tmp_path))
    compare(checkpoint, written)
    assert {layer.canonical.input_mode for layer in checkpoint.layers.values()} == {"dynamic_symmetric"}


def test_several_groups(tmp_path: Path) -> None:
    """By name before by pattern before by class; each group with a layout of its own."""
    shapes = {"a": {"model.a": (16, 64)}, "b": {"model.b.up": (8, 32)}, "c": {"model.c": (8, 40)}}
    parts = [
        writers.compressed(7, shapes=shapes["a"]),
        writers.compressed(8, shapes=shapes["b"], bits=8, layout="int-quantized", group_size=None),
        writers.compressed(9, shapes=shapes["c"], symmetric=False, group_size=None),
    ]
    written = Written(parts[0].settings)
    groups: dict[str, Any] = {}
    targets = (["Linear"], [r"re:.*\.b\.(up|down)$"], ["model.c"])
    for index, (part, names) in enumerate(zip(parts, targets, strict=True)):
        written.tensors |= part.tensors
        written.weights |= part.weights
        written.biases |= part.biases
        group = part.settings["config_groups"]["group_0"]
        groups[f"group_{index}"] = {**group, "targets": names, "format": part.settings["format"]}
    written.settings |= {"config_groups": groups, "format": "mixed-precision"}
    compare(read_checkpoint(save_directory(written, tmp_path)), written)


@pytest.mark.parametrize("targets", [["Linear"], ["Embedding"], ["Linear", "Embedding"]])
def test_what_looks_like_an_embedding_may_be_a_linear(tmp_path: Path, targets: list[str]) -> None:
    written = writers.compressed(13, shapes={"embed_out": (8, 32)})
    written.settings["config_groups"]["group_0"]["targets"] = targets
    compare(read_checkpoint(save_directory(written, tmp_path)), written)


def weights(key: str, value: Any) -> Any:
    return lambda written: written.settings["config_groups"]["group_0"]["weights"].update({key: value})


def group(key: str, value: Any) -> Any:
    return lambda written: written.settings["config_groups"]["group_0"].update({key: value})


def top(key: str, value: Any) -> Any:
    return lambda written: written.settings.update({key: value})


def at(index: int, value: int) -> Any:
    def change(values: Any) -> Any:
        result = values.copy()
        result.flat[index] = value
        return result

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (weights("num_bits", 2), "num_bits.*not supported"),
        (weights("type", "float"), "type.*not supported"),
        (weights("strategy", "block"), "strategy.*not supported"),
        (weights("strategy", "channel"), "group_size.*does not go with"),
        (weights("group_size", 12), "group_size.*multiple of 8"),
        (weights("group_size", 64), r"model\.a\.weight_scale.*expected \[16, 1\]"),
        (weights("dynamic", True), "dynamic.*not supported"),
        (weights("symmetric", "yes"), "symmetric.*true or false"),
        (group("targets", "Linear"), "targets.*list"),
        (group("targets", ["model.b"]), r"model\.a\.weight_packed.*no group"),
        (group("targets", [r"re:(?!lm_head).*"]), "pattern.*list the modules by name"),
        (group("input_activations", {**TOKEN, "num_bits": 4}), "num_bits.*not supported"),
        (group("output_activations", TOKEN), "output_activations.*not supported"),
        (top("format", "float-quantized"), "format.*not supported"),
        (top("config_groups", {}), "config_groups"),
        (top("config_groups", []), "config_groups"),
        (top("ignore", ["model.a"]), r"model\.a\.weight_packed.*ignore"),
        (top("ignore", 3), "ignore"),
        (top("kv_cache_scheme", TOKEN), "kv_cache_scheme.*not supported"),
        (top("sparsity_config", {"format": "sparse-24"}), "sparsity_config.*not supported"),
        (tensor("model.a.weight_scale", poisoned), r"model\.a\.weight_scale.*NaN"),
        (tensor("model.a.weight_shape", at(0, 17)), r"model\.a\.weight_shape.*says \[17, 64\]"),
        (tensor("model.a.weight_shape", at(1, 2**62)), r"model\.a\.weight_shape.*says"),
        (tensor("model.a.weight_shape", at(1, 56)), r"model\.a\.weight_shape.*says"),
        (without("model.a.weight_shape"), r"model\.a\.weight_shape.*missing"),
        (without("model.a.weight_packed"), r"model\.a\..*weight is missing"),
        (weights("symmetric", False), r"model\.a\.weight_zero_point.*missing"),
    ],
)
def test_refuses(tmp_path: Path, change: Any, message: str) -> None:
    written = writers.compressed(10, shapes=SHAPES)
    change(written)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(save_directory(written, tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensor("model.a.weight", at(5, 8)), r"model\.a\.weight'.*\[-8, 7\]"),
        (tensor("model.a.weight_zero_point", at(5, -9)), r"model\.a\.weight_zero_point.*\[-8, 7\]"),
        (tensor("model.a.weight", lambda w: w.astype(np.int32)), r"model\.a\.weight_scale.*weight is missing"),
    ],
)
def test_int_quantized_refuses(tmp_path: Path, change: Any, message: str) -> None:
    written = writers.compressed(11, shapes=SHAPES, layout="int-quantized", symmetric=False)
    change(written)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save_directory(written, tmp_path))


PATTERNS = (
    ".*", "", "lm_head", r".*lm_head$", r"model\.layers\.\d+\.mlp\.(gate|up)_proj$", r"^model\.[a-c]+x?$",
    r"(?:model|head)\..*", r".*\.(q|k|v)_proj", r"[^.]*$", r"a+b*?c?", r"model\.layers\.[0-9]\.", r"(a|b|)c", r"[]a]+$",
)  # fmt: skip
NAMES = (
    "", "lm_head", "model.layers.12.mlp.up_proj", "model.layers.3.self_attn.q_proj", "model.abc", "model.abcx",
    "head.x", "aaabbc", "c", "bc", "model.layers.3.lm_head", "a]a", "ab]",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_agree_with_re(pattern: str) -> None:
    mine = NamePattern(pattern)
    for name in NAMES:
        assert mine.matches(name) == (re.match(pattern, name) is not None), name


@pytest.mark.parametrize(
    "pattern", ["(", ")", "a)", "[a", "[", "\\", r"\b", "a{3}", "*", "(a*)*", "(?=a)", "(?P<x>a)", "(" * 50, "a" * 301]
)
def test_patterns_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        NamePattern(pattern)


def test_patterns_take_no_time() -> None:
    begin = time.process_time()
    assert not NamePattern(".*" * 100 + "x").matches("a" * 500)
    assert time.process_time() - begin < 5.0


def test_scales_keep_their_dtype(tmp_path: Path) -> None:
    written = writers.compressed(12, shapes={"x": (8, 32)})
    written.tensors["x.weight_scale"] = written.tensors["x.weight_scale"].astype(np.float16)
    layer = read_checkpoint(save_directory(written, tmp_path)).layers["x"].canonical
    assert layer.weight_scale.dtype == torch.float16
