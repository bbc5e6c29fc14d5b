"""`explain`: which kernel runs in each layer of a model, why, and what it brings."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from fastcompress.graph import FrozenModel
from fastcompress.models.flow import InputKind
from fastcompress.nn import BlockSparse
from fastcompress.record import record_of
from fastcompress.report import break_even, render
from fastcompress.report.environment import isa_name
from fastcompress.report.profile import layer_seconds
from fastcompress.report.rows import LayerRow, layer_rows

__all__ = ["Explanation", "LayerRow", "explain"]

#: The sentence of `fastcompress.models.speed` that the columns "dense ms" to "speed-up" repeat.
_MEASUREMENT = re.compile(r"(int8|four-bit|sparse) measured \S+× as fast as dense here")


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
        only_int8 = all(row.action != "sparse" and "_w4_" not in row.kernel for row in self.rows)
        compressed = "int8 ms" if only_int8 else "compressed ms"
        columns = [("layer", "left"), ("kind", "left"), ("shape", "left"), ("runs on", "left"), ("fused", "left")]
        columns += [("blocks", "left"), ("pays from", "right")]
        columns += [("dense ms", "right"), (compressed, "right"), ("speed-up", "right")]
        columns += [("now ms", "right"), ("share", "right")] if measured else []
        columns += [("why", "left")]
        lines = []
        for row in self.rows:
            if row.action == "fused":
                continue
            runs_on = f"{row.kernel} {row.input_mode}".rstrip() if row.kernel else f"torch ({row.action})"
            line = [row.name, row.kind, row.shape, runs_on, row.activation.replace("none", "")]
            line += ["" if row.density is None else f"{row.block} {row.density:.0%}", _pays_from(row.break_even)]
            line += [render.milliseconds(row.dense_seconds), render.milliseconds(row.quantized_seconds)]
            line += [render.times(row.speedup)]
            if measured:
                line += [render.milliseconds(row.seconds), "" if row.share is None else f"{row.share:.1%}"]
            lines.append([*line, _why(row)])
        if self.total_seconds is not None:
            rest = self.total_seconds - sum(row.seconds or 0.0 for row in self.rows)
            share = f"{rest / self.total_seconds:.1%}" if self.total_seconds else ""
            lines.append(
                [
                    "(everything else)",
                    *[""] * (len(columns) - 4),
                    render.milliseconds(rest),
                    share,
                    "no layer of the above",
                ]
            )
        counts = ", ".join(f"{count} {action}" for action, count in self.counts().items())
        title = f"{self.scheme or 'no record'}: {counts or 'no layers'}; isa {self.isa}, {self.threads} threads"
        return render.table(title, columns, lines)

    def __str__(self) -> str:
        return render.text(self)


def _why(row: LayerRow) -> str:
    """The reason, without the measurement where the row's numbers say the same."""
    if row.action not in ("quantized", "sparse") or row.speedup is None or row.speedup <= 1:
        return row.reason
    return "; ".join(part for part in row.reason.split("; ") if not _MEASUREMENT.fullmatch(part))


def _pays_from(sparsity: float | None) -> str:
    """The break-even sparsity as the table shows it."""
    if sparsity is None:
        return ""
    return "always" if sparsity <= 0.0 else "never" if sparsity >= 1.0 else f"{sparsity:.0%} sparse"


def explain(model: nn.Module, example_inputs: Any = None) -> Explanation:
    """Say for every linear and convolution of ``model`` which kernel runs it and why.

    Of block-sparse layers it also tells blocks and density and, with ``example_inputs``, from which sparsity on such a
    layer pays on this machine: that is measured, once for each shape, and takes a tenth of a second.

    Args:
        model: compressed or not; it is not changed.
        example_inputs: one batch, as in `quantize`; then the layers are also timed inside whole forward passes.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``example_inputs`` for a frozen model.

    Example:
        >>> print(fc.explain(quantized, example_inputs))
        >>> [row.name for row in fc.explain(quantized).rows if row.action == "skipped"]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}")
    compiled_from = getattr(model, "_orig_mod", None)  # what torch.compile wrapped: its names are those of the record
    if isinstance(compiled_from, nn.Module):
        model = compiled_from
    if example_inputs is not None and any(isinstance(module, FrozenModel) for module in model.modules()):
        raise ValueError(
            "explain: a frozen model runs as one program, in which layers cannot be timed; explain the model that it "
            "was frozen from, and time the frozen one with fc.benchmark"
        )
    record = record_of(model)
    found = layer_rows(model, record)
    total = None
    if example_inputs is not None:
        names = [row.name for row, _ in found]
        leaves = {
            row.name: module
            for row, module in found
            if row.action != "fused" and not any(other.startswith(f"{row.name}.") for other in names)
        }
        profile = layer_seconds(model, leaves, example_inputs)
        total = profile.total
        found = [(_timed(row, profile.seconds.get(row.name), total), module) for row, module in found]
        found = [(_with_break_even(row, module, profile.inputs), module) for row, module in found]
    scheme = "" if record is None else record.scheme
    return Explanation(tuple(row for row, _ in found), total, scheme, isa_name(), torch.get_num_threads())


def _timed(row: LayerRow, seconds: float | None, total: float) -> LayerRow:
    if seconds is None:
        return row
    return dataclasses.replace(row, seconds=seconds, share=seconds / total if total > 0 else None)


def _with_break_even(row: LayerRow, module: nn.Module, inputs: Mapping[str, Counter[InputKind]]) -> LayerRow:
    """Measured at the input that came most often."""
    kinds = [kind for kind, _ in inputs.get(row.name, Counter()).most_common() if 0 not in kind.shape]
    if not isinstance(module, BlockSparse) or not kinds or row.density is None:
        return row
    return dataclasses.replace(row, break_even=break_even.break_even(module, kinds[0]))
