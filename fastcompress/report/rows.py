"""What is known about each layer of a model without running it: one row of `explain` for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastcompress.nn import BlockSparse, GroupQuantized, PackedLayer, QuantEmbedding, QuantizedLayer
from fastcompress.nn.blocks import block_name
from fastcompress.nn.conv2d import PackedConv2d
from fastcompress.nn.linear import PackedLinear
from fastcompress.ops import packing
from fastcompress.record import CompressionRecord, LayerDecision

__all__ = ["LayerRow", "layer_rows"]


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: its name in the model.
        kind: the class it had before compression (now, if there is no record).
        action: ``"quantized"``, ``"sparse"``, ``"kept"``, ``"skipped"``, ``"fused"``, or ``"dense"`` in a model without
            a record.
        shape: ``"768→3072"`` for a linear, ``"3×3 32→64 /2"`` for a convolution with stride 2.
        kernel: the kernel that runs it; empty for torch's own.
        isa: the instruction set its weights are packed for; empty for torch's own.
        input_mode: how it gets its activations; empty when it is not quantized.
        activation: the fused activation, or ``"none"``.
        dense_seconds, quantized_seconds: one call, dense and compressed, measured when the model was quantized or
            converted; None when it was not.
        speedup: their ratio.
        reason: why it is what it is.
        seconds: measured now, all its calls in one forward pass (only with ``example_inputs``).
        share: ``seconds`` as a part of the whole pass, 0 to 1.
        block: of a block-sparse layer, for example ``"16x4"``; empty for others.
        density: of a block-sparse layer, stored blocks over all blocks, 0 to 1.
        break_even: the sparsity above which this shape with these blocks is faster than the dense layer of the same
            precision, measured on synthetic weights (only with ``example_inputs``): 0.0 is always, 1.0 is never.
    """

    name: str
    kind: str
    action: str
    shape: str
    kernel: str
    isa: str
    input_mode: str
    activation: str
    dense_seconds: float | None
    quantized_seconds: float | None
    speedup: float | None
    reason: str
    seconds: float | None = None
    share: float | None = None
    block: str = ""
    density: float | None = None
    break_even: float | None = None


def _shape(module: nn.Module) -> str:
    if isinstance(module, nn.Linear | PackedLinear):
        return f"{module.in_features}→{module.out_features}"
    if isinstance(module, nn.Embedding | QuantEmbedding):
        return f"{module.num_embeddings}×{module.embedding_dim}"
    if isinstance(module, nn.Conv2d | PackedConv2d):
        kernel = "×".join(str(size) for size in module.kernel_size)
        text = f"{kernel} {module.in_channels}→{module.out_channels}"
        if max(module.stride) > 1:
            text += f" /{max(module.stride)}"
        if module.groups > 1:
            text += f" groups {module.groups}"
        return text
    return ""


def _row(name: str, module: nn.Module, decision: LayerDecision | None) -> LayerRow:
    action = "dense"
    facts: dict[str, Any] = {"kernel": "", "isa": "", "input_mode": "", "activation": "none"}
    if decision is not None:
        facts["activation"] = decision.activation
    if isinstance(module, PackedLayer):
        action = "quantized" if isinstance(module, QuantizedLayer | GroupQuantized) else "sparse"
        facts |= _facts(module)
    # A record may be older than what was put in the module's place since.
    if decision is not None and action == "dense" and decision.action not in ("quantized", "sparse"):
        action = decision.action
    return LayerRow(
        name=name,
        kind=type(module).__name__ if decision is None else decision.kind,
        action=action,
        shape=_shape(module),
        dense_seconds=None if decision is None else decision.dense_seconds,
        quantized_seconds=None if decision is None else decision.quantized_seconds,
        speedup=None if decision is None else decision.speedup,
        reason="" if decision is None else decision.reason,
        **facts,
    )


def _facts(module: PackedLayer) -> dict[str, Any]:
    """What a packed layer's blob says."""
    facts: dict[str, Any] = {"input_mode": getattr(module, "input_mode", ""), "activation": module.activation}
    try:
        facts["kernel"] = module.kernel_name()
        facts["isa"] = str(packing.info(module.packed)["isa"])
        if isinstance(module, BlockSparse):
            facts |= {"block": block_name(module.block_size), "density": module.density}
    except (RuntimeError, KeyError):
        facts["kernel"] = "unreadable blob, see fastcompress.verify"
    return facts


def layer_rows(model: nn.Module, record: CompressionRecord | None) -> list[tuple[LayerRow, nn.Module]]:
    """The rows of all layers that are known or have a decision, with their modules, in the model's order."""
    decisions = {} if record is None else {decision.name: decision for decision in record}
    found = []
    for name, module in model.named_modules():
        decision = decisions.get(name)
        if decision is not None or isinstance(module, nn.Linear | nn.Conv2d | PackedLayer):
            found.append((_row(name, module, decision), module))
    return found
