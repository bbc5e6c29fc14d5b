"""A GGUF file of a Llama network: names and rows as Hugging Face has them, a ``config.json`` from the metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastcompress.formats.checkpoints.content import StoredLayer
from fastcompress.formats.checkpoints.gguf_blocks import FLOAT_TYPES, layer_of_blocks, take_rows
from fastcompress.formats.checkpoints.gguf_file import GGUFArray, GGUFFile
from fastcompress.formats.checkpoints.gguf_rope import llama3_scaling

__all__ = ["read_llama"]

_ARCHITECTURE = "llama"
_BLOCK_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)")
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ROPE = "rope_freqs.weight"
_INSIDE = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class _Sizes:
    vocabulary: int
    hidden: int
    feed_forward: int
    blocks: int
    heads: int
    kv_heads: int
    head: int

    def shape(self, part: str) -> tuple[int, ...]:
        """The shape of a block's weight."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q": (queries, self.hidden),
            "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, queries),
            "ffn_gate": (self.feed_forward, self.hidden),
            "ffn_up": (self.feed_forward, self.hidden),
            "ffn_down": (self.hidden, self.feed_forward),
        }
        return shapes.get(part, (self.hidden,))


class _Metadata:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def error(self, key: str, problem: str) -> ValueError:
        return ValueError(f"metadata {key!r}: {problem}")

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1) -> int:
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, f"must be an integer in [{low}, {high}], is {value!r:.60}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0.0:
            raise self.error(key, f"must be a positive number, is {value!r:.60}")
        return value

    def get(self, key: str) -> Any:
        return self._values.get(key)


def _sizes(meta: _Metadata, file: GGUFFile) -> _Sizes:
    if "token_embd.weight" not in file.tensors:
        raise ValueError("tensor 'token_embd.weight': is missing")
    if meta.get("general.architecture") != _ARCHITECTURE:
        raise meta.error(
            "general.architecture", f"{meta.get('general.architecture')!r:.60} is not supported: llama only"
        )
    if meta.integer("llama.expert_count", 0, low=0):
        raise meta.error("llama.expert_count", "mixtures of experts are not supported")
    hidden = meta.integer("llama.embedding_length")
    heads = meta.integer("llama.attention.head_count")
    kv_heads = meta.integer("llama.attention.head_count_kv", heads)
    head = meta.integer("llama.attention.key_length", hidden // heads)
    if heads % kv_heads or head % 2 or meta.integer("llama.attention.value_length", head) != head:
        raise ValueError(f"metadata: {heads} and {kv_heads} heads of {head} do not make a Llama network")
    if meta.integer("llama.rope.dimension_count", head) != head:
        raise meta.error("llama.rope.dimension_count", f"must be the size of a head, {head}")
    blocks = meta.integer("llama.block_count")
    if blocks > len(file.tensors):
        raise meta.error("llama.block_count", f"is {blocks}, the file has {len(file.tensors)} tensors")
    return _Sizes(
        file.tensors["token_embd.weight"].shape[0],
        hidden,
        meta.integer("llama.feed_forward_length"),
        blocks,
        heads,
        kv_heads,
        head,
    )


def _token(meta: _Metadata, key: str, vocabulary: int) -> int | None:
    name = f"tokenizer.ggml.{key}_token_id"
    return None if meta.get(name) is None else meta.integer(name, low=0, high=vocabulary - 1)


def _config(meta: _Metadata, sizes: _Sizes, file: GGUFFile) -> dict[str, Any]:
    tokens = meta.get("tokenizer.ggml.tokens")
    if isinstance(tokens, GGUFArray) and tokens.count > sizes.vocabulary:
        raise meta.error("tokenizer.ggml.tokens", f"has {tokens.count} tokens, the embedding {sizes.vocabulary}")
    scaling = meta.get("llama.rope.scaling.type")
    if scaling not in (None, "none"):
        raise meta.error("llama.rope.scaling.type", f"{scaling!r:.40} is not supported")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.feed_forward,
        "num_hidden_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head,
        "max_position_embeddings": meta.integer("llama.context_length"),
        "rms_norm_eps": meta.real("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.real("llama.rope.freq_base", 10_000.0),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": _token(meta, "bos", sizes.vocabulary),
        "eos_token_id": _token(meta, "eos", sizes.vocabulary),
        "pad_token_id": _token(meta, "padding", sizes.vocabulary),
    }


def _place(name: str, sizes: _Sizes) -> tuple[str, tuple[int, ...], int]:
    """Hugging Face's name, the shape, and the heads whose rows llama.cpp has interleaved (0: none)."""
    if name in _OUTSIDE:
        wide = (sizes.vocabulary, sizes.hidden)
        return _OUTSIDE[name], (sizes.hidden,) if name == "output_norm.weight" else wide, 0
    match = _BLOCK_NAME.fullmatch(name)
    if match is None or match[2] not in _INSIDE or int(match[1]) >= sizes.blocks:
        raise ValueError("is no tensor of this Llama network")
    if match[3] == "bias" and match[2].endswith("norm"):
        raise ValueError("Llama's norms have no bias")
    shape = sizes.shape(match[2])
    heads = {"attn_q": sizes.heads, "attn_k": sizes.kv_heads}.get(match[2], 0)
    full = f"model.layers.{match[1]}.{_INSIDE[match[2]]}.{match[3]}"
    return full, shape[:1] if match[3] == "bias" else shape, heads


def _row_order(rows: int, heads: int) -> Tensor:
    """llama.cpp pairs the two halves of each head: row (head, pair, half) there is (head, half, pair) here."""
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def _complete(found: set[str], sizes: _Sizes) -> None:
    wanted = {"token_embd.weight", "output_norm.weight"}
    wanted |= {f"blk.{block}.{part}.weight" for block in range(sizes.blocks) for part in _INSIDE}
    missing = wanted - found
    if missing:
        raise ValueError(f"tensor {min(missing)!r}: is missing")


def read_llama(file: GGUFFile) -> tuple[dict[str, Any], dict[str, StoredLayer], dict[str, Tensor]]:
    """The configuration, layers and other tensors of a Llama network.

    Raises:
        ValueError: the message names the metadata or the tensor.
    """
    meta = _Metadata(file.metadata)
    sizes = _sizes(meta, file)
    config = _config(meta, sizes, file)
    _complete(set(file.tensors), sizes)
    layers: dict[str, StoredLayer] = {}
    tensors: dict[str, Tensor] = {}
    for name, info in file.tensors.items():
        try:
            if name == _ROPE:
                config["rope_scaling"] = _rope_scaling(file, config)
                continue
            full, shape, heads = _place(name, sizes)
            if info.shape != shape:
                raise ValueError(f"has shape {list(info.shape)}, the metadata asks for {list(shape)}")
            order = _row_order(shape[0], heads) if heads else None
            raw = file.read(name)
            if info.type in FLOAT_TYPES:
                value = raw.view(FLOAT_TYPES[info.type]).reshape(shape)
                tensors[full] = value if order is None else value[order]
                continue
            if len(shape) != 2:
                raise ValueError(f"is {info.type}, only matrices may be")
            canonical = layer_of_blocks(info.type, raw, *shape)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from None
        layers[full.removesuffix(".weight")] = StoredLayer(canonical if order is None else take_rows(canonical, order))
    return config, _with_biases(layers, tensors), tensors


def _rope_scaling(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, Any]:
    info = file.tensors[_ROPE]
    if info.type != "F32" or info.shape != (config["head_dim"] // 2,):
        raise ValueError(f"is {info.type} {list(info.shape)}, must be F32 [{config['head_dim'] // 2}]")
    return llama3_scaling(file.read(_ROPE).view(torch.float32), config["rope_theta"])


def _with_biases(layers: dict[str, StoredLayer], tensors: dict[str, Tensor]) -> dict[str, StoredLayer]:
    for name, stored in layers.items():
        bias = tensors.pop(name + ".bias", None)
        if bias is not None:
            if not bool(torch.isfinite(bias).all()):
                raise ValueError(f"tensor {name + '.bias'!r}: holds NaN or infinity")
            layers[name] = StoredLayer(replace(stored.canonical, bias=bias.to(torch.float32)))
    return layers
