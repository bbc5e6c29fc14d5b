"""``python -m benchmarks.training.table``: the image results, row by row.

    python -m benchmarks.training.table train [--row NAME] [--seed N]    train what is missing, resuming rows half done
    python -m benchmarks.training.table finish                           convert, judge, time; write the table
    python -m benchmarks.training.table check                            judge and time the networks that lie beside it

Training may share the machine with other work; ``finish`` and
``check`` measure, so nothing else may run. ``finish`` times networks that lie beside the table again.

Every row starts from the one dense network in ``benchmarks/results/training``, students from nothing. 5,000 training
images are set aside, on which settings are to be chosen; the test images are used by ``finish`` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fastcompress as fc
from benchmarks.harness.layout import channels_last
from benchmarks.training.augment import Normalizer, augment
from benchmarks.training.checkpoint import load_network
from benchmarks.training.data import DEFAULT_FOLDER, Split, load_dataset, validation_split
from benchmarks.training.judge import BATCHES, Judge, check_rows, judge_rows, timed_again
from benchmarks.training.network import ResidualCNN, student_of
from benchmarks.training.rows import ROWS, Row, fine_tuning
from benchmarks.training.runs import finished_epochs, folder_name, pruned_only, row_named, train_missing
from benchmarks.training.script import known_rows, parser, reported, write_table
from benchmarks.training.summary import markdown
from benchmarks.training.trainer import TrainConfig, accuracy, learning_rate
from fastcompress.report.size import size_bytes

__all__ = ["Lab", "main"]

MODULE = "benchmarks.training.table"
RESULTS = Path("benchmarks/results/training")
TABLE = RESULTS / "fashion_mnist.json"


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
        return self.work / folder_name(row.name, seed)

    def empty(self) -> ResidualCNN:
        """A network for the weights of a row that starts from the dense one."""
        return ResidualCNN(self.dense.config)

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
            return pruned_only(self.dense, (row.stages or (lambda _: []))(self.dense))
        return self.run(row, seed, progress=False).model

    def is_done(self, row: Row, seed: int) -> bool:
        """Whether a row's training is over."""
        return row.untrained or finished_epochs(self.folder(row, seed)) == row.epochs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parser(
        MODULE, __doc__, str(DEFAULT_FOLDER), str(RESULTS / "dense.safetensors"), "build/training"
    ).parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        lab = Lab.open(options.data, options.dense, options.work)
    except FileNotFoundError as error:
        print(f"{options.command}: {error}")
        return 0 if options.command == "check" else 1  # part of `make bench`, which installs no system packages
    rows = ROWS if options.row is None else [row_named(ROWS, name) for name in options.row]
    if options.command == "train":
        train_missing(lab, rows, options.seed, known_rows(reported(TABLE, options.dense)))
        return 0

    def tested(model: nn.Module) -> float:
        return accuracy(model, lab.test, lab.normalizer)

    example = lab.normalizer(lab.test.images[: BATCHES[-1]])
    judge, kept = Judge(lab.dense, example, tested, not options.no_compile), TABLE.with_suffix("")
    lines = reported(TABLE, options.dense)
    if options.command == "check":
        return check_rows(lines, kept, lab.empty, judge)
    fresh = judge_rows(lab, rows, judge, kept)
    fresh += timed_again(lines, fresh, kept, lab.empty, judge)
    dense = {"accuracy": tested(lab.dense), "bytes": size_bytes(lab.dense)}
    write_table(
        TABLE, fresh, [row.name for row in ROWS], {"dense": dense}, options.dense, MODULE, markdown, "Fashion-MNIST"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
