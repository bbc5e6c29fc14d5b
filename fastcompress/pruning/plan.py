"""Deciding everything about one call of `prune` before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fastcompress.models.targets import Candidate, Target, Wording, matched, unwanted

from .config import PruneConfig
from .evidence import Evidence, evidence
from .layers import WORDING, PrunableLayer, find_layers, layer_problem, tie
from .patterns import Pattern
from .permute import permuted, restored
from .record import PruneDecision
from .selection import block_scores, lowest, mask_from_blocks, pruned_count
from .solve import Solved, retained_share, solve
from .source import Source

__all__ = ["Choice", "Plan", "asked_sparsities", "make_plan", "select"]


class Choice(Protocol):
    """A configuration that says which layers are pruned, to what pattern, and how much."""

    @property
    def sparsity(self) -> float | Mapping[Target, float]: ...

    @property
    def targets(self) -> tuple[Target, ...] | None: ...

    @property
    def ignore(self) -> tuple[Target, ...]: ...

    @property
    def parsed(self) -> Pattern: ...


@dataclass
class Plan:
    """What `prune` will do.

    Attributes:
        solved: the layers that get a mask.
        decisions: name → decision; those of ``solved`` are added when they are in place.
    """

    solved: list[tuple[PrunableLayer, float, Solved]] = field(default_factory=list)
    decisions: dict[str, PruneDecision] = field(default_factory=dict)


def make_plan(model: nn.Module, config: PruneConfig, source: Source) -> Plan:
    """Choose the layers, run the model where the criterion needs it, and find every mask; changes nothing.

    Raises:
        ValueError: a target matches nothing, or a layer that is named exactly cannot be pruned.
    """
    plan = Plan()
    layers, asked = select(model, config, plan.decisions)
    exact = _exact_names(model, config)
    found: list[tuple[PrunableLayer, Evidence]] = []
    for layer, known in evidence(model, layers, config.criterion, source):
        problem = known.problem
        if problem is None and config.scope == "local":
            try:
                solved = solve(layer, known, config.parsed, asked[layer.name], config.permuted_dims, config.seed)
            except ValueError as error:
                problem = str(error)
            else:
                plan.solved.append((layer, asked[layer.name], solved))
        if problem is not None:
            for candidate in (layer.candidate, *layer.tied):
                _refuse(plan.decisions, candidate, problem, asked[layer.name], exact)
        elif config.scope == "global":
            found.append((layer, known))
    if found:
        plan.solved += _globally(found, config)
    return plan


def select(
    model: nn.Module,
    config: Choice,
    decisions: dict[str, PruneDecision],
    wording: Wording = WORDING,
    *,
    under_others: bool = False,
) -> tuple[list[PrunableLayer], dict[str, float]]:
    """The layers to prune and name → sparsity; why the others stay is written into ``decisions``.

    Args:
        wording: for whom messages speak.
        under_others: see `layer_problem`.

    Raises:
        ValueError: a target matches nothing, or a layer that is named exactly cannot be pruned.
    """
    candidates = find_layers(model)
    left_out = unwanted(model, candidates, config, wording)
    asked = asked_sparsities(model, candidates, config, wording)
    exact = _exact_names(model, config)
    chosen: list[Candidate] = []
    for candidate in candidates:
        name = candidate.name
        reason = left_out.get(name)
        if reason is None and name not in asked:
            reason = "no key of sparsity matches it"
        if reason is None and asked[name] == 0.0:
            reason = "the sparsity asked for is 0"
        if reason is not None:
            decisions[name] = PruneDecision(name, candidate.kind, "kept", asked=asked.get(name), reason=reason)
            continue
        problem = layer_problem(candidate.module, config.parsed, under_others=under_others)
        if problem is None:
            chosen.append(candidate)
        else:
            _refuse(decisions, candidate, problem, asked[name], exact, wording)
    layers, problems = tie(model, chosen)
    for layer in layers:
        different = [other for other in layer.tied if asked[other.name] != asked[layer.name]]
        if different:
            for candidate in (layer.candidate, *layer.tied):
                problems[candidate.name] = (
                    f"its weight is shared by {layer.name} and {different[0].name}, for which sparsities "
                    f"{asked[layer.name]} and {asked[different[0].name]} are asked"
                )
    for candidate in chosen:
        if candidate.name in problems:
            _refuse(decisions, candidate, problems[candidate.name], asked[candidate.name], exact, wording)
    return [layer for layer in layers if layer.name not in problems], asked


def asked_sparsities(
    model: nn.Module, candidates: list[Candidate], config: Choice, wording: Wording = WORDING
) -> dict[str, float]:
    """Name → sparsity; layers that no key of a mapping matches are missing.

    Raises:
        ValueError: a key matches no layer.
    """
    if not isinstance(config.sparsity, Mapping):
        return {candidate.name: config.sparsity for candidate in candidates}
    result: dict[str, float] = {}
    own: dict[str, float] = {}
    for target, value in config.sparsity.items():
        for name in matched(model, candidates, target, "sparsity", wording):
            result[name] = value
        own |= {c.name: value for c in candidates if isinstance(target, str) and target in c.names}
    return result | own


def _exact_names(model: nn.Module, config: Choice) -> dict[str, str]:
    """Name → argument, of the layers that an argument calls by their own name."""
    keys = config.sparsity if isinstance(config.sparsity, Mapping) else ()
    result: dict[str, str] = {}
    for candidate in find_layers(model):
        for argument, entries in (("sparsity", keys), ("targets", config.targets or ())):
            if any(isinstance(entry, str) and entry in candidate.names for entry in entries):
                result[candidate.name] = argument
    return result


def _refuse(
    decisions: dict[str, PruneDecision],
    candidate: Candidate,
    problem: str,
    asked: float,
    exact: Mapping[str, str],
    wording: Wording = WORDING,
) -> None:
    if candidate.name in exact:
        raise ValueError(
            f"{wording.function}: layer {candidate.name!r} ({candidate.kind}) is named in {exact[candidate.name]} but "
            f"cannot be pruned: {problem}"
        )
    decisions[candidate.name] = PruneDecision(candidate.name, candidate.kind, "skipped", asked=asked, reason=problem)


def _globally(
    found: list[tuple[PrunableLayer, Evidence]], config: PruneConfig
) -> list[tuple[PrunableLayer, float, Solved]]:
    """One threshold for all layers, on block scores over their layer's mean; every layer keeps its best block."""
    pattern = config.parsed
    assert isinstance(config.sparsity, float), "PruneConfig refuses a mapping"
    parts: list[Tensor] = []
    for layer, known in found:
        assert known.scores is not None, "SparseGPT is refused for scope global"
        blocks = block_scores(permuted(known.scores, *layer.orders), pattern)
        blocks = blocks / blocks.mean().clamp_min(1e-300)
        blocks.view(-1)[blocks.argmax()] = torch.inf
        parts.append(blocks.cpu())
    everything = torch.cat([part.flatten() for part in parts])
    count = min(pruned_count(config.sparsity, everything.numel(), pattern), everything.numel() - len(parts))
    dead = lowest(everything, count).split([part.numel() for part in parts])
    result = []
    for (layer, known), part, pruned in zip(found, parts, dead, strict=True):
        assert known.scores is not None
        mask = mask_from_blocks(~pruned.view(part.shape), pattern, known.scores.shape).to(known.scores.device)
        mask = restored(mask, *layer.orders)
        result.append((layer, config.sparsity, Solved(mask, retained_share(known.scores, mask))))
    return result
