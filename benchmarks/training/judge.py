"""Converting, judging and timing trained rows: what the image table and the text table share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

__all__ = ["BATCHES", "Judge", "check_rows", "fits", "judge_rows", "kept_again", "latencies", "latency", "timed_again"]

#: Batch sizes that are timed; layers are chosen at the last.
BATCHES = (1, 64)


@dataclass(frozen=True)
class Judge:
    """What networks are judged with, and timed against.

    Attributes:
        dense: what the time is compared with.
        example: inputs of the largest batch that is timed.
        accuracy: percent on the test split.
        compiled: also time ``torch.compile`` of the dense network.
    """

    dense: nn.Module
    example: Tensor
    accuracy: Callable[[nn.Module], float]
    compiled: bool

    def latencies(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """See `latencies`."""
        return latencies(model, self.dense, self.example, self.compiled)


def judge_rows(lab: Laboratory[Any], rows: Sequence[TableRow], judge: Judge, keep: Path) -> list[dict[str, Any]]:
    """Convert, judge and time every row that is trained; each is printed too.

    Args:
        lab: what trained them.
        rows: in the order of the table.
        keep: folder for the finished network of each row with int8 layers and all channels (of the first seed), for
            `kept_again`.

    Returns:
        Lines with row, seed, epochs, seconds of training, commit (of judging), accuracy and bytes, and for each row's
        first seed the latency of the frozen network (`fastcompress.freeze`; as it is where it has no compressed layer).
    """
    lines = []
    for row in rows:
        for seed in row.seeds:
            if not lab.is_done(row, seed):
                continue
            model = fc.convert(lab.trained(row, seed), example_inputs=judge.example, progress=False).eval()
            trained = [] if row.untrained else lab.run(row, seed, progress=False).history.rows
            line: dict[str, Any] = {
                "row": row.name,
                "seed": seed,
                "epochs": len(trained),
                "seconds": round(sum(epoch.seconds for epoch in trained)),
                "commit": machine.describe()["commit"],
                "accuracy": judge.accuracy(model),
                "bytes": size_bytes(model),
            }
            if seed == row.seeds[0]:
                line["latency"] = judge.latencies(model)
                quantized = any(isinstance(module, QuantizedLayer) for module in model.modules())
                if quantized and fits(model, judge.dense):
                    fc.save(model, keep / folder_name(row.name, seed))
            lines.append(line)
            print(json.dumps(line), flush=True)
    return lines


def fits(model: nn.Module, dense: nn.Module) -> bool:
    """Whether a network can be loaded into one like the dense one: no channels were removed."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, PackedLayer))
    return all(module.weight.shape == dense.get_submodule(name).weight.shape for name, module in layers)


def kept_again(
    lines: Sequence[dict[str, Any]], kept: Path, empty: Callable[[], nn.Module], judge: Judge
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Judge and time the networks that `judge_rows` kept; yields each line of the table and the line as it is now.

    Args:
        lines: of the table.
        kept: the folder of the networks.
        empty: makes a network for their weights.
    """
    for line in lines:
        folder = kept / folder_name(line["row"], line["seed"])
        if folder.exists():
            model = fc.load(folder, model=empty()).eval()
            found = {"accuracy": judge.accuracy(model), "latency": judge.latencies(model)}
            yield line, {**line, **found, "commit": machine.describe()["commit"]}


def check_rows(lines: Sequence[dict[str, Any]], kept: Path, empty: Callable[[], nn.Module], judge: Judge) -> int:
    """Compare the networks that were kept with the table, and print how fast they are.

    Returns:
        The number of networks whose accuracy is another than the table's, by more than 0.05 points: int8 layers give
        the same bits everywhere, the float operations around them may not.
    """
    wrong = 0
    for line, again in kept_again(lines, kept, empty, judge):
        same = _same_accuracy(line, again)
        wrong += not same
        speed = ", ".join(
            f"batch {batch}: {seen['this']:.3f} ms, {seen['fp32 eager'] / seen['this']:.1f}× fp32, "
            f"{seen['strongest dense'] / seen['this']:.1f}× the strongest dense"
            for batch, seen in again["latency"].items()
        )
        verdict = "as in the table" if same else f"the table says {line['accuracy']:.2f}%"
        print(f"{line['row']}: {again['accuracy']:.2f}% ({verdict}); {speed}", flush=True)
    return wrong


def timed_again(
    lines: Sequence[dict[str, Any]],
    fresh: Sequence[dict[str, Any]],
    kept: Path,
    empty: Callable[[], nn.Module],
    judge: Judge,
) -> list[dict[str, Any]]:
    """The lines of networks that were kept, with the latency of today, but for those that are among the fresh ones.

    Raises:
        RuntimeError: a network's accuracy is no longer the table's.
    """
    judged = {(line["row"], line["seed"]) for line in fresh}
    older = [line for line in lines if (line["row"], line["seed"]) not in judged]
    again = []
    for line, now in kept_again(older, kept, empty, judge):
        if not _same_accuracy(line, now):
            raise RuntimeError(
                f"{line['row']}: accuracy {now['accuracy']:.2f}%, the table says {line['accuracy']:.2f}%"
            )
        again.append({**now, "accuracy": line["accuracy"]})
        print(json.dumps(again[-1]), flush=True)
    return again


def _same_accuracy(line: dict[str, Any], again: dict[str, Any]) -> bool:
    return bool(abs(line["accuracy"] - again["accuracy"]) <= 0.05)


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
