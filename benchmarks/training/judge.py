"""Converting, judging and timing trained rows: what the image table and the text table share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastcompress as fc
from benchmarks.harness import machine
from benchmarks.training.runs import Laboratory, TableRow, folder_name
from fastcompress.nn import PackedLayer
from fastcompress.nn.quantized import QuantizedLayer
from fastcompress.report.size import size_bytes

__all__ = ["BATCHES", "check_rows", "judge_rows", "latencies", "latency"]

#: Batch sizes that are timed; layers are chosen at the last.
BATCHES = (1, 64)


def judge_rows(
    lab: Laboratory[Any],
    rows: Sequence[TableRow],
    dense: nn.Module,
    example: Tensor,
    accuracy: Callable[[nn.Module], float],
    compiled: bool,
    keep: Path,
) -> list[dict[str, Any]]:
    """Convert, judge and time every row that is trained; each is printed too.

    Args:
        lab: what trained them.
        rows: in the order of the table.
        dense: what the time is compared with.
        example: inputs of the largest batch that is timed.
        accuracy: percent on the test split.
        compiled: also time ``torch.compile`` of the dense network.
        keep: folder for the finished network of each row with int8 layers (those of the first seed), for `check_rows`.

    Returns:
        Lines with row, seed, epochs, seconds of training, commit (of judging), accuracy and bytes, and for each row's
        first seed the latency of the frozen network (`fastcompress.freeze`; as it is where it has no compressed layer).
    """
    lines = []
    for row in rows:
        for seed in row.seeds:
            if not lab.is_done(row, seed):
                continue
            model = fc.convert(lab.trained(row, seed), example_inputs=example, progress=False).eval()
            trained = [] if row.untrained else lab.run(row, seed, progress=False).history.rows
            line: dict[str, Any] = {
                "row": row.name,
                "seed": seed,
                "epochs": len(trained),
                "seconds": round(sum(epoch.seconds for epoch in trained)),
                "commit": machine.describe()["commit"],
                "accuracy": accuracy(model),
                "bytes": size_bytes(model),
            }
            if seed == row.seeds[0]:
                line["latency"] = latencies(model, dense, example, compiled)
                if any(isinstance(module, QuantizedLayer) for module in model.modules()):
                    fc.save(model, keep / folder_name(row.name, seed))
            lines.append(line)
            print(json.dumps(line), flush=True)
    return lines


def check_rows(
    lines: Sequence[dict[str, Any]],
    kept: Path,
    empty: Callable[[], nn.Module],
    dense: nn.Module,
    example: Tensor,
    accuracy: Callable[[nn.Module], float],
    compiled: bool,
) -> int:
    """Judge and time the networks that `judge_rows` kept, and compare with the table.

    Args:
        lines: of the table.
        kept: the folder of the networks.
        empty: makes a network for their weights.
        dense, example, accuracy, compiled: as in `judge_rows`.

    Returns:
        The number of networks whose accuracy is another than the table's, by more than 0.05 points: int8 layers give
        the same bits everywhere, the float operations around them may not.
    """
    wrong = 0
    for line in lines:
        folder = kept / folder_name(line["row"], line["seed"])
        if not folder.exists():
            continue
        model = fc.load(folder, model=empty()).eval()
        found = accuracy(model)
        same = abs(found - line["accuracy"]) <= 0.05
        wrong += not same
        times = latencies(model, dense, example, compiled)
        speed = ", ".join(
            f"batch {batch}: {seen['this']:.3f} ms, {seen['fp32 eager'] / seen['this']:.1f}× fp32, "
            f"{seen['strongest dense'] / seen['this']:.1f}× the strongest dense"
            for batch, seen in times.items()
        )
        verdict = "as in the table" if same else f"the table says {line['accuracy']:.2f}%"
        print(f"{line['row']}: {found:.2f}% ({verdict}); {speed}", flush=True)
    return wrong


def latencies(model: nn.Module, dense: nn.Module, example: Tensor, compiled: bool) -> dict[str, dict[str, float]]:
    """The latency at each batch size: of the frozen network, or as it is where it has no compressed layer."""
    compressed = any(isinstance(module, PackedLayer) for module in model.modules())
    timed = fc.freeze(model, example) if compressed else model
    return {str(batch): latency(timed, dense, example[:batch], compiled) for batch in BATCHES}


def latency(model: nn.Module, dense: nn.Module, x: Tensor, compiled: bool, min_time_s: float = 0.5) -> dict[str, float]:
    """Milliseconds: the network, torch fp32 eager, and the strongest dense form; all in turn.

    Raises:
        RuntimeError: a form does not run.
    """
    if x.dim() == 4:  # images
        x = x.contiguous(memory_format=torch.channels_last)
    seen = fc.benchmark(model, dense, x, compiled=compiled, min_time_s=min_time_s)
    silent = [f"{row.name} ({row.note})" for row in seen.rows if row.seconds is None]
    if silent:  # a missing dense form would flatter every network
        raise RuntimeError(f"latency: {', '.join(silent)} did not run, so the strongest dense form is not known")
    times = {row.name: row.seconds * 1e3 for row in seen.rows if row.seconds is not None}
    strongest = seen.strongest_dense
    assert strongest.seconds is not None
    assert seen.compressed.seconds is not None
    return {**times, "strongest dense": strongest.seconds * 1e3, "this": seen.compressed.seconds * 1e3}
