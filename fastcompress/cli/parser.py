"""The options of every command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from fastcompress.config import SCHEMES
from fastcompress.pruning import CRITERIA
from fastcompress.version import __version__

from . import commands

__all__ = ["make_parser"]

_EXAMPLES = """examples:
  fastcompress info
  fastcompress quantize mynet:make --calibration mynet:batches --out int8/
  fastcompress prune bert-directory/ --sparsity 0.9 --pattern 16x4 --inputs mynet:tokens --out sparse/
  fastcompress compress mynet:make --recipe recipe.yaml --train mynet:loader --eval mynet:accuracy --out out/
  fastcompress bench mynet:make --checkpoint out/ --inputs mynet:batch --json

MODULE:CALLABLE is imported (also from the current directory) and called without arguments.
exit status: 0 done, 1 failed (the message says why), 2 wrong usage, 130 interrupted
"""

_REFERENCE: Any = {"metavar": "MODULE:CALLABLE"}
_MODEL: Any = {
    "metavar": "MODEL",
    "help": "MODULE:CALLABLE that makes the trained float model, or a Hugging Face directory",
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; ``options.run`` is the command's function."""
    parser = argparse.ArgumentParser(
        prog="fastcompress",
        description="Compress PyTorch networks and run them faster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastcompress {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    subs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        sub = subs.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    _look(command)
    _make(command)
    return parser


def _look(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Commands that change nothing."""
    info = command("info", commands.run_info, "this machine and its kernels, or what a checkpoint holds")
    info.add_argument("checkpoint", nargs="?", help="directory that fastcompress.save wrote")

    check = command("verify", commands.run_verify, "check a checkpoint's checksums, and with --model its packed layers")
    check.add_argument("checkpoint", help="directory that fastcompress.save wrote")
    check.add_argument("--model", **_MODEL)

    tell = command("explain", commands.run_explain, "which kernel runs each layer, and why")
    tell.add_argument("model", **_MODEL)
    tell.add_argument("--checkpoint", help="load this into the model first")
    tell.add_argument("--inputs", help="makes one batch; layers are then timed on it", **_REFERENCE)

    bench = command("bench", commands.run_bench, "time a checkpoint against the strongest dense form of its model")
    bench.add_argument("model", **_MODEL)
    bench.add_argument("--checkpoint", required=True, help="directory that fastcompress.save wrote")
    bench.add_argument("--inputs", required=True, help="makes one batch", **_REFERENCE)
    bench.add_argument("--threads", type=int, help="default: what torch chooses")
    bench.add_argument("--compiled", action="store_true", help="also torch.compile the dense model")

    report = command("report", commands.run_report, "print a report that compress --report FILE.json wrote")
    report.add_argument("report", help="the report, FILE.json")
    report.add_argument("--out", help="write it here: .html, .md, .png or .json")


def _make(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Commands that write a compressed model."""
    make = command("quantize", commands.run_quantize, "quantize a trained model to int8 and save it")
    _common(make)
    make.add_argument("--scheme", default="W8A8", choices=list(SCHEMES), help="default: %(default)s")
    make.add_argument("--observer", default="minmax", help="how activation ranges are found; default: %(default)s")
    _selection(make)

    cut = command("prune", commands.run_prune, "prune a trained model in one shot, make its layers sparse, save it")
    _common(cut)
    cut.add_argument("--sparsity", type=float, required=True, help="pruned fraction, from 0 to below 1")
    cut.add_argument("--pattern", default="unstructured", help="16x4, 4x4, 2:4, channel, ...; default: %(default)s")
    cut.add_argument("--criterion", default="magnitude", help=f"{', '.join(CRITERIA)}; default: %(default)s")
    cut.add_argument("--scope", default="local", choices=("local", "global"), help="default: %(default)s")
    cut.add_argument("--seed", type=int, default=0, help="of criterion random; default: %(default)s")
    _selection(cut)

    train = command("compress", commands.run_compress, "train a model through a recipe, finish it and save it")
    train.add_argument("model", **_MODEL)
    train.add_argument("--out", required=True, help="directory to save to")
    train.add_argument("--recipe", required=True, help="YAML file with the stages and, usually, the number of epochs")
    train.add_argument("--train", required=True, help="makes the training batches (a DataLoader)", **_REFERENCE)
    train.add_argument("--eval", help="is itself the function: model -> score, higher is better", **_REFERENCE)
    train.add_argument(
        "--optimizer",
        help="is itself the function: list of parameters -> optimizer; default: AdamW at a rate of 0.001",
        **_REFERENCE,
    )
    train.add_argument("--inputs", help="makes one batch like those of real use; default: one of --train", **_REFERENCE)
    train.add_argument("--epochs", type=int, help="in place of the recipe's")
    train.add_argument("--max-drop", type=float, help="most that the score may fall; needs --eval")
    train.add_argument("--checkpoint-dir", help="keep checkpoints here, and go on from them")
    train.add_argument("--checkpoint-every", type=int, help="steps between checkpoints; default: after each epoch only")
    train.add_argument("--report", help="also measure every stage and write this: .html, .md, .png or .json")
    train.add_argument("--always", action="store_true", help="replace layers also where that is not measured faster")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", **_MODEL)
    parser.add_argument("--out", required=True, help="directory to save to")
    parser.add_argument("--calibration", help="makes an iterable of batches", **_REFERENCE)
    parser.add_argument("--inputs", help="makes one batch like those of real use; layers are timed on it", **_REFERENCE)


def _selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", action="append", default=[], help="only this module or re:pattern; may be repeated")
    parser.add_argument("--ignore", action="append", default=[], help="not this module or re:pattern; may be repeated")
    parser.add_argument("--always", action="store_true", help="replace layers also where that is not measured faster")
