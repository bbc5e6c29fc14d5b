"""Putting a plan's masks into a model: all of them or none."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.targets import Candidate

from .config import PruneConfig
from .mask import Mask, apply_mask, lift_mask, mask_module, mask_of
from .plan import Plan
from .pruner_config import PrunerConfig
from .record import PRUNING_ATTRIBUTE, PruneDecision, PruneRecord, pruning_of

__all__ = ["commit", "log_skipped", "merged"]

logger = logging.getLogger("fastcompress")


def commit(model: nn.Module, plan: Plan, config: PruneConfig | PrunerConfig) -> None:
    """Put every mask in place; an exception on the way takes all of them back."""
    masks: list[tuple[nn.Module, Mask | None]] = []
    weights: list[tuple[Tensor, Tensor]] = []
    earlier = pruning_of(model)
    try:
        for layer, asked, solved in plan.solved:
            if solved.weight is not None:
                weights.append((layer.parameter, layer.parameter.detach().clone()))
                with torch.no_grad():
                    layer.parameter.copy_(solved.weight)
            for candidate in (layer.candidate, *layer.tied):
                module = candidate.module
                old = mask_module(module)
                masks.append((module, None if old is None else Mask(old.mask, old.input_order, old.output_order)))
                apply_mask(
                    module,
                    solved.mask,
                    name=candidate.name,
                    input_order=solved.input_order,
                    output_order=solved.output_order,
                )
                plan.decisions[candidate.name] = PruneDecision(
                    candidate.name,
                    candidate.kind,
                    "pruned",
                    config.pattern,
                    asked,
                    _masked_fraction(module),
                    solved.retained,
                    _reason(candidate, layer.candidate, config),
                    solved.gain,
                )
        setattr(model, PRUNING_ATTRIBUTE, merged(model, plan.decisions.values(), config.to_json(), earlier))
    except BaseException:
        for module, before in reversed(masks):
            if before is None:
                lift_mask(module)
            else:
                _set_back(module, before)
        with torch.no_grad():
            for parameter, value in weights:
                parameter.copy_(value)
        raise


def _masked_fraction(module: nn.Module) -> float:
    mask = mask_of(module)
    assert mask is not None
    return 1.0 - int(mask.sum()) / mask.numel()


def _reason(candidate: Candidate, owner: Candidate, config: PruneConfig | PrunerConfig) -> str:
    parts = [f"{config.criterion}, {config.scope}"]
    if candidate is not owner:
        parts.append(f"shares its weight and mask with {owner.name}")
    return "; ".join(parts)


def _set_back(module: nn.Module, before: Mask) -> None:
    current = mask_module(module)
    assert current is not None
    current.mask, current.input_order, current.output_order = before.mask, before.input_order, before.output_order


def merged(
    model: nn.Module, decisions: Iterable[PruneDecision], config: Mapping[str, Any], earlier: PruneRecord | None
) -> PruneRecord:
    """The model's record; what earlier calls pruned stays in it as long as this one does not prune it again."""
    known = {decision.name: decision for decision in decisions}
    for old in earlier or ():
        new = known.get(old.name)
        if new is None or (old.action == "pruned" and new.action != "pruned"):
            known[old.name] = old
    order = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    ranked = sorted(known.values(), key=lambda decision: order.get(decision.name, len(order)))
    return PruneRecord(config, tuple(ranked))


def log_skipped(function: str, decisions: Iterable[PruneDecision]) -> None:
    """One warning for all layers that could not be pruned."""
    skipped = [decision for decision in decisions if decision.action == "skipped"]
    if skipped:
        lines = "".join(f"\n  {d.name or '(the model)'} ({d.kind}): {d.reason}" for d in skipped)
        logger.warning("%s: %d layers stay dense:%s", function, len(skipped), lines)
