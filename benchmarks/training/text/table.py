"""``python -m benchmarks.training.text.table``: the text results, row by row.

    pip download --no-deps --dest build/data Django==5.2.19    the texts
    python -m benchmarks.training.text.dense                   the dense network, if it is to be made again
    python -m benchmarks.training.text.table train             train what is missing, resuming rows half done
    python -m benchmarks.training.text.table finish            convert, judge, time; write the table
    python -m benchmarks.training.text.table check             judge and time the networks that lie beside it

``--row NAME`` and ``--seed N`` choose among the rows.

Training may share the machine with other work; ``finish`` measures, so nothing else may run. Every row starts from the
one dense network in ``benchmarks/results/training``, students from nothing. Settings are chosen on the validation
texts; the test texts are used by ``finish`` only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.training.judge import BATCHES, Judge, check_rows, judge_rows, timed_again
from benchmarks.training.runs import finished_epochs, folder_name, pruned_only, row_named, train_missing
from benchmarks.training.script import known_rows, parser, reported, write_table
from benchmarks.training.text.catalogs import DEFAULT_DATA
from benchmarks.training.text.data import TextDataset, load_texts
from benchmarks.training.text.dense import DEFAULT_DENSE, DEFAULT_WORK, load_dense
from benchmarks.training.text.network import ByteTransformer, student_of
from benchmarks.training.text.rows import ROWS, TextRow, fine_tuning
from benchmarks.training.text.summary import markdown
from benchmarks.training.text.trainer import accuracy, fit
from fastcompress.recipes import CompressionResult, Stage
from fastcompress.report.size import size_bytes

__all__ = ["TextLab", "main"]

MODULE = "benchmarks.training.text.table"
TABLE = Path("benchmarks/results/training/django_languages.json")


@dataclass(frozen=True)
class TextLab:
    """The data, the dense network and the folder of the rows' checkpoints."""

    data: TextDataset
    dense: ByteTransformer
    work: Path

    @classmethod
    def open(cls, data: str | Path, dense: str | Path, work: str | Path) -> TextLab:
        """Load everything."""
        texts = load_texts(data)
        return cls(texts, load_dense(dense, texts), Path(work))

    def folder(self, row: TextRow, seed: int) -> Path:
        """Where a row's checkpoints lie."""
        return self.work / folder_name(row.name, seed)

    def stages(self, row: TextRow) -> list[Stage]:
        """What a row's training does besides plain training."""
        return [] if row.stages is None else row.stages(self.dense)

    def empty(self) -> ByteTransformer:
        """A network for the weights of a row that starts from the dense one."""
        return ByteTransformer(self.dense.config)

    def start(self, row: TextRow, seed: int) -> ByteTransformer:
        """The network that a row's training starts from."""
        if not row.student:
            return self.dense
        torch.manual_seed(seed)
        return ByteTransformer(student_of(self.dense.config))

    def run(self, row: TextRow, seed: int, progress: bool | None = None) -> CompressionResult:
        """Train a row, or go on with it; what is finished already returns at once."""
        settings = fine_tuning(row, seed)
        return fit(self.start(row, seed), self.stages(row), settings, self.data, self.folder(row, seed), progress)

    def trained(self, row: TextRow, seed: int) -> nn.Module:
        """The network of a row with its masks and fake quantization."""
        if row.untrained:
            return pruned_only(self.dense, self.stages(row))
        return self.run(row, seed, progress=False).model

    def is_done(self, row: TextRow, seed: int) -> bool:
        """Whether a row's training is over."""
        return row.untrained or finished_epochs(self.folder(row, seed)) == row.epochs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 where something to start from is missing."""
    options = parser(MODULE, __doc__, DEFAULT_DATA, DEFAULT_DENSE, DEFAULT_WORK).parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        lab = TextLab.open(options.data, options.dense, options.work)
        rows = ROWS if options.row is None else [row_named(ROWS, name) for name in options.row]
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 0 if options.command == "check" else 1  # part of `make bench`, which downloads no data
    if options.command == "train":
        train_missing(lab, rows, options.seed, known_rows(reported(TABLE, options.dense)))
        return 0

    def tested(model: nn.Module) -> float:
        return accuracy(model, lab.data.test)

    example = lab.data.test.inputs()[: BATCHES[-1]]
    judge, kept = Judge(lab.dense, example, tested, not options.no_compile), TABLE.with_suffix("")
    lines = reported(TABLE, options.dense)
    if options.command == "check":
        return check_rows(lines, kept, lab.empty, judge)
    fresh = judge_rows(lab, rows, judge, kept)
    fresh += timed_again(lines, fresh, kept, lab.empty, judge)
    dense = {"accuracy": tested(lab.dense), "bytes": size_bytes(lab.dense)}
    header = {"dense": dense, "languages": len(lab.data.languages)}
    write_table(
        TABLE,
        fresh,
        [row.name for row in ROWS],
        header,
        options.dense,
        MODULE,
        markdown,
        "Languages of Django's translations",
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
