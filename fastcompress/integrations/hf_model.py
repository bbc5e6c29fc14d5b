"""Our layers inside a transformers model: found, put in place, hidden while other tensors are loaded."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastcompress.formats.checkpoints import StoredLayer
from fastcompress.formats.checkpoints.build import is_quantized, stored_layer
from fastcompress.integrations.hf_ties import keep_ties

__all__ = ["Waiting", "forget_replaced_ties", "named_as_in", "put", "quantized_names", "stored_layers"]


class Waiting(nn.Module):
    """Holds a finished layer while transformers loads the other tensors, so that it looks for none here."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)  # hidden: not a submodule


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the module of this name."""
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, module)


def named_as_in(model: Any, layers: Any) -> dict[str, StoredLayer]:
    """The layers by the model's names: a base model lacks the prefix of the whole one, and its heads."""
    prefix = model.base_model_prefix + "."
    if not model.base_model_prefix or not any(name.startswith(prefix) for name in layers):
        if model.base_model_prefix and hasattr(model, model.base_model_prefix):
            return {
                (prefix + name if name.partition(".")[0] not in model._modules else name): v
                for name, v in layers.items()
            }
        return dict(layers)
    if hasattr(model, model.base_model_prefix):
        return dict(layers)
    return {name.removeprefix(prefix): stored for name, stored in layers.items() if name.startswith(prefix)}


def quantized_names(model: nn.Module) -> list[str]:
    """Modules that hold a layer of a checkpoint. Raises ValueError, see `is_quantized`."""
    return [name for name, module in model.named_modules() if is_quantized(module)]


def stored_layers(model: nn.Module) -> dict[str, StoredLayer]:
    """Quantized layers by name; of those that share their memory the first, the embedding before its head."""
    found: dict[str, StoredLayer] = {}
    memory = set()
    for name in quantized_names(model):
        module = model.get_submodule(name)
        place = module.packed.data_ptr() if isinstance(module.packed, Tensor) else id(module)
        if place not in memory:
            memory.add(place)
            found[name] = stored_layer(module)
    return found


def forget_replaced_ties(model: Any) -> None:
    """Parameters that quantization replaced are tied through their layers, transformers must not look for them."""
    names = set(quantized_names(model))
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    ends = {key: {key.removesuffix(".weight"), source.removesuffix(".weight")} for key, source in ties.items()}
    keep_ties(model, {key: source for key, source in ties.items() if not ends[key] & names})
