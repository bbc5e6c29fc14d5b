"""The command line: ``fastcompress info|verify|explain|bench|quantize``.

Models, inputs and data are given as ``module:callable``; the callable takes no arguments, and modules are looked up
from the current directory too. Exit status: 0 done, 1 failed (a corrupt file, a wrong model), 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from torch import nn

from fastcompress.api import quantize
from fastcompress.config import SCHEMES, QuantConfig
from fastcompress.cpu import cpu_info
from fastcompress.formats import checkpoint_info, load, save
from fastcompress.record import record_of
from fastcompress.report.benchmark import benchmark
from fastcompress.report.environment import environment, library_version
from fastcompress.report.explain import explain
from fastcompress.report.size import size_bytes
from fastcompress.report.verify import verify

__all__ = ["main"]

#: What a command gives back: an object for ``--json``, and what is printed without it.
Answer = tuple[dict[str, Any], Any]


def _call(reference: str) -> Any:
    """Import ``module:callable`` and call it."""
    module_name, separator, path = reference.partition(":")
    if not separator or not module_name or not path:
        raise ValueError(f"{reference!r} is not of the form module:callable, for example mypackage.models:resnet")
    if "" not in sys.path:
        sys.path.insert(0, "")  # an installed script does not look into the current directory by itself
    target: Any = importlib.import_module(module_name)
    for part in path.split("."):
        if not hasattr(target, part):
            raise ValueError(f"{reference!r}: {module_name} has no attribute {path!r}")
        target = getattr(target, part)
    if not callable(target):
        raise TypeError(f"{reference!r} is a {type(target).__name__}, not a callable that takes no arguments")
    return target()


def _model(reference: str) -> nn.Module:
    model = _call(reference)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{reference!r} returned a {type(model).__name__}, not a torch.nn.Module")
    return model.eval()


def _loaded(options: argparse.Namespace) -> nn.Module:
    model = _model(options.model)
    return model if options.checkpoint is None else load(options.checkpoint, model, inplace=True)


def _optional(reference: str | None) -> Any:
    return None if reference is None else _call(reference)


def _info(options: argparse.Namespace) -> Answer:
    if options.checkpoint is not None:
        answer = checkpoint_info(options.checkpoint)
        return answer, "\n".join(f"{key:18} {value}" for key, value in answer.items())
    cpu = cpu_info()
    place = environment()
    lines = [f"{key:16} {value}" for key, value in place.items() if key not in ("isa", "threads")]
    return {"environment": place, "cpu": dataclasses.asdict(cpu)}, "\n".join([*lines, str(cpu)])


def _verify(options: argparse.Namespace) -> Answer:
    answer = checkpoint_info(options.checkpoint)
    text = f"{options.checkpoint}: {answer['tensors']} tensors, {answer['tensor_file_bytes']} bytes, checksums match"
    layers = None
    if options.model is not None:
        layers = verify(load(options.checkpoint, _model(options.model), inplace=True))
        text += f"; loads into {options.model}, {len(layers)} packed layers intact"
    return {"checkpoint": options.checkpoint, "tensors": answer["tensors"], "layers": layers, "ok": True}, text


def _explain(options: argparse.Namespace) -> Answer:
    explanation = explain(_loaded(options), _optional(options.inputs))
    return explanation.to_dict(), explanation


def _bench(options: argparse.Namespace) -> Answer:
    compressed = load(options.checkpoint, _model(options.model), inplace=True)
    result = benchmark(
        compressed, _model(options.model), _call(options.inputs), options.threads, compiled=options.compiled
    )
    return result.to_dict(), result


def _quantize(options: argparse.Namespace) -> Answer:
    model = _model(options.model)
    before = size_bytes(model)
    config = QuantConfig(
        options.scheme,
        targets=tuple(options.target) or None,
        ignore=tuple(options.ignore),
        observer=options.observer,
        only_if_faster=not options.always,
    )
    result = quantize(model, config, _optional(options.calibration), example_inputs=_optional(options.inputs))
    save(result, options.out)
    record = record_of(result)
    counts = {} if record is None else record.counts()
    answer = {"out": options.out, "layers": counts, "bytes_before": before, "bytes_after": size_bytes(result)}
    text = f"{options.out}: " + ", ".join(f"{count} {action}" for action, count in counts.items())
    return answer, f"{text}; {before} → {answer['bytes_after']} bytes"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastcompress", description="Compress networks and run them faster.")
    parser.add_argument("--version", action="version", version=f"fastcompress {library_version()}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Answer], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    reference: Any = {"metavar": "MODULE:CALLABLE"}
    info = command("info", _info, "this machine and its kernels, or what a checkpoint holds")
    info.add_argument("checkpoint", nargs="?", help="directory that fastcompress.save wrote")

    check = command("verify", _verify, "check a checkpoint's checksums, and with --model its packed layers")
    check.add_argument("checkpoint", help="directory that fastcompress.save wrote")
    check.add_argument("--model", help="makes the float model", **reference)

    tell = command("explain", _explain, "which kernel runs each layer, and why")
    tell.add_argument("model", help="makes the float model", **reference)
    tell.add_argument("--checkpoint", help="load this into the model first")
    tell.add_argument("--inputs", help="makes one batch; layers are then timed on it", **reference)

    bench = command("bench", _bench, "a checkpoint against the strongest dense form of its model")
    bench.add_argument("model", help="makes the float model", **reference)
    bench.add_argument("--checkpoint", required=True, help="directory that fastcompress.save wrote")
    bench.add_argument("--inputs", required=True, help="makes one batch", **reference)
    bench.add_argument("--threads", type=int, help="default: what torch chooses")
    bench.add_argument("--compiled", action="store_true", help="also torch.compile the dense model")

    make = command("quantize", _quantize, "quantize a model and save it")
    make.add_argument("model", help="makes the trained float model", **reference)
    make.add_argument("--out", required=True, help="directory to save to")
    make.add_argument("--scheme", default="W8A8", choices=list(SCHEMES), help="default: %(default)s")
    make.add_argument("--calibration", help="makes an iterable of batches", **reference)
    make.add_argument("--inputs", help="makes one batch like those of real use", **reference)
    make.add_argument("--observer", default="minmax", help="how activation ranges are found; default: %(default)s")
    make.add_argument("--target", action="append", default=[], help="only this module or re:pattern; may be repeated")
    make.add_argument("--ignore", action="append", default=[], help="not this module or re:pattern; may be repeated")
    make.add_argument("--always", action="store_true", help="quantize also where int8 is not measured faster")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its message
        return stop.code if isinstance(stop.code, int) else 2
    try:
        answer, text = options.run(options)
    except KeyboardInterrupt:
        print("fastcompress: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        print(f"fastcompress: {type(error).__name__}: {error}", file=sys.stderr)
        if options.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 1
    if options.json:
        print(json.dumps(answer, default=str))
    elif isinstance(text, str):
        print(text)
    else:
        Console().print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
