"""``python -m benchmarks.training.table``: the image results, row by row.

    python -m benchmarks.training.table train [--row NAME] [--seed N]    train what is missing, resuming rows half done
    python -m benchmarks.training.table finish                           convert, judge, time; write the table

Training may share the machine with other work; ``finish`` measures, so nothing else may run. Every row starts from the
one dense network in ``benchmarks/results/training``, students from nothing. 5,000 training images are set aside, on
which settings are to be chosen; the test images are used by ``finish`` only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastcompress as fc
from benchmarks.harness import machine
from benchmarks.harness.layout import channels_last
from benchmarks.training.augment import Normalizer, augment
from benchmarks.training.checkpoint import load_network, write_json
from benchmarks.training.data import DEFAULT_FOLDER, Split, load_dataset, validation_split
from benchmarks.training.network import ResidualCNN, student_of
from benchmarks.training.rows import ROWS, Row, fine_tuning, row_named
from benchmarks.training.summary import markdown
from benchmarks.training.trainer import TrainConfig, accuracy, learning_rate
from fastcompress.report.size import size_bytes

__all__ = ["Lab", "main"]

RESULTS = Path("benchmarks/results/training")
BATCHES = (1, 64)


class Batches:
    """The augmented batches of one epoch; they depend on the seed and the epoch's number only."""

    def __init__(self, train: Split, normalizer: Normalizer, config: TrainConfig, epoch: int) -> None:
        self._train, self._normalizer, self._config, self._epoch = train, normalizer, config, epoch

    def __len__(self) -> int:
        return len(self._train) // self._config.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        config = self._config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._train), generator=generator)
        for step in range(len(self)):
            chosen = self._train.take(order[step * config.batch : (step + 1) * config.batch])
            yield self._normalizer(augment(chosen.images, config.augmentation, generator)), chosen.labels


@dataclass(frozen=True)
class Lab:
    """The data, the dense network and the folders."""

    train: Split
    validation: Split
    test: Split
    dense: ResidualCNN
    normalizer: Normalizer
    work: Path

    @classmethod
    def open(cls, data: str, dense: str | Path, work: str | Path) -> Lab:
        """Load everything."""
        dataset, trained = load_dataset(data), load_network(dense)
        train, validation = validation_split(dataset.train)
        return cls(train, validation, dataset.test, trained.model, trained.normalizer, Path(work))

    def folder(self, row: Row, seed: int) -> Path:
        """Where a row's checkpoints lie."""
        name = "".join(letter if letter.isalnum() else "-" for letter in row.name)
        return self.work / f"{name}-{seed}"

    def start(self, row: Row, seed: int) -> ResidualCNN:
        """The network that a row's training starts from."""
        if not row.student:
            return self.dense
        torch.manual_seed(seed)
        return channels_last(ResidualCNN(student_of(self.dense.config)))

    def run(self, row: Row, seed: int, progress: bool | None = None) -> fc.recipes.CompressionResult:
        """Train a row, or go on with it; what is finished already returns at once."""
        config = fine_tuning(row, seed)
        stages = [] if row.stages is None else row.stages(self.dense)
        steps = config.epochs * (len(self.train) // config.batch)

        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            groups = [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
            ]
            return torch.optim.SGD(groups, lr=config.peak, momentum=config.momentum, nesterov=True)

        return fc.compress(
            self.start(row, seed),
            stages,
            lambda epoch: Batches(self.train, self.normalizer, config, epoch),
            epochs=config.epochs,
            eval_fn=lambda model: accuracy(model, self.validation, self.normalizer),
            optimizer=optimizer,
            learning_rate=lambda done: learning_rate(config, round(done * steps), steps) / config.peak,
            autocast=torch.bfloat16 if config.bf16 else None,
            checkpoint_dir=self.folder(row, seed),
            convert=False,
            seed=seed,
            progress=progress,
        )

    def trained(self, row: Row, seed: int) -> nn.Module:
        """The network of a row with its masks and fake quantization."""
        if row.untrained:
            stage: Any = (row.stages or (lambda _: []))(self.dense)[0]
            return fc.prune(self.dense, stage.sparsity, stage.pattern, ignore=stage.ignore)
        return self.run(row, seed, progress=False).model

    def is_done(self, row: Row, seed: int) -> bool:
        """Whether a row's training is over."""
        path = self.folder(row, seed) / "last.pt"
        if row.untrained:
            return True
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        return len(state["history"]) == row.epochs


def reported() -> list[dict[str, Any]]:
    """The lines of the table so far."""
    path = RESULTS / "fashion_mnist.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def train(lab: Lab, rows: Sequence[Row], seeds: Sequence[int] | None) -> None:
    """Train what is neither in the table nor trained: first seeds first."""
    known = {(line["row"], line["seed"]) for line in reported()}
    for seed in sorted({seed for row in rows for seed in row.seeds}):
        for row in rows:
            wanted = seed in row.seeds and (seeds is None or seed in seeds) and (row.name, seed) not in known
            if wanted and not lab.is_done(row, seed):
                start = time.perf_counter()
                result = lab.run(row, seed)
                last = result.history.rows[-1]
                print(
                    f"{row.name}, seed {seed}: validation {last.score:.2f}%, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )


def finish(lab: Lab, rows: Sequence[Row], compiled: bool) -> list[dict[str, Any]]:
    """Convert, judge and time every row that is trained."""
    example = lab.normalizer(lab.test.images[: BATCHES[-1]])
    lines = []
    for row in rows:
        for seed in row.seeds:
            if not lab.is_done(row, seed):
                continue
            trained = lab.trained(row, seed)
            model = fc.convert(trained, example_inputs=example, progress=False).eval()
            line: dict[str, Any] = {
                "row": row.name,
                "seed": seed,
                "epochs": 0 if row.untrained else row.epochs,
                "accuracy": accuracy(model, lab.test, lab.normalizer),
                "bytes": size_bytes(model),
            }
            if seed == row.seeds[0]:
                line["latency"] = {
                    str(batch): latency(model, lab.dense, example[:batch], compiled) for batch in BATCHES
                }
            lines.append(line)
            print(json.dumps(line), flush=True)
    return lines


def latency(model: nn.Module, dense: nn.Module, x: Tensor, compiled: bool, min_time_s: float = 0.5) -> dict[str, float]:
    """Milliseconds: the network, torch fp32 eager, and the strongest dense form; all in turn.

    Raises:
        RuntimeError: a form does not run.
    """
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.table", description=__doc__)
    parser.add_argument("command", choices=("train", "finish"))
    parser.add_argument("--data", default=str(DEFAULT_FOLDER), help="folder of the images")
    parser.add_argument("--dense", default=str(RESULTS / "dense.safetensors"), help="the dense network")
    parser.add_argument("--work", default="build/training", help="checkpoints of the rows")
    parser.add_argument("--row", action="append", help="only this row; may be repeated")
    parser.add_argument("--seed", type=int, action="append", help="only this seed; may be repeated")
    parser.add_argument("--threads", type=int, help="threads; the same bits on resuming need the same number")
    parser.add_argument("--no-compile", action="store_true", help="finish: leave the compiled dense network out")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    lab = Lab.open(options.data, options.dense, options.work)
    rows = ROWS if options.row is None else [row_named(name) for name in options.row]
    if options.command == "train":
        train(lab, rows, options.seed)
        return 0
    dense: Callable[[Tensor], Tensor] = lab.dense
    fresh = finish(lab, rows, compiled=not options.no_compile)
    judged = {(line["row"], line["seed"]) for line in fresh}
    # Lines whose checkpoints are gone stay.
    lines = [*fresh, *(line for line in reported() if (line["row"], line["seed"]) not in judged)]
    order = [row.name for row in ROWS]
    report = {
        "dense": {"accuracy": accuracy(dense, lab.test, lab.normalizer), "bytes": size_bytes(lab.dense)},
        "rows": sorted(lines, key=lambda line: (order.index(line["row"]), line["seed"])),
        "machine": machine.describe(),
        "command": "python -m benchmarks.training.table train && python -m benchmarks.training.table finish",
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "fashion_mnist.json", report)
    (RESULTS / "fashion_mnist.md").write_text(markdown(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
