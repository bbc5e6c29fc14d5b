"""`compression_report`: measure what a recipe made, from the dense model over every stage to the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from fastcompress.models.calibrate import ForwardFn, evaluating, run_batch
from fastcompress.models.speed import Timer
from fastcompress.report.environment import environment
from fastcompress.report.forms import Form, channels_last_form, dense_forms, has_images, thread_count
from fastcompress.report.measure import compare
from fastcompress.report.size import size_bytes

from .batches import repeated
from .data import FINISHED, CompressionReport, StageRow
from .layers import report_layers
from .stages import CompressedResult, stage_models

__all__ = ["compression_report"]

Score = Callable[[nn.Module], float]


@dataclass
class _Entry:
    """A row in the making: the forms in which the model runs, of which the fastest counts."""

    name: str
    dense: bool
    forms: list[Form]
    score: float | None = None
    size: int = 0
    note: str = ""
    models: dict[str, nn.Module] = field(default_factory=dict)


def compression_report(
    result: CompressedResult,
    *,
    batches: Iterable[int] = (1, 64),
    threads: int | None = None,
    min_seconds: float = 0.3,
    title: str | None = None,
    eval_fn: Score | None = None,
    forward_fn: ForwardFn | None = None,
    compiled: bool = False,
    bf16: bool = True,
    timer: Timer | None = None,
) -> CompressionReport:
    """Measure the dense model, every stage of its compression and the result, in turns.

    Args:
        result: what `fastcompress.compress` returned; its models are not changed.
        batches: batch sizes, made of ``result.example_inputs`` by repeating or cutting; empty measures no whole model.
        threads: for torch and the kernels, both use one pool; by default what is set.
        min_seconds: spent on each model and batch size at least.
        title: of the page; by default the model's class.
        eval_fn: ``eval_fn(model)`` scores the stages between, too, for the accuracy-latency plot.
        forward_fn: ``forward_fn(model, batch)``, if the recipe needed it.
        compiled: also ``torch.compile`` the dense model, which takes a while.
        bf16: also run the dense model in bfloat16.
        timer: replaces the stopwatch: ``timer({name: function})`` gives the seconds of one call of each.

    The baseline is the fastest form of the dense model: eager, channels-last where there are convolutions, bfloat16.
    A form or stage that does not run stays in the table with its error.

    Raises:
        TypeError: ``result`` is not a result. ValueError: a batch size, ``threads`` or ``min_seconds`` that is not
            positive. RuntimeError: the finished model or every form of the dense one does not run.

    Example:
        >>> report = fc.report.compression_report(result, batches=(1, 64), eval_fn=accuracy)
        >>> report.save("out.html")
        >>> report.speedup(64)
    """
    sizes = _checked(result, batches, threads, min_seconds, title)
    stopwatch: Timer = timer or partial(compare, min_time_s=min_seconds)
    with thread_count(threads):
        entries = _entries(result, timer or compare, forward_fn, compiled, bf16)
        _make(entries, result, eval_fn)
        with evaluating(result.model), evaluating(result.dense):
            columns = {size: _measured(entries, repeated(result.example_inputs, size), stopwatch, forward_fn)
                       for size in sizes}  # fmt: skip
        example = result.example_inputs if forward_fn is None else None
        return CompressionReport(
            title or f"Compression of {type(result.dense).__name__}",
            result.dense_score,
            result.score,
            sizes,
            tuple(_row(entry, columns) for entry in entries),
            report_layers(result.model, result.trained, example),
            tuple(result.history.to_json()),
            dict(result.recipe),
            tuple(dataclasses.asdict(row) for row in result.given_up),
            environment(),
        )


def _entries(
    result: CompressedResult, timer: Timer, forward_fn: ForwardFn | None, compiled: bool, bf16: bool
) -> list[_Entry]:
    entries = [
        _Entry(f"dense, {form[0]}", True, [form], result.dense_score if form[0].startswith("fp32") else None)
        for form in dense_forms(result.dense, compiled, bf16)
    ]
    for name, meaningful, make in stage_models(result, timer, forward_fn):
        entry = _Entry(name, False, [("", make, lambda batch: batch)])
        if not meaningful:
            entry.note, entry.score = "for timing only: it has other weights", math.nan
        entries.append(entry)
    return entries


def _make(entries: list[_Entry], result: CompressedResult, eval_fn: Score | None) -> None:
    """The models of all entries, their sizes and scores; an error becomes a note."""
    images = has_images(result.dense)
    for entry in entries:
        try:
            for name, make, _ in list(entry.forms):
                entry.models[name] = make()
            first = next(iter(entry.models.values()))
            entry.size = size_bytes(first)
            if entry.dense:
                continue
            if images:
                form = channels_last_form("channels-last", first)
                entry.forms.append(form)
                entry.models[form[0]] = form[1]()
            if entry.name == FINISHED:
                entry.score = result.score
            elif entry.score is None and eval_fn is not None:
                with evaluating(first):
                    entry.score = float(eval_fn(first))
        except Exception as error:  # a stage that cannot be made is a row, not a crash
            if entry.name == FINISHED:
                raise
            entry.models, entry.note = {}, _told(error)
        finally:
            entry.score = None if entry.score is None or math.isnan(entry.score) else entry.score


def _measured(entries: list[_Entry], batch: Any, timer: Timer, forward_fn: ForwardFn | None) -> dict[str, float | None]:
    """Entry → seconds of its fastest form, all forms of all entries in turns."""
    calls: dict[str, Callable[[], Any]] = {}
    owners: dict[str, _Entry] = {}
    for entry in entries:
        for name, _, inputs in entry.forms:
            if name not in entry.models:
                continue
            key = entry.name if entry.dense or not name else f"{entry.name}, {name}"
            call = partial(run_batch, entry.models[name], inputs(batch), forward_fn, function="compression_report")
            try:
                call()
            except Exception as error:  # no bfloat16, no compiler, not this batch size
                entry.note = entry.note or _told(error)
                continue
            calls[key], owners[key] = call, entry
    for what, found in (("dense model", [e for e in owners.values() if e.dense]),
                        ("compressed model", [e for e in owners.values() if e.name == FINISHED])):  # fmt: skip
        if not found:
            reason = next(e.note for e in entries if (e.dense if what == "dense model" else e.name == FINISHED))
            raise RuntimeError(f"compression_report: the {what} did not run on example_inputs: {reason}")
    seconds = timer(calls)
    best: dict[str, float | None] = {}
    for key, entry in owners.items():
        before = best.get(entry.name)
        best[entry.name] = seconds[key] if before is None else min(before, seconds[key])
    return best


def _row(entry: _Entry, columns: Mapping[int, Mapping[str, float | None]]) -> StageRow:
    seconds = {size: column.get(entry.name) for size, column in columns.items()}
    return StageRow(entry.name, entry.dense, entry.size, entry.score, seconds, entry.note)


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _checked(result: object, batches: object, threads: object, min_seconds: object, title: object) -> tuple[int, ...]:
    missing = [name for name in ("model", "trained", "dense", "history", "example_inputs") if not hasattr(result, name)]
    if missing:
        raise TypeError(
            f"compression_report: result must be what fastcompress.compress returns, got {type(result).__name__} "
            f"without {', '.join(missing)}"
        )
    if isinstance(batches, (str, bytes)) or not isinstance(batches, Iterable):
        raise TypeError(f"compression_report: batches must be batch sizes such as (1, 64), got {batches!r:.80}")
    sizes = tuple(dict.fromkeys(batches))
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"compression_report: batches must be positive whole numbers, got {size!r:.80}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"compression_report: threads must be a positive whole number or None, got {threads!r:.80}")
    if isinstance(min_seconds, bool) or not isinstance(min_seconds, (int, float)) or not 0 < min_seconds < math.inf:
        raise ValueError(f"compression_report: min_seconds must be a positive number, got {min_seconds!r:.80}")
    if title is not None and not isinstance(title, str):
        raise TypeError(f"compression_report: title must be a string or None, got {type(title).__name__}")
    return sizes
