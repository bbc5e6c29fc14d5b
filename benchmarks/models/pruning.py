"""What one-shot pruning costs in quality, on real weights: pattern × sparsity × criterion, no training afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

import fastcompress as fc
from benchmarks.harness.suite import Context
from examples.real_models import embed, load_efficientnet_lite0, load_minilm, photo_crops, sentences, tokenize

__all__ = ["run"]

#: Pattern → sparsities; N:M has one.
PATTERNS: dict[str, tuple[float, ...]] = {
    "unstructured": (0.5, 0.7, 0.9),
    "2:4": (0.5,),
    "1x4": (0.5, 0.7, 0.9),
    "4x4": (0.5, 0.7, 0.9),
    "16x4": (0.5, 0.7, 0.9),
}
CRITERIA = ("magnitude", "wanda", "sparsegpt")


def run(context: Context) -> None:
    """Measure the ``pruning`` suite; the whole table goes into the report's details."""
    logging.getLogger("fastcompress").setLevel(logging.ERROR)  # layers that a pattern does not fit are in the record
    with context.part("pruning all-MiniLM-L6-v2"):
        model, tokenizer = load_minilm()
        count = 16 if context.quick else 128
        text, judged = sentences("calibration", count), sentences("evaluation", 16 if context.quick else 200)
        batches = [dict(tokenize(tokenizer, text[i : i + 16])) for i in range(0, count, 16)]
        expected = embed(model, tokenizer, judged)
        table(
            context,
            "minilm",
            model,
            batches,
            "re:encoder.*",
            lambda pruned: float(torch.sum(expected * embed(pruned, tokenizer, judged), dim=1).mean()),
        )
    with context.part("pruning EfficientNet-Lite0"):
        network = load_efficientnet_lite0()
        crops, seen = photo_crops("calibration", 32), photo_crops("evaluation", 32 if context.quick else 160)
        top1 = network(seen).argmax(dim=1)
        table(
            context,
            "efficientnet",
            network,
            list(crops.split(8)),
            None,
            lambda pruned: float((pruned(seen).argmax(dim=1) == top1).float().mean()),
        )


def table(
    context: Context,
    key: str,
    model: nn.Module,
    batches: Sequence[object],
    targets: str | None,
    judge: Callable[[nn.Module], float],
) -> None:
    """Prune with every criterion, judge the masked model, and record by how much SparseGPT beats magnitude."""
    margins: list[float] = []
    rows = context.report.details.setdefault("pruning", [])
    for pattern, sparsities in PATTERNS.items():
        for sparsity in sparsities[:1] if context.quick else sparsities:
            scores = {}
            for criterion in CRITERIA:
                pruned = fc.prune(model, sparsity, pattern, criterion, calibration_data=batches, targets=targets)
                scores[criterion] = round(judge(pruned), 4)
            rows.append({"model": key, "pattern": pattern, "sparsity": sparsity, **scores})
            context.say(f"  {pattern} {sparsity:.0%}: {scores}")
            margins.append(scores["sparsegpt"] - scores["magnitude"])
    note = f"{len(margins)} rows of pattern × sparsity, mean {sum(margins) / len(margins):.3f}; no training afterwards"
    context.add(f"pruning.{key}", min(margins), note=note)
