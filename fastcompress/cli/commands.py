"""The commands: each takes the parsed options and gives an object for ``--json`` and something to print."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from torch import nn

from fastcompress.api import convert, quantize
from fastcompress.config import QuantConfig
from fastcompress.cpu import cpu_info
from fastcompress.formats import checkpoint_info, load, save
from fastcompress.pruning import prune, pruning_of
from fastcompress.recipes import compress
from fastcompress.record import record_of
from fastcompress.report import load_compression_report
from fastcompress.report.benchmark import benchmark
from fastcompress.report.environment import environment
from fastcompress.report.explain import explain
from fastcompress.report.size import size_bytes
from fastcompress.report.verify import verify

from .references import called, imported, loaded, model, optional

__all__ = [
    "Answer",
    "run_bench",
    "run_compress",
    "run_explain",
    "run_info",
    "run_prune",
    "run_quantize",
    "run_report",
    "run_verify",
]

#: What a command gives back: an object for ``--json``, and what is printed without it.
Answer = tuple[dict[str, Any], Any]


def run_info(options: argparse.Namespace) -> Answer:
    """This machine, or what a checkpoint holds."""
    if options.checkpoint is not None:
        answer = checkpoint_info(options.checkpoint)
        return answer, "\n".join(f"{key:18} {value}" for key, value in answer.items())
    cpu = cpu_info()
    place = environment()
    lines = [f"{key:16} {value}" for key, value in place.items() if key not in ("isa", "threads")]
    return {"environment": place, "cpu": dataclasses.asdict(cpu)}, "\n".join([*lines, str(cpu)])


def run_verify(options: argparse.Namespace) -> Answer:
    """Check a checkpoint."""
    answer = checkpoint_info(options.checkpoint)
    text = f"{options.checkpoint}: {answer['tensors']} tensors, {answer['tensor_file_bytes']} bytes, checksums match"
    layers = None
    if options.model is not None:
        layers = verify(load(options.checkpoint, model(options.model), inplace=True))
        text += f"; loads into {options.model}, {len(layers)} packed layers intact"
    return {"checkpoint": options.checkpoint, "tensors": answer["tensors"], "layers": layers, "ok": True}, text


def run_explain(options: argparse.Namespace) -> Answer:
    """Which kernel runs each layer."""
    explanation = explain(loaded(options), optional(options.inputs))
    return explanation.to_dict(), explanation


def run_bench(options: argparse.Namespace) -> Answer:
    """A checkpoint against its dense model."""
    compressed = load(options.checkpoint, model(options.model), inplace=True)
    result = benchmark(
        compressed, model(options.model), called(options.inputs), options.threads, compiled=options.compiled
    )
    return result.to_dict(), result


def run_quantize(options: argparse.Namespace) -> Answer:
    """Quantize and save."""
    dense = model(options.model)
    before = size_bytes(dense)
    config = QuantConfig(
        options.scheme,
        targets=tuple(options.target) or None,
        ignore=tuple(options.ignore),
        observer=options.observer,
        only_if_faster=not options.always,
    )
    result = quantize(dense, config, optional(options.calibration), example_inputs=optional(options.inputs))
    return _saved(result, options.out, before)


def run_prune(options: argparse.Namespace) -> Answer:
    """Prune in one shot, convert and save."""
    dense = model(options.model)
    before = size_bytes(dense)
    pruned = prune(
        dense,
        options.sparsity,
        options.pattern,
        options.criterion,
        options.scope,
        optional(options.calibration),
        targets=tuple(options.target) or None,
        ignore=tuple(options.ignore),
        seed=options.seed,
    )
    record = pruning_of(pruned)
    result = convert(pruned, only_if_faster=not options.always, example_inputs=optional(options.inputs))
    answer, text = _saved(result, options.out, before)
    layers = [] if record is None else [decision.to_json() for decision in record]
    done = sum(layer["action"] == "pruned" for layer in layers)
    return {**answer, "pruned": layers}, f"{text}; {done} of {len(layers)} layers pruned"


def run_compress(options: argparse.Namespace) -> Answer:
    """Train through a recipe, finish and save."""
    dense = model(options.model)
    before = size_bytes(dense)
    result = compress(
        dense,
        options.recipe,
        called(options.train),
        epochs=options.epochs,
        eval_fn=None if options.eval is None else imported(options.eval),
        optimizer=None if options.optimizer is None else imported(options.optimizer),
        example_inputs=optional(options.inputs),
        max_drop=options.max_drop,
        checkpoint_dir=options.checkpoint_dir,
        checkpoint_every=options.checkpoint_every,
        only_if_faster=not options.always,
    )
    answer, text = _saved(result.model, options.out, before)
    answer |= {"dense_score": result.dense_score, "score": result.score, "history": result.history.to_json()}
    answer |= {"given_up": [dataclasses.asdict(given) for given in result.given_up]}
    if result.score is not None:
        text += f"; score {result.dense_score:.4f} → {result.score:.4f}"
    if options.report is not None:
        result.report(options.report)
        answer, text = {**answer, "report": options.report}, f"{text}; report {options.report}"
    return answer, text


def run_report(options: argparse.Namespace) -> Answer:
    """Write a saved report in another form, or print it."""
    report = load_compression_report(options.report)
    if options.out is not None:
        report.save(options.out)
    return {**report.to_dict(), "out": options.out}, report if options.out is None else f"{options.out}: written"


def _saved(result: nn.Module, out: str, before: int) -> Answer:
    save(result, out)
    record = record_of(result)
    counts = {} if record is None else record.counts()
    answer = {"out": out, "layers": counts, "bytes_before": before, "bytes_after": size_bytes(result)}
    text = f"{out}: " + ", ".join(f"{count} {action}" for action, count in counts.items())
    return answer, f"{text}; {before} → {answer['bytes_after']} bytes"
