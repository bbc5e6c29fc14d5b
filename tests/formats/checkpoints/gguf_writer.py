"""A GGUF file of a small Llama network written with numpy, and the weights that it stands for."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Parts", "llama", "text"]

Array = NDArray[Any]
_U32, _F32, _STR, _ARR = 4, 6, 8, 9
_CODES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q6_K": 14, "BF16": 30}


def text(value: str) -> bytes:
    """A string: its length in bytes, then the bytes."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


@dataclass
class Parts:
    """The parts of a file, to be changed before `to_bytes` puts them together, and what a reader must find."""

    metadata: dict[str, bytes] = field(default_factory=dict)
    #: name → (type code, shape with the fastest dimension last, bytes)
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    floats: dict[str, Array] = field(default_factory=dict)
    version: int = 3
    alignment: int = 32

    def to_bytes(self) -> bytes:
        """The file."""
        head = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))
        for key, value in self.metadata.items():
            head += text(key) + value
        data = b""
        for name, (code, shape, raw) in self.tensors.items():
            data += b"\0" * (-len(data) % self.alignment)
            head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
            head += struct.pack("<IQ", code, len(data))
            data += raw
        data += b"\0" * (-len(data) % self.alignment)
        return head + b"\0" * (-len(head) % self.alignment) + data


def _six_bit_blocks(rng: np.random.Generator, out: int, inputs: int) -> tuple[bytes, Array]:
    """Q6_K: element by element, as ggml's quantize_row_q6_K_ref lays them out."""
    blocks, weights = b"", np.empty((out, inputs), np.float32)
    for row in range(out):
        for start in range(0, inputs, 256):
            q, fine = rng.integers(0, 64, 256), rng.integers(-128, 128, 16).astype(np.int8)
            d = rng.uniform(-1e-3, 1e-3, 1).astype(np.float16)
            low, high = np.zeros(128, np.uint8), np.zeros(64, np.uint8)
            for half in range(2):
                for e in range(128):
                    value = int(q[128 * half + e])
                    low[64 * half + e % 64] |= (value & 15) << (4 * (e // 64))
                    high[32 * half + e % 32] |= (value >> 4) << (2 * (e // 32))
            blocks += low.tobytes() + high.tobytes() + fine.tobytes() + d.tobytes()
            scale = d.astype(np.float32) * fine.astype(np.float32)
            weights[row, start : start + 256] = np.repeat(scale, 16) * (q - 32).astype(np.float32)
    return blocks, weights


def _blocks(rng: np.random.Generator, kind: str, out: int, inputs: int) -> tuple[bytes, Array]:
    """Random blocks ``[out, in / 32]`` of a type, and their weights."""
    if kind == "Q6_K":
        return _six_bit_blocks(rng, out, inputs)
    shape = (out, inputs // 32)
    d = rng.uniform(-0.1, 0.1, shape).astype(np.float16)  # Q4_0's scales have both signs
    wide = d.astype(np.float32)[..., None]
    if kind == "Q8_0":
        q = rng.integers(-128, 128, (*shape, 32)).astype(np.int8)
        raw = np.concatenate([d[..., None].view(np.uint8), q.view(np.uint8)], axis=-1)
        return raw.tobytes(), (wide * q.astype(np.float32)).reshape(out, inputs)
    q = rng.integers(0, 16, (*shape, 32)).astype(np.uint8)
    nibbles = q[..., :16] | (q[..., 16:] << 4)
    if kind == "Q4_0":
        raw = np.concatenate([d[..., None].view(np.uint8), nibbles], axis=-1)
        return raw.tobytes(), (wide * (q.astype(np.float32) - 8)).reshape(out, inputs)
    m = rng.uniform(-1, 1, shape).astype(np.float16)
    raw = np.concatenate([d[..., None].view(np.uint8), m[..., None].view(np.uint8), nibbles], axis=-1)
    weights = wide * q.astype(np.float32) + m.astype(np.float32)[..., None]
    return raw.tobytes(), weights.reshape(out, inputs)


def _interleaved(rows: int, heads: int) -> Array:
    """Where llama.cpp's converter takes row r of a query or key projection from: pairs beside each other."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def llama(
    seed: int,
    *,
    blocks: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 96,
    vocabulary: int = 40,
    kinds: tuple[str, ...] = ("Q4_0", "Q4_1", "Q8_0", "F16", "F32", "BF16"),
    tied: bool = True,
    bias: bool = False,
) -> Parts:
    """A network whose matrices take the types in turn."""
    rng = np.random.default_rng(seed)
    head = hidden // heads
    parts = Parts()
    numbers = {
        "block_count": blocks, "context_length": 128, "embedding_length": hidden, "feed_forward_length": feed_forward,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "rope.dimension_count": head,
    }  # fmt: skip
    parts.metadata["general.architecture"] = struct.pack("<I", _STR) + text("llama")
    for key, value in numbers.items():
        parts.metadata["llama." + key] = struct.pack("<II", _U32, value)
    for key, real in (("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 1e4)):
        parts.metadata["llama." + key] = struct.pack("<If", _F32, real)
    tokens = [f"t{index}" for index in range(vocabulary)]
    array = struct.pack("<IIQ", _ARR, _STR, len(tokens)) + b"".join(map(text, tokens))
    parts.metadata["tokenizer.ggml.tokens"] = array
    parts.metadata["tokenizer.ggml.token_type"] = struct.pack(
        f"<IIQ{vocabulary}i", _ARR, 5, vocabulary, *[1] * vocabulary
    )
    parts.metadata["tokenizer.ggml.bos_token_id"] = struct.pack("<II", _U32, 1)

    turn = 0

    def matrix(name: str, theirs: str, out: int, inputs: int, interleave: int = 0) -> None:
        nonlocal turn
        kind = kinds[turn % len(kinds)]
        turn += 1
        if kind in ("F16", "F32", "BF16"):
            value = rng.normal(size=(out, inputs)).astype(np.float16).astype(np.float32)
            if kind == "BF16":
                value = (value.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
            raw = {"F16": lambda: value.astype(np.float16), "F32": lambda: value,
                   "BF16": lambda: (value.view(np.uint32) >> 16).astype(np.uint16)}[kind]().tobytes()  # fmt: skip
        else:
            raw, value = _blocks(rng, kind, out, inputs)
        parts.tensors[theirs] = (_CODES[kind], (out, inputs), raw)
        if interleave:  # the file has rows in llama.cpp's order, a reader must give them back in ours
            natural = np.empty_like(value)
            natural[_interleaved(out, interleave)] = value
            value = natural
        (parts.floats if kind in ("F16", "F32", "BF16") else parts.weights)[name] = value

    def vector(name: str, theirs: str, size: int, interleave: int = 0) -> None:
        value = rng.normal(size=size).astype(np.float32)
        parts.tensors[theirs] = (_CODES["F32"], (size,), value.tobytes())
        if interleave:
            natural = np.empty_like(value)
            natural[_interleaved(size, interleave)] = value
            value = natural
        parts.floats[name] = value

    matrix("model.embed_tokens", "token_embd.weight", vocabulary, hidden)
    for index in range(blocks):
        ours, theirs = f"model.layers.{index}.", f"blk.{index}."
        vector(ours + "input_layernorm.weight", theirs + "attn_norm.weight", hidden)
        vector(ours + "post_attention_layernorm.weight", theirs + "ffn_norm.weight", hidden)
        matrix(ours + "self_attn.q_proj", theirs + "attn_q.weight", hidden, hidden, heads)
        matrix(ours + "self_attn.k_proj", theirs + "attn_k.weight", kv_heads * head, hidden, kv_heads)
        matrix(ours + "self_attn.v_proj", theirs + "attn_v.weight", kv_heads * head, hidden)
        matrix(ours + "self_attn.o_proj", theirs + "attn_output.weight", hidden, hidden)
        matrix(ours + "mlp.gate_proj", theirs + "ffn_gate.weight", feed_forward, hidden)
        matrix(ours + "mlp.up_proj", theirs + "ffn_up.weight", feed_forward, hidden)
        matrix(ours + "mlp.down_proj", theirs + "ffn_down.weight", hidden, feed_forward)
        if bias:
            vector(ours + "self_attn.q_proj.bias", theirs + "attn_q.bias", hidden, heads)
            vector(ours + "self_attn.k_proj.bias", theirs + "attn_k.bias", kv_heads * head, kv_heads)
            vector(ours + "self_attn.v_proj.bias", theirs + "attn_v.bias", kv_heads * head)
            vector(ours + "self_attn.o_proj.bias", theirs + "attn_output.bias", hidden)
    vector("model.norm.weight", "output_norm.weight", hidden)
    if not tied:
        matrix("lm_head", "output.weight", vocabulary, hidden)
    return parts
