"""Turning a checked plan and checked tensors into a converted model; nothing here can fail half-way."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.formats import structure
from fastcompress.formats.manifest import Manifest
from fastcompress.formats.plan import Plan
from fastcompress.nn import PackedLayer
from fastcompress.record import RECORD_ATTRIBUTE, CompressionRecord

__all__ = ["apply", "build_layers", "fill_slots"]


def build_layers(
    model: nn.Module, plan: Plan, manifest: Manifest, tensors: Mapping[str, Tensor]
) -> dict[str, nn.Module]:
    """Make all replacement modules; one object for the names that share one."""
    built: dict[str, nn.Module] = {}
    blobs: dict[tuple[str, ...], Tensor] = {}
    for name, layer in plan.layers.items():
        source = manifest.module_aliases.get(name, name)
        if source not in built:
            names = {key: structure.join(source, key) for key in layer.tensors()} if layer.owns_tensors else {}
            stored = {key: manifest.tensor_aliases.get(full, full) for key, full in names.items()}
            try:
                made = layer.build({key: tensors[full] for key, full in stored.items()}, model.get_submodule(name))
                built[source] = _sharing(made, blobs, tuple(stored.values()))
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(f"module {name!r}: {error}") from error
        built[name] = built[source]
    return built


def _sharing(layer: nn.Module, blobs: dict[tuple[str, ...], Tensor], stored: tuple[str, ...]) -> nn.Module:
    """`layer`, with the blob of the one that was built from the same tensors before (a tied output head)."""
    if isinstance(layer, PackedLayer):
        earlier = blobs.setdefault(stored, layer.packed)
        if earlier is not layer.packed and torch.equal(earlier, layer.packed):
            layer.packed = earlier
    return layer


def fill_slots(plan: Plan, manifest: Manifest, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The new tensor for each slot, on the old one's device; shared in the file means shared in the model."""
    made: dict[tuple[str, bool], Tensor] = {}
    filled = []
    for slot in plan.slots:
        source = manifest.tensor_aliases.get(slot.name, slot.name)
        if (source, slot.is_parameter) not in made:
            tensor = tensors[source]
            if slot.tensor is not None and not slot.tensor.is_meta:
                tensor = tensor.to(slot.tensor.device)
            trainable = tensor.is_floating_point() and (slot.tensor is None or slot.tensor.requires_grad)
            made[source, slot.is_parameter] = nn.Parameter(tensor, trainable) if slot.is_parameter else tensor
        filled.append(made[source, slot.is_parameter])
    return filled


def _copy(model: nn.Module, plan: Plan, layers: Mapping[str, nn.Module], values: list[Tensor]) -> nn.Module:
    """Copy ``model`` without copying a tensor that is about to be replaced."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for slot, value in zip(plan.slots, values, strict=True):
        if slot.tensor is not None:
            memo[id(slot.tensor)] = value
    names: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), set()).add(name)
    for identity, all_names in names.items():
        if all_names <= layers.keys():
            memo[identity] = layers[min(all_names)]
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a module may hold anything, and anything may refuse to be copied
        raise ValueError(f"the model given cannot be copied ({error}); pass inplace=True") from error


def apply(
    model: nn.Module,
    plan: Plan,
    layers: Mapping[str, nn.Module],
    values: list[Tensor],
    record: CompressionRecord | None,
    inplace: bool,
) -> nn.Module:
    """Put layers and tensors in place, in a copy of ``model`` or in itself.

    Raises:
        ValueError: ``model`` cannot be copied, or it is itself the layer to replace and ``inplace`` is set.
    """
    if "" in layers:
        if inplace:
            raise ValueError("the model given is itself replaced by a quantized layer; pass inplace=False")
        result = layers[""]
    else:
        result = model if inplace else _copy(model, plan, layers, values)
        for name, layer in layers.items():
            structure.put_module(result, name, layer)
    for slot, value in zip(plan.slots, values, strict=True):
        structure.put_tensor(result, slot, value)
    if record is not None:
        setattr(result, RECORD_ATTRIBUTE, record)
    elif hasattr(result, RECORD_ATTRIBUTE):
        delattr(result, RECORD_ATTRIBUTE)
    return result
