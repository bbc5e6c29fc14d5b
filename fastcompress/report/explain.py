"""`explain`: which kernel runs in each layer of a model, why, and what it brings."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from fastcompress.nn import QuantConv2d, QuantizedLayer, QuantLinear
from fastcompress.ops import packing
from fastcompress.record import CompressionRecord, LayerDecision, record_of
from fastcompress.report import render
from fastcompress.report.environment import isa_name
from fastcompress.report.profile import layer_seconds

__all__ = ["Explanation", "LayerRow", "explain"]

#: The sentence of `fastcompress.models.speed` that the columns "dense ms" to "speed-up" repeat.
_MEASUREMENT = re.compile(r"int8 measured \S+× as fast as dense here")


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: its name in the model.
        kind: the class it had before compression (now, if there is no record).
        action: ``"quantized"``, ``"kept"``, ``"skipped"``, ``"fused"``, or ``"dense"`` in a model without a record.
        shape: ``"768→3072"`` for a linear, ``"3×3 32→64 /2"`` for a convolution with stride 2.
        kernel: the kernel that runs it; empty for torch's own.
        isa: the instruction set its weights are packed for; empty for torch's own.
        input_mode: how it gets its u8 activations; empty when it is not quantized.
        activation: the fused activation, or ``"none"``.
        dense_seconds, quantized_seconds: one call, measured when the model was quantized; None when it was not.
        speedup: their ratio.
        reason: why it is what it is.
        seconds: measured now, all its calls in one forward pass (only with ``example_inputs``).
        share: ``seconds`` as a part of the whole pass, 0 to 1.
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


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; prints as a table.

    Attributes:
        rows: the layers in the model's order; fused modules are among them, the printed table leaves them out.
        total_seconds: one forward pass, measured with the clocks of all layers running; None without example inputs.
        scheme: from the record, empty without one.
        isa: the instruction set whose kernels run now.
        threads: of torch, at the time of the call.
    """

    rows: tuple[LayerRow, ...]
    total_seconds: float | None
    scheme: str
    isa: str
    threads: int

    def counts(self) -> dict[str, int]:
        """Action → number of layers."""
        return dict(Counter(row.action for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return dataclasses.asdict(self) | {"rows": [dataclasses.asdict(row) for row in self.rows]}

    def __rich__(self) -> Table:
        measured = self.total_seconds is not None
        columns = [("layer", "left"), ("kind", "left"), ("shape", "left"), ("runs on", "left"), ("fused", "left")]
        columns += [("dense ms", "right"), ("int8 ms", "right"), ("speed-up", "right")]
        columns += [("now ms", "right"), ("share", "right")] if measured else []
        columns += [("why", "left")]
        lines = []
        for row in self.rows:
            if row.action == "fused":
                continue
            runs_on = f"{row.kernel} {row.input_mode}" if row.kernel else f"torch ({row.action})"
            line = [row.name, row.kind, row.shape, runs_on, row.activation.replace("none", "")]
            line += [render.milliseconds(row.dense_seconds), render.milliseconds(row.quantized_seconds)]
            line += [render.times(row.speedup)]
            if measured:
                line += [render.milliseconds(row.seconds), "" if row.share is None else f"{row.share:.1%}"]
            lines.append([*line, _why(row)])
        if self.total_seconds is not None:
            rest = self.total_seconds - sum(row.seconds or 0.0 for row in self.rows)
            share = f"{rest / self.total_seconds:.1%}" if self.total_seconds else ""
            lines.append(["(everything else)", *[""] * 7, render.milliseconds(rest), share, "no layer of the above"])
        counts = ", ".join(f"{count} {action}" for action, count in self.counts().items())
        title = f"{self.scheme or 'no record'}: {counts or 'no layers'}; isa {self.isa}, {self.threads} threads"
        return render.table(title, columns, lines)

    def __str__(self) -> str:
        return render.text(self)


def _why(row: LayerRow) -> str:
    """The reason, without the measurement where the row's numbers say the same."""
    if row.action != "quantized" or row.speedup is None or row.speedup <= 1:
        return row.reason
    return "; ".join(part for part in row.reason.split("; ") if not _MEASUREMENT.fullmatch(part))


def _shape(module: nn.Module) -> str:
    if isinstance(module, nn.Linear | QuantLinear):
        return f"{module.in_features}→{module.out_features}"
    if isinstance(module, nn.Conv2d | QuantConv2d):
        kernel = "×".join(str(size) for size in module.kernel_size)
        text = f"{kernel} {module.in_channels}→{module.out_channels}"
        if max(module.stride) > 1:
            text += f" /{max(module.stride)}"
        if module.groups > 1:
            text += f" groups {module.groups}"
        return text
    return ""


def _row(name: str, module: nn.Module, decision: LayerDecision | None) -> LayerRow:
    kernel = isa = input_mode = ""
    activation = decision.activation if decision is not None else "none"
    if isinstance(module, QuantizedLayer):
        input_mode, activation = module.input_mode, module.activation
        try:
            kernel = module.kernel_name()
            isa = str(packing.info(module.packed)["isa"])
        except (RuntimeError, KeyError):
            kernel = "unreadable blob, see fastcompress.verify"
    action = "quantized" if isinstance(module, QuantizedLayer) else "dense"
    if decision is None:
        return LayerRow(
            name,
            type(module).__name__,
            action,
            _shape(module),
            kernel,
            isa,
            input_mode,
            activation,
            None,
            None,
            None,
            "",
        )
    return LayerRow(
        name=name,
        kind=decision.kind,
        action=action if action == "quantized" or decision.action == "quantized" else decision.action,
        shape=_shape(module),
        kernel=kernel,
        isa=isa,
        input_mode=input_mode,
        activation=activation,
        dense_seconds=decision.dense_seconds,
        quantized_seconds=decision.quantized_seconds,
        speedup=decision.speedup,
        reason=decision.reason,
    )


def _rows(model: nn.Module, record: CompressionRecord | None) -> list[tuple[LayerRow, nn.Module]]:
    decisions = {} if record is None else {decision.name: decision for decision in record}
    found = []
    for name, module in model.named_modules():
        decision = decisions.get(name)
        if decision is not None or isinstance(module, nn.Linear | nn.Conv2d | QuantizedLayer):
            found.append((_row(name, module, decision), module))
    return found


def explain(model: nn.Module, example_inputs: Any = None) -> Explanation:
    """Say for every linear and convolution of ``model`` which kernel runs it and why.

    Args:
        model: compressed or not; it is not changed.
        example_inputs: one batch, as in `quantize`; then the layers are also timed inside whole forward passes.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> print(fc.explain(quantized, example_inputs))
        >>> [row.name for row in fc.explain(quantized).rows if row.action == "skipped"]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}")
    compiled_from = getattr(model, "_orig_mod", None)  # what torch.compile wrapped: its names are those of the record
    if isinstance(compiled_from, nn.Module):
        model = compiled_from
    record = record_of(model)
    found = _rows(model, record)
    total = None
    if example_inputs is not None:
        names = [row.name for row, _ in found]
        leaves = {
            row.name: module
            for row, module in found
            if row.action != "fused" and not any(other.startswith(f"{row.name}.") for other in names)
        }
        seconds, total = layer_seconds(model, leaves, example_inputs)
        found = [(_timed(row, seconds.get(row.name), total), module) for row, module in found]
    scheme = "" if record is None else record.scheme
    return Explanation(tuple(row for row, _ in found), total, scheme, isa_name(), torch.get_num_threads())


def _timed(row: LayerRow, seconds: float | None, total: float) -> LayerRow:
    if seconds is None:
        return row
    return dataclasses.replace(row, seconds=seconds, share=seconds / total if total > 0 else None)
