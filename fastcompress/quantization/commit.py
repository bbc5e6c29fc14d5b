"""Putting quantized layers into a model: all of them or none, and the decisions about them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from torch import nn

from fastcompress.models.calibrate import run_batch
from fastcompress.models.replace import replace_modules, restore_modules
from fastcompress.models.targets import Candidate
from fastcompress.nn import GroupQuantLinear, PackedLayer, QuantEmbedding, QuantizedLayer
from fastcompress.quantization.embeddings import Embedded
from fastcompress.quantization.job import Job
from fastcompress.quantization.plan import Plan
from fastcompress.record import LayerDecision

__all__ = ["commit", "log_skipped"]

logger = logging.getLogger("fastcompress")


def commit(
    plan: Plan, built: Mapping[str, QuantizedLayer | GroupQuantLinear], norms: Mapping[nn.Module, nn.Module]
) -> nn.Module:
    """Put everything in place, try the model once, and write the decisions down."""
    replacements: dict[nn.Module, nn.Module] = dict(norms)
    fused: dict[str, list[str]] = {}
    for name, layer in built.items():
        job = plan.jobs[name]
        replacements[job.candidate.module] = layer
        for removed in job.fusion.removed:
            fused.setdefault(removed, []).append(name)
            module = plan.modules[removed]
            replacements[module] = nn.Identity()
    tied = [(embedded, *embedded.built(plan.config)) for embedded in plan.embedded]
    for embedded, embedding, heads in tied:
        replacements[embedded.candidate.module] = embedding
        replacements |= {head.module: heads[head.name] for head in embedded.heads}
    root = replacements.get(plan.model, plan.model)
    undo = replace_modules(plan.model, replacements)
    try:
        if plan.first_batch and (built or tied):
            _try(root, plan)
        for name, layer in built.items():
            plan.decisions[name] = _quantized_decision(plan.jobs[name], layer)
        for embedded, embedding, heads in tied:
            _decide_embedded(plan, embedded, embedding, heads)
    except BaseException:
        restore_modules(undo)
        raise
    for name, takers in fused.items():
        into = ", ".join(takers)
        plan.decisions[name] = LayerDecision(name, type(plan.modules[name]).__name__, "fused", f"fused into {into}")
    for old, new in replacements.items():
        new.train(plan.training[old])
    return root


def _decide_embedded(
    plan: Plan, embedded: Embedded, embedding: QuantEmbedding, heads: Mapping[str, GroupQuantLinear]
) -> None:
    def decision(candidate: Candidate, layer: PackedLayer, reason: str) -> LayerDecision:
        return LayerDecision(candidate.name, candidate.kind, "quantized", reason, kernel=layer.kernel_name())

    name = embedded.candidate.name
    plan.decisions[name] = decision(embedded.candidate, embedding, "for its size, not measured")
    for head in embedded.heads:
        plan.decisions[head.name] = decision(head, heads[head.name], f"shares the weight of {name}")


def _try(root: nn.Module, plan: Plan) -> None:
    """Run the quantized model once: what a parent does with its children is only seen when it runs."""
    try:
        run_batch(root, plan.first_batch[0], plan.source.forward_fn, function=plan.source.function)
    except Exception as error:
        error.add_note(
            "raised by the quantized model on the first batch, which the float model had accepted: a parent module "
            "probably uses a layer in a way that int8 layers do not support; pass that layer in ignore=. The model was "
            "not changed"
        )
        raise


def _quantized_decision(job: Job, layer: QuantizedLayer | GroupQuantLinear) -> LayerDecision:
    unmeasured = "for its size, not measured" if layer.input_mode == "float" else "not measured"
    verdict = job.verdict
    reasons = [verdict.reason if verdict is not None else unmeasured]
    if job.fusion.held_back:
        reasons.append(job.fusion.held_back)
    if len(job.candidate.names) > 1:
        reasons.append("shared with " + ", ".join(job.candidate.names[1:]))
    return LayerDecision(
        job.name,
        job.candidate.kind,
        "quantized",
        "; ".join(reasons + job.notes),
        tuple(kind.shape for kind, _ in job.inputs),
        verdict.dense_seconds if verdict is not None else None,
        verdict.quantized_seconds if verdict is not None else None,
        job.fusion.activation,
        layer.kernel_name(),
    )


def log_skipped(function: str, decisions: Iterable[LayerDecision]) -> None:
    """One warning for all layers that could not be quantized."""
    skipped = [decision for decision in decisions if decision.action == "skipped"]
    if skipped:
        lines = "".join(f"\n  {d.name or '(the model)'} ({d.kind}): {d.reason}" for d in skipped)
        logger.warning("%s: %d layers stay float:%s", function, len(skipped), lines)
