"""`benchmark`: a compressed model against the strongest dense form of the one it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from torch import nn

from fastcompress.models.calibrate import evaluating, run_batch
from fastcompress.report import render
from fastcompress.report.environment import environment
from fastcompress.report.forms import channels_last_form, dense_forms, has_images, thread_count
from fastcompress.report.measure import compare
from fastcompress.report.size import size_bytes

__all__ = ["BenchmarkResult", "BenchmarkRow", "benchmark"]


@dataclass(frozen=True)
class BenchmarkRow:
    """One way to run one of the models.

    Attributes:
        name: ``"fp32 eager"``, ``"fp32 channels-last"``, ``"fp32 compiled"``, ``"bf16"``, …, ``"compressed"``.
        dense: whether it is a form of the baseline.
        seconds: median of one call; None when this form did not run.
        size_bytes: parameters and buffers.
        note: the error when it did not run.
    """

    name: str
    dense: bool
    seconds: float | None
    size_bytes: int
    note: str = ""


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark` measured; prints as a table.

    Attributes:
        rows: dense forms first.
        environment: CPU, threads, versions, commit.
    """

    rows: tuple[BenchmarkRow, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def _fastest(self, dense: bool) -> BenchmarkRow:
        ran = [row for row in self.rows if row.dense == dense and row.seconds is not None]
        if not ran:
            raise RuntimeError(f"benchmark: no {'dense' if dense else 'compressed'} form of the model ran")
        return min(ran, key=lambda row: row.seconds or 0.0)

    @property
    def compressed(self) -> BenchmarkRow:
        """The fastest form of the compressed model."""
        return self._fastest(dense=False)

    @property
    def strongest_dense(self) -> BenchmarkRow:
        """The fastest form of the baseline."""
        return self._fastest(dense=True)

    @property
    def speedup(self) -> float:
        """Over the strongest dense form; below 1 the compressed model is slower."""
        return self.speedup_over(self.strongest_dense.name)

    def speedup_over(self, name: str) -> float:
        """Over the form called ``name``; ``KeyError`` when it is not there or did not run."""
        for row in self.rows:
            if row.name == name and row.seconds is not None and self.compressed.seconds:
                return row.seconds / self.compressed.seconds
        raise KeyError(name)

    @property
    def size_ratio(self) -> float:
        """Bytes of the baseline as given (its first form) over bytes of the compressed model."""
        first = next(row for row in self.rows if row.dense)
        return first.size_bytes / max(1, self.compressed.size_bytes)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "strongest_dense": self.strongest_dense.name,
            "speedup": self.speedup,
            "size_ratio": self.size_ratio,
            "environment": dict(self.environment),
        }

    def __rich__(self) -> Table:
        columns = [("model", "left"), ("MB", "right"), ("ms", "right"), ("compressed is", "right"), ("", "left")]
        best = self.strongest_dense.name
        lines = []
        for row in self.rows:
            ratio = render.times(self.speedup_over(row.name)) if row.dense and row.seconds is not None else ""
            note = row.note or ("strongest dense" if row.name == best else "")
            lines.append([row.name, f"{row.size_bytes / 1e6:.2f}", render.milliseconds(row.seconds), ratio, note])
        known = self.environment
        caption = (
            f"{known.get('cpu')}, {known.get('threads')} threads, isa {known.get('isa')}, torch {known.get('torch')}"
        )
        return render.table("benchmark", columns, lines, caption)

    def __str__(self) -> str:
        return render.text(self)


def _forms(
    model: nn.Module, baseline: nn.Module, batch: Any, compiled: bool, bf16: bool
) -> list[tuple[str, bool, Callable[[], nn.Module], Any]]:
    """All ways to run the two models: name, dense, a function that makes the model, its inputs."""
    forms = [(name, True, make, inputs(batch)) for name, make, inputs in dense_forms(baseline, compiled, bf16)]
    forms.append(("compressed", False, lambda: model, batch))
    if has_images(baseline):
        name, make, inputs = channels_last_form("compressed channels-last", model)
        forms.append((name, False, make, inputs(batch)))
    return forms


def benchmark(
    model: nn.Module,
    baseline: nn.Module,
    example_inputs: Any,
    threads: int | None = None,
    *,
    compiled: bool = False,
    bf16: bool = True,
    min_time_s: float = 0.5,
) -> BenchmarkResult:
    """Time ``model`` against every dense form of ``baseline``, in turns, in eval mode without gradients.

    Args:
        model: the compressed model.
        baseline: the float model it came from; neither of the two is changed.
        example_inputs: one batch, as in `quantize`: a tensor, a dict of keyword arguments, or a tuple (its first
            element).
        threads: for torch and the kernels, both use one pool; by default what is set.
        compiled: also ``torch.compile`` the baseline, which takes a while.
        bf16: also run the baseline in bfloat16.
        min_time_s: seconds spent on each form at least.

    Models with convolutions run in channels-last too. A form that fails (no bfloat16, no compiler) stays in the table
    with its error; only when no dense or no compressed form runs at all, there is nothing to compare.

    Raises:
        TypeError: one of the models is not a module.
        ValueError: ``threads`` is not positive.
        RuntimeError: no form of one of the two models ran; the message holds the first error.

    Example:
        >>> result = fc.benchmark(quantized, model, torch.randn(1, 3, 224, 224))
        >>> print(result)
        >>> result.speedup, result.strongest_dense.name
    """
    for name, value in (("model", model), ("baseline", baseline)):
        if not isinstance(value, nn.Module):
            raise TypeError(f"benchmark: {name} must be a torch.nn.Module, got {type(value).__name__}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"benchmark: threads must be a positive number, got {threads!r}")
    calls: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, int] = {}
    notes: dict[str, str] = {}
    forms = _forms(model, baseline, example_inputs, compiled, bf16)
    with thread_count(threads), evaluating(model), evaluating(baseline):
        for name, _, make, inputs in forms:
            try:
                module = make()
                sizes[name] = size_bytes(module)
                calls[name] = _runner(module, inputs)
                calls[name]()
            except Exception as error:  # whatever torch raises: a form that does not run is a row, not a crash
                notes[name] = (
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                )
                calls.pop(name, None)
        seconds = compare(calls, min_time_s) if calls else {}
        rows = tuple(
            BenchmarkRow(name, dense, seconds.get(name), sizes.get(name, 0), notes.get(name, ""))
            for name, dense, _, _ in forms
        )
        for dense, what in ((True, "baseline"), (False, "model")):
            if not any(row.dense == dense and row.seconds is not None for row in rows):
                first = next(row.note for row in rows if row.dense == dense)
                raise RuntimeError(f"benchmark: the {what} did not run on example_inputs: {first}")
        return BenchmarkResult(rows, environment())


def _runner(module: nn.Module, inputs: Any) -> Callable[[], Any]:
    return lambda: run_batch(module, inputs)
