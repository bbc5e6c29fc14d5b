"""The tables of a report as strings, for every way of writing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastcompress.report import render

from .data import CompressionReport

__all__ = [
    "Table",
    "all_tables",
    "layers_table",
    "score_text",
    "size_text",
    "stages_table",
    "summary_table",
]


@dataclass(frozen=True)
class Table:
    """Plain strings: ``(heading, "left" | "right")`` columns, rows, and a sentence on what they mean.

    ``strong`` are the indices of rows to stress.
    """

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: tuple[int, ...] = field(default=())


def score_text(score: float | None) -> str:
    """Four digits behind the point, or four in all for large scores; empty for None."""
    return "" if score is None else f"{score:.4f}" if abs(score) < 10 else f"{score:.5g}"


def size_text(size: int) -> str:
    """In MB or kB, powers of ten."""
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def summary_table(report: CompressionReport) -> Table:
    """Before and after: score, size, and latency at each batch size."""
    rows = []
    if report.score is not None or report.dense_score is not None:
        drop = "" if report.drop is None else _drop_text(report.drop)
        rows.append(["score", score_text(report.dense_score), score_text(report.score), drop])
    dense, compressed = report.stages[0].size_bytes, report.compressed.size_bytes
    rows.append(["size", size_text(dense), size_text(compressed), f"{report.size_ratio:.2f}× smaller"])
    for batch in report.batches:
        best = report.strongest_dense(batch)
        ratio = report.speedup(batch)
        before = "" if best is None else f"{render.milliseconds(best.seconds[batch])} ms"
        after = render.milliseconds(report.compressed.seconds[batch])
        name = f"latency, batch {batch}"
        rows.append([name, before, f"{after} ms" if after else "did not run", speed_text(ratio)])
    columns = [("", "left"), ("dense", "right"), ("compressed", "right"), ("change", "right")]
    best_forms = ", ".join(f"batch {b}: {_form(report, b)}" for b in report.batches)
    note = f"Latency of the dense model is that of its fastest form ({best_forms})." if report.batches else ""
    return Table("Summary", columns, rows, note)


def _drop_text(drop: float) -> str:
    return "none lost" if drop == 0 else f"{score_text(abs(drop))} {'lost' if drop > 0 else 'gained'}"


def speed_text(ratio: float | None) -> str:
    """``3.10× as fast``, and that it is slower where it is."""
    return "" if ratio is None else f"{ratio:.2f}× as fast" + (" (slower)" if ratio < 1 else "")


def _form(report: CompressionReport, batch: int) -> str:
    best = report.strongest_dense(batch)
    return "none" if best is None else best.name.removeprefix("dense, ")


def stages_table(report: CompressionReport) -> Table:
    """One row for each form of the dense model and each stage."""
    columns = [("model", "left"), ("score", "right"), ("size", "right")]
    for batch in report.batches:
        columns += [(f"ms, batch {batch}", "right"), ("vs dense", "right")]
    rows = []
    for row in report.stages:
        line = [row.name, score_text(row.score), size_text(row.size_bytes) if row.size_bytes else ""]
        marks = []
        for batch in report.batches:
            line += [render.milliseconds(row.seconds[batch]), render.times(report.speedup(batch, row))]
            if row is report.strongest_dense(batch):
                marks.append(str(batch))
        note = f"strongest dense at batch {' and '.join(marks)}" if marks else ""
        rows.append([*line, "; ".join(part for part in (note, row.note) if part)])
    note = (
        "ms: median of one call, all models in turns. vs dense: against the strongest dense form at that batch size; "
        "below 1 is slower."
    )
    strong = (report.stages.index(report.compressed),)
    return Table("Every stage", [*columns, ("", "left")], rows, note if report.batches else "", strong)


def layers_table(report: CompressionReport) -> Table:
    """The layers of the finished model."""
    columns = [("layer", "left"), ("kind", "left"), ("shape", "left"), ("sparsity", "right"), ("precision", "left")]
    columns += [("kernel", "left"), ("dense ms", "right"), ("ms", "right"), ("speed-up", "right"), ("share", "right")]
    rows = [
        [
            layer.name,
            layer.kind,
            layer.shape,
            _percent(layer.sparsity),
            layer.precision,
            layer.kernel,
            render.milliseconds(layer.dense_seconds),
            render.milliseconds(layer.seconds),
            render.times(layer.speedup),
            _percent(layer.share),
            layer.reason,
        ]
        for layer in report.layers
    ]
    note = (
        "dense ms and ms: one call, measured layer by layer when the model was converted, at the shapes of "
        "example_inputs. share: of the whole model's time now."
    )
    return Table("Layers", [*columns, ("why", "left")], rows, note)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def history_table(report: CompressionReport) -> Table:
    """Epoch by epoch."""
    parts = list(dict.fromkeys(name for row in report.history for name in row["losses"]))
    columns = [("epoch", "right"), *((f"loss: {name}", "right") for name in parts)]
    columns += [("sparsity", "right"), ("score", "right"), ("learning rate", "right"), ("seconds", "right")]
    rows = []
    for row in report.history:
        losses = [f"{row['losses'][name]:.4g}" if name in row["losses"] else "" for name in parts]
        tail = [_percent(row["sparsity"]), score_text(row["score"]), f"{row['learning_rate']:.3g}"]
        rows.append([str(row["epoch"]), *losses, *tail, f"{row['seconds']:.1f}"])
    return Table("Training, epoch by epoch", columns, rows)


def given_up_table(report: CompressionReport) -> Table:
    """What was relaxed to keep the score."""
    columns = [("layer", "left"), ("what", "left"), ("planned", "left"), ("now", "left"), ("score after", "right")]
    rows = [
        [row["layer"], row["what"], row["before"], row["after"], score_text(row["score"])] for row in report.given_up
    ]
    return Table("Given up to keep the score", columns, rows)


def recipe_table(report: CompressionReport) -> Table:
    """One row for each stage, then the settings of the run."""
    rows = []
    for stage in report.recipe.get("stages", ()):
        first, last = stage.get("start"), stage.get("end")
        times = "" if first is None else f"from {first:g}" if last is None else f"{first:g} to {last:g}"
        hidden = ("kind", "start", "end")
        rows.append([str(stage.get("kind", "")), times, _settings(stage, hidden)])
    rest = {name: value for name, value in report.recipe.items() if name not in ("stages", "model")}
    if rest:
        rows.append(["run", "", _settings(rest, ())])
    return Table("Recipe", [("stage", "left"), ("epochs", "left"), ("settings", "left")], rows)


def _settings(values: Mapping[str, Any], hidden: tuple[str, ...]) -> str:
    """``a = 1, b = 2`` of all that is set."""
    shown = {name: value for name, value in values.items() if name not in hidden}
    return ", ".join(
        f"{name} = {_value(value)}"
        for name, value in shown.items()
        if value is not None and value not in ("None", (), [], {})
    )


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        inner = value.get("defaults", None)
        if isinstance(inner, Mapping) and "kind" in value:
            return f"{value['kind']}({', '.join(f'{k}={v}' for k, v in inner.items() if str(v) not in _PLAIN)})"
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value) if len(value) == 1 else f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


#: Values of an optimizer's switches that nobody set.
_PLAIN = ("None", "False")


def environment_table(report: CompressionReport) -> Table:
    """Where it was measured."""
    rows = [[str(name), str(value)] for name, value in report.environment.items() if value is not None]
    return Table("Measured on", [("", "left"), ("", "left")], rows)


def all_tables(report: CompressionReport) -> dict[str, Table]:
    """Every table by a short name, in the order of the page; those without rows are left out."""
    tables = {
        "summary": summary_table(report),
        "stages": stages_table(report),
        "history": history_table(report),
        "given_up": given_up_table(report),
        "layers": layers_table(report),
        "recipe": recipe_table(report),
        "environment": environment_table(report),
    }
    return {name: table for name, table in tables.items() if table.rows}
