"""A checkpoint's layers and tensors into a model on the meta device: everything checked, then everything placed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.formats.checkpoints import build
from fastcompress.formats.checkpoints.content import Checkpoint, StoredLayer
from fastcompress.ops.canonical import W8A8Canonical
from fastcompress.ops.canonical_w4 import W4Canonical

__all__ = ["Placed", "fill_tensors", "place_layers", "with_input_mode"]


#: Buffers that are computed now.
_SUPERFLUOUS = (r"(^|\.)rotary_emb\.inv_freq$", r"(^|\.)position_ids$")


@dataclass(frozen=True)
class Placed:
    """What `place_layers` put into a model: module name → layer, and parameters that are tied through their modules."""

    layers: Mapping[str, nn.Module]
    tied: frozenset[str]


def with_input_mode(stored: StoredLayer, input_mode: str | None) -> StoredLayer:
    """A four-bit layer with other activations; others, and with None all, stay as they are."""
    if input_mode is None or not isinstance(stored.canonical, W4Canonical):
        return stored
    return replace(stored, canonical=replace(stored.canonical, input_mode=input_mode))


def _without_idle_bias(module: nn.Module | None, stored: StoredLayer) -> StoredLayer:
    """Early GPTQ files have a bias of zeros in every layer, also where the model has none."""
    bias = stored.canonical.bias
    if bias is None or getattr(module, "bias", None) is not None or bool(bias.any()):
        return stored
    return replace(stored, canonical=replace(stored.canonical, bias=None))


def _check(module: nn.Module | None, stored: StoredLayer) -> None:
    shape = list(stored.canonical.weight_shape)
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        if (module.bias is None) != (stored.canonical.bias is None):
            raise ValueError(f"the model has {'no' if module.bias is None else 'a'} bias there, the file differs")
    elif isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward:
        if isinstance(stored.canonical, W8A8Canonical) or stored.input_order is not None:
            raise ValueError("an embedding cannot have quantized activations or an order of its inputs")
        if stored.canonical.bias is not None or module.max_norm is not None:
            raise ValueError("an embedding with a bias or max_norm is not supported")
    else:
        kind = "nothing" if module is None else type(module).__name__
        raise ValueError(f"the model has {kind} there, a quantized layer replaces nn.Linear or nn.Embedding")
    if list(module.weight.shape) != shape:
        raise ValueError(f"the weight is {shape} in the file, {list(module.weight.shape)} in the model")


def _built(module: nn.Module, stored: StoredLayer, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return build.build_embedding(stored.canonical, dtype=dtype, padding_idx=module.padding_idx)
    return build.build_layer(stored.canonical, stored.input_order, dtype=dtype)


@contextlib.contextmanager
def _naming(layer: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {layer!r:.200}: {error}") from None


def place_layers(
    model: nn.Module, layers: dict[str, StoredLayer], tied: Mapping[str, str], dtype: torch.dtype
) -> Placed:
    """Put the quantized layers where their names say; the model's float modules there are dropped.

    Args:
        layers: module name → layer. Each is taken out when it is packed, so that there are never two copies of all.
        tied: parameter → the parameter whose value it shares. An output head tied to a quantized embedding shares it.

    Raises:
        ValueError: the message names the module.
    """
    modules = dict(model.named_modules())
    made: dict[str, nn.Module] = {}
    for name, stored in layers.items():
        with _naming(name):
            layers[name] = _without_idle_bias(modules.get(name), stored)
            _check(modules.get(name), layers[name])
    for name in list(layers):
        with _naming(name):
            made[name] = _built(modules[name], layers.pop(name), dtype)
    settled = set()
    for target, source in tied.items():
        head, embedding = target.rpartition(".")[0], source.rpartition(".")[0]
        if embedding not in made:
            if head in made:
                raise ValueError(f"layer {head!r}: is quantized, {embedding!r}, whose weight it shares, is not")
            continue
        settled.add(target)
        if head not in made:
            if not isinstance(modules[head], nn.Linear) or not isinstance(modules[embedding], nn.Embedding):
                raise ValueError(f"layer {head!r}: cannot share the weight of {embedding!r}")
            if getattr(modules[head], "bias", None) is not None:
                raise ValueError(f"layer {head!r}: has a bias, which a head that shares a quantized weight cannot have")
            made[head] = build.tied_head(made[embedding])
    for name, layer in made.items():
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, layer.train(model.training))
    return Placed(made, frozenset(settled))


def _slots(model: nn.Module, placed: Collection[str]) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Parameters and persistent buffers outside of placed layers: name, owner, key, tensor."""
    for prefix, module in model.named_modules():
        if prefix in placed:
            continue
        buffers = {k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for key, tensor in (*module._parameters.items(), *buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{key}" if prefix else key, module, key, tensor


def _superfluous(model: nn.Module, name: str) -> bool:
    """Whether transformers, too, leaves a tensor out that the model has no place for: earlier versions saved more."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in (*_SUPERFLUOUS, *patterns))


def fill_tensors(
    model: nn.Module,
    checkpoint: Checkpoint,
    placed: Placed,
    tied: Mapping[str, str],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Assign the checkpoint's other tensors to the model's parameters and buffers; floats become `dtype`.

    Raises:
        ValueError: a tensor without a place, a place without a tensor, or another shape or kind; the message names it.
    """
    given = dict(checkpoint.tensors)
    slots = {name: (module, key, tensor) for name, module, key, tensor in _slots(model, placed.layers)}
    values: dict[str, Any] = {}
    for name, (_, _, tensor) in slots.items():
        # Of tied parameters the file may hold any one, or all of them.
        source = next(
            (n for n in (name, tied.get(name), *(t for t, s in tied.items() if s == name)) if n in given), None
        )
        if source is None:
            raise ValueError(f"tensor {name!r}: the model needs it, the file lacks it")
        value = given[source]
        if list(value.shape) != list(tensor.shape) or value.is_floating_point() != tensor.is_floating_point():
            raise ValueError(
                f"tensor {source!r}: is {value.dtype} {list(value.shape)} in the file, {tensor.dtype} "
                f"{list(tensor.shape)} in the model"
            )
        values[name] = value
    unknown = {name for name in given.keys() - slots.keys() - placed.tied if not _superfluous(model, name)}
    if unknown:
        raise ValueError(f"tensor {min(unknown)!r:.200}: the model has no place for it")
    made: dict[int, Tensor] = {}
    for name, (module, key, tensor) in slots.items():
        value = values[name]
        if id(tensor) not in made:  # the same object twice is one parameter
            kind = dtype if value.is_floating_point() else tensor.dtype
            filled = value.to(device=device, dtype=kind)
            made[id(tensor)] = nn.Parameter(filled, requires_grad=False) if key in module._parameters else filled
        target = module._parameters if key in module._parameters else module._buffers
        target[key] = made[id(tensor)]  # type: ignore[assignment]
