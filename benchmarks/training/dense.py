"""``python -m benchmarks.training.dense``: train the dense network that every compressed one starts from.

Writes FILE.safetensors and, beside it, FILE.json: seed, command, settings, loss and validation accuracy of each epoch,
test accuracy, versions and commit. After each epoch the state goes to FILE.part; the same command goes on from there,
to the same bits as if it had never stopped (same machine, same number of threads). 5,000 training images are set aside
for validation; the test images are used once, at the end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.harness import machine
from benchmarks.harness.layout import channels_last
from benchmarks.training import checkpoint
from benchmarks.training.augment import Normalizer
from benchmarks.training.data import DEFAULT_FOLDER, Dataset, load_dataset, validation_split
from benchmarks.training.network import DENSE, NetworkConfig, ResidualCNN, count_macs, student_of
from benchmarks.training.trainer import TrainConfig, accuracy, make_optimizer, run_epoch

__all__ = ["main", "train_dense"]

VALIDATION_IMAGES = 5_000
Epoch = dict[str, float]


def train_dense(
    dataset: Dataset,
    network: NetworkConfig,
    config: TrainConfig,
    out: Path,
    *,
    validation_images: int = VALIDATION_IMAGES,
    limit: int | None = None,
    command: str = "",
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[int, Epoch], None] | None = None,
) -> dict[str, Any]:
    """Train a network from its beginning or from the last finished epoch in ``out``'s ``.part`` file.

    Args:
        dataset: what to train and judge with.
        network: the sizes of the network.
        config: the settings of the training.
        out: the file of the trained network, ``.safetensors``.
        validation_images: training images set aside; their choice has a fixed seed of its own.
        limit: train on this many images only.
        command: kept in the record.
        on_step: called with epoch and loss after each step.
        on_epoch: called with the epoch's number and its line of the record.

    Returns:
        The record that is also written as JSON; where ``out`` is already the result of the same run, its record.

    Raises:
        ValueError: ``out`` is no ``.safetensors`` file, or it or its ``.part`` belongs to other data or settings.
        FloatingPointError: the loss is not finite; the ``.part`` file keeps the last finished epoch.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"train_dense: out must end in .safetensors, got {out.name!r}")
    began = machine.describe()  # now: hours later the working tree may hold another commit
    identity = {
        "data": dataset.name,
        "data_sha256": dataset.digest(),
        "network": network.to_json(),
        "training": config.to_json(),
        "validation_images": validation_images,
        "limit": limit,
        "threads": torch.get_num_threads(),
    }
    identity = json.loads(json.dumps(identity))  # as it comes back from a file: lists, not tuples
    finished = _finished(out, identity)
    if finished is not None:
        return finished
    train, validation = validation_split(dataset.train, validation_images)
    if limit is not None:
        train = train.take(torch.arange(min(limit, len(train))))
    normalizer = Normalizer.of(train.images)
    torch.manual_seed(config.seed)
    model = channels_last(ResidualCNN(network))
    optimizer = make_optimizer(model, config)
    part = out.with_suffix(".part")
    history: list[Epoch] = []
    if part.exists():
        tensors, state = checkpoint.read(part)
        _check_same(part, state.get("identity"), identity)
        checkpoint.restore_state(model, optimizer, tensors)
        history = state["history"]
    for epoch in range(len(history), config.epochs):
        start = time.perf_counter()
        step = None if on_step is None else (lambda loss, now=epoch: on_step(now, loss))
        loss = run_epoch(model, optimizer, train, normalizer, config, epoch, step)
        line: Epoch = {"loss": round(loss, 6), "seconds": round(time.perf_counter() - start, 2)}
        if len(validation):
            line["validation_accuracy"] = round(accuracy(model, validation, normalizer), 4)
        history.append(line)
        checkpoint.write(part, checkpoint.state_tensors(model, optimizer), {"identity": identity, "history": history})
        if on_epoch is not None:
            on_epoch(epoch, line)
    record = {
        "command": command,
        "seed": config.seed,
        "test_accuracy": round(accuracy(model, dataset.test, normalizer), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, dataset.test.images.shape[1:]),
        **identity,
        "machine": began,
        "history": history,
    }
    checkpoint.save_network(out, model, normalizer, {key: record[key] for key in ("seed", "test_accuracy", "data")})
    checkpoint.write_json(out.with_suffix(".json"), record)
    part.unlink(missing_ok=True)
    return record


def _finished(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The record of ``out`` if it is there; an error if it is another run's, which would be lost."""
    described = out.with_suffix(".json")
    if not out.exists() or not described.exists():
        return None
    try:
        record = json.loads(described.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"train_dense: {described} is no record of a run ({error}); remove it") from error
    _check_same(out, record, identity)
    return cast("dict[str, Any]", record)


def _check_same(path: Path, before: Any, now: dict[str, Any]) -> None:
    known = before if isinstance(before, dict) else {}
    different = [key for key in now if known.get(key) != now[key]]
    if different:
        was = {key: known.get(key) for key in different}
        raise ValueError(
            f"train_dense: {path} is from a run with other {', '.join(different)} (there {was!r:.300}); give the same "
            "options to go on with it, remove it to start again, or choose another file"
        )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.dense",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help=f"folder of the images ({DEFAULT_FOLDER})")
    parser.add_argument("--out", type=Path, required=True, help="the trained network, .safetensors")
    parser.add_argument("--network", choices=("dense", "student"), default="dense", help="student: half the width")
    parser.add_argument("--seed", type=int, default=0, help="of initialization, order and augmentation (default 0)")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training images (default 100)")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (default: what torch takes)")
    parser.add_argument("--limit", type=int, default=None, help="train on this many images only, to try things out")
    return parser.parse_args(argv)


class _Bar:
    """The progress bar: epoch, steps, time left, last loss and validation accuracy; above it a line for each epoch."""

    def __init__(self, console: Console, config: TrainConfig, images: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
        self.progress = Progress(TextColumn("epoch {task.fields[epoch]}"), *columns, console=console)
        self._per_epoch = images // config.batch
        self._judged = ""
        self._task = self.progress.add_task("", total=config.epochs * self._per_epoch, epoch=0, loss="")

    def on_step(self, epoch: int, loss: float) -> None:
        """Move on by one step; a resumed run begins behind the steps of the epochs before."""
        done = max(self.progress.tasks[self._task].completed, epoch * self._per_epoch) + 1
        self.progress.update(self._task, completed=done, epoch=epoch, loss=f"loss {loss:.3f}{self._judged}")

    def on_epoch(self, epoch: int, line: Epoch) -> None:
        """Print the epoch's line."""
        self._judged = f", validation accuracy {line['validation_accuracy']:.2f}%"
        text = f"epoch {epoch}: loss {line['loss']:.4f}{self._judged}, {line['seconds']:.0f} s"
        self.progress.console.print(text, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Train with a progress bar and return the exit status: 1 after an error, 130 after Ctrl-C."""
    options = arguments(argv)
    command = shlex.join(["python", "-m", "benchmarks.training.dense", *(sys.argv[1:] if argv is None else argv)])
    console = Console(stderr=True)
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        dataset = load_dataset(options.data)
        channels = dataset.train.images.shape[1]
        network = replace(student_of() if options.network == "student" else DENSE, in_channels=channels)
        config = TrainConfig(epochs=options.epochs, seed=options.seed)
        available = len(dataset.train) - VALIDATION_IMAGES
        bar = _Bar(console, config, available if options.limit is None else min(options.limit, available))
        with bar.progress:
            record = train_dense(
                dataset,
                network,
                config,
                options.out,
                limit=options.limit,
                command=command,
                on_step=bar.on_step,
                on_epoch=bar.on_epoch,
            )
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last finished epoch")
        return 130
    except (OSError, ValueError, TypeError, RuntimeError, FloatingPointError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    size = f"{record['parameters']} parameters, {record['macs'] / 1e6:.2f} MMAC"
    print(f"test accuracy {record['test_accuracy']:.2f}%, {size}")
    print("written:", options.out, options.out.with_suffix(".json"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
