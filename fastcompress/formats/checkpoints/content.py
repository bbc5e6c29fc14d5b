"""What the readers of other tools' checkpoints return, whatever the format was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcompress.ops.canonical import W8A8Canonical
from fastcompress.ops.canonical_w4 import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical

__all__ = ["Checkpoint", "LayerCanonical", "StoredLayer"]

#: The forms that a layer of a checkpoint may have.
LayerCanonical = W4Canonical | W8Canonical | W8A8Canonical


@dataclass(frozen=True)
class StoredLayer:
    """One quantized layer of a checkpoint.

    Attributes:
        canonical: the layer; its input is permuted where there is an `input_order`.
        input_order: int64 ``[in]`` or None: input k of `canonical` is input ``input_order[k]`` of the layer. GPTQ's
            act-order (``desc_act``) puts inputs of one group at arbitrary places; here they are neighbours again.

    Example:
        >>> y = torch.nn.functional.linear(x[..., layer.input_order], layer.canonical.dequantize())
    """

    canonical: LayerCanonical
    input_order: Tensor | None = None

    def dequantize(self) -> Tensor:
        """The weight as float32 ``[out, in]``, inputs in the layer's own order."""
        weight = self.canonical.dequantize()
        if self.input_order is None:
            return weight
        natural = weight.new_empty(weight.shape)
        natural[:, self.input_order] = weight
        return natural


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: the directory or file.
        method: ``"gptq"``, ``"awq"``, ``"compressed-tensors"``, ``"fastcompress"``, ``"gguf"`` or ``"none"`` (floats
            only).
        config: the model's ``config.json`` without its quantization, or what a GGUF file says in its place.
        layers: module name → quantized layer.
        tensors: every other tensor by its name in ``state_dict()``, as the file has it.
    """

    path: Path
    method: str
    config: Mapping[str, Any]
    layers: Mapping[str, StoredLayer]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
