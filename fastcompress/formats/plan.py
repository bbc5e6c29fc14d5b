"""What loading a checkpoint will change in a model, worked out and checked before anything does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fastcompress.formats import registry, structure
from fastcompress.formats.codec import LayerCodec
from fastcompress.formats.manifest import Manifest
from fastcompress.formats.structure import Slot
from fastcompress.formats.tensorfile import DTYPES

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """What will change: the layers to replace (by name, aliases resolved to one object each) and the slots to fill."""

    layers: Mapping[str, LayerCodec]
    slots: tuple[Slot, ...]


def _check_layer_tensors(name: str, layer: LayerCodec, manifest: Manifest) -> None:
    """Check that the file holds the tensors that a layer's configuration calls for, no more and no others."""
    expected = layer.tensors()
    for key, (dtype, shape) in expected.items():
        full = structure.join(name, key)
        found = manifest.tensors.get(manifest.tensor_aliases.get(full, full))
        if found is None:
            raise ValueError(f"tensor {full!r}: is missing, its layer's configuration calls for it")
        if found[1] != shape or (dtype or found[0]) != found[0] or not (dtype or DTYPES[found[0]].is_floating_point):
            wanted = f"{dtype or 'float'} {list(shape)}"
            raise ValueError(f"tensor {full!r}: is {found[0]} {list(found[1])}, its layer must have {wanted}")


def _absent_biases(modules: Mapping[str, nn.Module], names: set[str]) -> list[Slot]:
    """Slots for biases that the file has and a linear or convolution of the model lacks (a folded BatchNorm's)."""
    found = []
    for name in sorted(names):
        prefix, _, key = name.rpartition(".")
        module = modules.get(prefix)
        if key == "bias" and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.bias is None:
            found.append(Slot(prefix, key, True, None))
    return found


def _check_slot(slot: Slot, modules: Mapping[str, nn.Module], manifest: Manifest) -> None:
    dtype, shape = manifest.tensors[manifest.tensor_aliases.get(slot.name, slot.name)]
    tensor = slot.tensor
    if tensor is None:
        weight = cast(Tensor, modules[slot.module].weight)
        tensor = torch.empty(weight.shape[0], dtype=weight.dtype, device="meta")
    same_kind = DTYPES[dtype] == tensor.dtype or (DTYPES[dtype].is_floating_point and tensor.dtype.is_floating_point)
    if tuple(tensor.shape) != shape or not same_kind:
        raise ValueError(
            f"tensor {slot.name!r}: is {dtype} {list(shape)} in the file, {tensor.dtype} {list(tensor.shape)} in the "
            "model; is it the same architecture?"
        )


def make_plan(model: nn.Module, manifest: Manifest) -> Plan:
    """Match the manifest with the model; ``ValueError`` names the module or tensor."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parsed = {name: registry.parse(name, entry) for name, entry in manifest.modules.items()}
    layers: dict[str, LayerCodec] = {}
    for name in (*parsed, *manifest.module_aliases):
        layer = parsed[manifest.module_aliases.get(name, name)]
        if name not in modules:
            raise ValueError(f"module {name!r:.200}: the model has no such module; is it the same architecture?")
        try:
            layer.check_target(modules[name])
        except ValueError as error:
            raise ValueError(f"module {name!r}: {error}; is it the same architecture?") from None
        if name in parsed:  # a further name of a shared module has no tensors of its own
            _check_layer_tensors(name, layer, manifest)
        if layer.owns_tensors or not layer.keeps(modules[name]):
            layers[name] = layer
    # Plain layers are built on the meta device, just to learn which slots the converted model will have.
    stand_ins = {name: None if layer.owns_tensors else layer.build({}, modules[name]) for name, layer in layers.items()}
    slots = list(structure.slots(model, stand_ins))
    taken = {
        structure.join(name, key)
        for name, layer in layers.items()
        if layer.owns_tensors and name in parsed
        for key in layer.tensors()
    }
    stored = {*manifest.tensors, *manifest.tensor_aliases} - taken
    kept = {name: module for name, module in modules.items() if name not in layers}
    slots += _absent_biases(kept, stored - {slot.name for slot in slots})
    for name in sorted(stored ^ {slot.name for slot in slots}):
        where = "the model has no place for it" if name in stored else "the model needs it, the file lacks it"
        raise ValueError(f"tensor {name!r:.200}: {where}; is it the same architecture?")
    for slot in slots:
        _check_slot(slot, modules, manifest)
    for name, buffer in structure.unsaved_buffers(model, stand_ins):
        if buffer.is_meta:
            raise ValueError(f"tensor {name!r}: is on the meta device and in no file; construct the model on the CPU")
    return Plan(layers, tuple(slots))
