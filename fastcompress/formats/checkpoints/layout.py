"""Canonical layers as compressed-tensors' tensors and settings: what `read_compressed` reads, written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastcompress.formats.checkpoints.content import LayerCanonical, StoredLayer
from fastcompress.formats.checkpoints.schemes import INT, PACKED, LayerScheme, by_scheme
from fastcompress.formats.checkpoints.words import unpack_words
from fastcompress.ops.canonical import W8A8Canonical
from fastcompress.ops.canonical_w4 import W4Canonical, pack_nibbles

__all__ = ["layer_tensors", "scheme_of", "settings_of"]

_MIXED = "mixed-precision"


def scheme_of(stored: StoredLayer) -> LayerScheme:
    """The scheme that says how to read `layer_tensors`.

    Raises:
        ValueError: a convolution, or a fused activation function, which these files cannot hold.
    """
    c = stored.canonical
    if len(c.weight_shape) != 2:
        raise ValueError(
            f"a weight of shape {list(c.weight_shape)} is not a linear layer's; fastcompress.save holds it"
        )
    if c.activation != "none":
        raise ValueError(f"the fused {c.activation} has no place in the file; fastcompress.save holds it")
    if isinstance(c, W8A8Canonical):
        return LayerScheme(8, "channel", None, True, False, INT, c.input_mode)
    size = None if c.group_size == c.weight_shape[1] else c.group_size
    strategy = "channel" if size is None else "group"
    ordered = stored.input_order is not None
    if isinstance(c, W4Canonical):
        symmetric = c.weight_zero_point is None and c.weight_min is None
        return LayerScheme(4, strategy, size, symmetric, ordered, PACKED, c.input_mode)
    return LayerScheme(8, strategy, size, True, ordered, INT, c.input_mode)


def _natural(values: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return values
    natural = torch.empty_like(values)
    natural[:, order] = values
    return natural


def _four_bits(c: W4Canonical, order: Tensor | None) -> dict[str, Tensor]:
    out, inputs = c.weight_shape
    words = c.weight_packed
    if order is not None:
        words = pack_nibbles(_natural(unpack_words(words, 4)[:, :inputs], order))
    tensors = {"weight_packed": words, "weight_shape": torch.tensor([out, inputs])}
    if c.weight_zero_point is not None:
        tensors["weight_zero_point"] = pack_nibbles(c.weight_zero_point.t().contiguous()).t().contiguous()
    if c.weight_min is not None:
        tensors["weight_min"] = c.weight_min
    return tensors


def layer_tensors(module: str, stored: StoredLayer) -> dict[str, Tensor]:
    """The tensors of one layer by their full names; float minima become ``weight_min``, which is our own."""
    c, order = stored.canonical, stored.input_order
    tensors = _four_bits(c, order) if isinstance(c, W4Canonical) else {"weight": _natural(c.weight, order)}
    scale = c.weight_scale
    tensors["weight_scale"] = scale.reshape(-1, 1) if scale.dim() == 1 else scale
    if order is not None and not isinstance(c, W8A8Canonical):
        g_idx = torch.empty(order.numel(), dtype=torch.int32)
        g_idx[order] = (torch.arange(order.numel()) // c.group_size).to(torch.int32)
        tensors["weight_g_idx"] = g_idx
    if c.bias is not None:
        tensors["bias"] = c.bias
    if isinstance(c, W8A8Canonical) and c.input_mode == "static":
        tensors["input_scale"] = torch.tensor([c.input_scale], dtype=torch.float32)
        tensors["input_zero_point"] = torch.tensor([c.input_zero_point - 128], dtype=torch.int8)
    return {f"{module}.{key}": value for key, value in tensors.items()}


def _activations(mode: str) -> dict[str, Any] | None:
    if mode == "dynamic_16bit":
        return None
    static = mode == "static"
    return {
        "num_bits": 8,
        "type": "int",
        "strategy": "tensor" if static else "token",
        "dynamic": not static,
        "symmetric": mode == "dynamic_symmetric",
    }


def _group(scheme: LayerScheme, targets: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "strategy": scheme.strategy,
        "group_size": scheme.group_size,
        "symmetric": scheme.symmetric,
        "actorder": "group" if scheme.act_order else None,
        "dynamic": False,
    }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": _activations(scheme.input_mode),
        "output_activations": None,
        "format": scheme.format,
    }


def settings_of(layers: Mapping[str, LayerCanonical | StoredLayer], ignore: Iterable[str]) -> dict[str, Any]:
    """The ``quantization_config`` of these layers, without ``quant_method``.

    The largest group is that of all linear layers, as other readers expect it, smaller ones go by name.
    """
    stored = {name: layer if isinstance(layer, StoredLayer) else StoredLayer(layer) for name, layer in layers.items()}
    groups: dict[str, Any] = {}
    for scheme, modules in by_scheme({name: scheme_of(layer) for name, layer in stored.items()}).items():
        named = [name for name in sorted(modules) if groups or "embed" in name.rpartition(".")[2]]
        groups[f"group_{len(groups)}"] = _group(scheme, named if groups else ["Linear", *named])
    formats = {group["format"] for group in groups.values()}
    return {
        "format": formats.pop() if len(formats) == 1 else _MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
    }
