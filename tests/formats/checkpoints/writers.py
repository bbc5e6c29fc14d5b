"""Each format written from random weights with numpy alone, and the float weights that it stands for.

Nothing here comes from the package: the layouts are the formats' own descriptions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

__all__ = ["Written", "awq", "compressed", "gptq", "pack_rows", "save_directory"]

Array = NDArray[Any]


@dataclass
class Written:
    """Settings and tensors of one checkpoint, and what a reader must find: float32 weights ``[out, in]``, biases."""

    settings: dict[str, Any]
    tensors: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)


def pack_rows(values: Array, bits: int) -> Array:
    """Unsigned values ``[rows, n]`` as int32 ``[rows, ceil(n * bits / 32)]``, the first one in the lowest bits."""
    per_word = 32 // bits
    rows, count = values.shape
    words = np.zeros((rows, -(-count // per_word)), dtype=np.uint32)
    for column in range(count):
        shift = np.uint32(bits * (column % per_word))
        words[:, column // per_word] |= values[:, column].astype(np.uint32) << shift
    return words.view(np.int32)


def _bias(rng: np.random.Generator, written: Written, name: str, out: int) -> None:
    bias = rng.normal(size=out).astype(np.float16)
    written.tensors[name + ".bias"] = bias
    written.biases[name] = bias.astype(np.float32)


def _scales(rng: np.random.Generator, shape: tuple[int, int], dtype: Any = np.float16) -> Array:
    return rng.uniform(0.01, 0.2, size=shape).astype(dtype)


def gptq(
    seed: int,
    *,
    shapes: dict[str, tuple[int, int]],
    bits: int = 4,
    group_size: int = 32,
    version: str | None = "gptq",
    symmetric: bool = False,
    act_order: bool = False,
    bias: bool = True,
) -> Written:
    """GPTQ: ``shapes`` are (out, in)."""
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {
        "quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": act_order,
    }  # fmt: skip
    if version is not None:
        settings["checkpoint_format"] = version
    written = Written(settings)
    top = 2**bits
    for name, (out, inputs) in shapes.items():
        size = inputs if group_size == -1 else group_size
        groups = -(-inputs // size)
        g_idx = (np.arange(inputs) // size).astype(np.int32)
        if act_order:
            g_idx = rng.permutation(g_idx)
        q = rng.integers(0, top, size=(inputs, out))
        scales = _scales(rng, (groups, out))
        zero = np.full((groups, out), top // 2) if symmetric else rng.integers(1, top, size=(groups, out))
        stored = zero if version == "gptq_v2" else (zero - 1) % top
        written.tensors |= {
            name + ".qweight": np.ascontiguousarray(pack_rows(q.T, bits).T),
            name + ".qzeros": pack_rows(stored, bits),
            name + ".scales": scales,
            name + ".g_idx": g_idx,
        }
        weight = scales.astype(np.float32)[g_idx] * (q - zero[g_idx]).astype(np.float32)
        written.weights[name] = weight.T
        if bias:
            _bias(rng, written, name, out)
    return written


def awq(
    seed: int, *, shapes: dict[str, tuple[int, int]], group_size: int = 32, spelling: str = "version", bias: bool = True
) -> Written:
    """AWQ GEMM: nibble i of a word holds output 8c + (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    rng = np.random.default_rng(seed)
    written = Written(
        {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, spelling: "GEMM"}
    )
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    for name, (out, inputs) in shapes.items():
        size = inputs if group_size == -1 else group_size
        groups = -(-inputs // size)
        q, zero = rng.integers(0, 16, size=(inputs, out)), rng.integers(0, 16, size=(groups, out))
        scales = _scales(rng, (groups, out))
        placed = (np.arange(out // 8)[:, None] * 8 + order).reshape(-1)
        group = np.arange(inputs) // size
        written.tensors |= {
            name + ".qweight": pack_rows(q[:, placed], 4),
            name + ".qzeros": pack_rows(zero[:, placed], 4),
            name + ".scales": scales,
        }
        weight = scales.astype(np.float32)[group] * (q - zero[group]).astype(np.float32)
        written.weights[name] = weight.T
        if bias:
            _bias(rng, written, name, out)
    return written


def compressed(
    seed: int,
    *,
    shapes: dict[str, tuple[int, int]],
    bits: int = 4,
    layout: str = "pack-quantized",
    group_size: int | None = 32,
    symmetric: bool = True,
    act_order: bool = False,
    activations: dict[str, Any] | None = None,
    strategy: str | None = None,
    bias: bool = True,
) -> Written:
    """compressed-tensors: signed values, packed with 2^(bits - 1) added; zero points packed along the outputs."""
    rng = np.random.default_rng(seed)
    strategy = strategy or ("channel" if group_size is None else "group")
    scheme = {
        "num_bits": bits, "type": "int", "strategy": strategy, "symmetric": symmetric, "dynamic": False,
        "group_size": group_size, "actorder": "group" if act_order else None, "observer": "minmax",
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": activations, "output_activations": None}
    written = Written(
        {
            "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
            "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None, "version": "0.9.0",
        }
    )  # fmt: skip
    half = 2 ** (bits - 1)
    for name, (out, inputs) in shapes.items():
        size = group_size or inputs
        groups = -(-inputs // size)
        g_idx = (np.arange(inputs) // size).astype(np.int32)
        if act_order:
            g_idx = rng.permutation(g_idx)
            written.tensors[name + ".weight_g_idx"] = g_idx
        q = rng.integers(-half, half, size=(out, inputs)).astype(np.int8)
        scale = _scales(rng, (out, groups), np.float32)
        zero = np.zeros((out, groups), np.int8) if symmetric else rng.integers(-half, half, (out, groups), np.int8)
        if strategy == "tensor":
            scale[:] = scale[0, 0]
        written.tensors[name + ".weight_scale"] = scale[0] if strategy == "tensor" else scale
        if layout == "pack-quantized":
            written.tensors[name + ".weight_packed"] = pack_rows(q.astype(np.int64) + half, bits)
            written.tensors[name + ".weight_shape"] = np.array([out, inputs])
        else:
            written.tensors[name + ".weight"] = q
        if not symmetric:
            packed = pack_rows((zero.astype(np.int64) + half).T, bits).T
            written.tensors[name + ".weight_zero_point"] = packed if layout == "pack-quantized" else zero
        written.weights[name] = (q.astype(np.float32) - zero.astype(np.float32)[:, g_idx]) * scale[:, g_idx]
        if bias:
            _bias(rng, written, name, out)
    return written


def save_directory(
    written: Written, directory: Path, *, config: dict[str, Any] | None = None, settings_file: str | None = None
) -> Path:
    """Write ``config.json`` and ``model.safetensors``; the settings go into a file of their own if it has a name."""
    directory.mkdir(parents=True, exist_ok=True)
    body = {"model_type": "llama", **(config or {})}
    if settings_file is None:
        body["quantization_config"] = written.settings
    else:
        settings = {key: value for key, value in written.settings.items() if key != "quant_method"}
        (directory / settings_file).write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps(body))
    save_file({name: np.ascontiguousarray(value) for name, value in written.tensors.items()},
              directory / "model.safetensors")  # fmt: skip
    return directory
