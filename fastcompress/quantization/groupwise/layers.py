"""The linears of one stage: statistics, folding, the algorithm, and the rounded weight put in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.ops.canonical_w4 import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical

from .awq import awq, awq_scale
from .checkpoint import LayerResult
from .folding import fold_into, producers
from .gptq import gptq
from .grid import GroupGrid, Quantized
from .hqq import hqq
from .options import GroupwiseOptions
from .rtn import rtn
from .stage import Stage, collect, parts, reader_groups
from .statistics import InputStatistics

__all__ = ["StageResult", "quantize_alone", "quantize_stage", "set_weight"]


@dataclass
class StageResult:
    """What a stage gave.

    Attributes:
        layers: by name.
        folded: parameters that took scales, by their name below the stage's root.
    """

    layers: dict[str, LayerResult] = field(default_factory=dict)
    folded: dict[str, Tensor] = field(default_factory=dict)


def set_weight(layer: nn.Linear, canonical: W4Canonical | W8Canonical) -> None:
    """Give a layer the rounded weight and the bias that goes with it, as parameters of its own."""
    kind = layer.weight.dtype
    layer.weight = nn.Parameter(canonical.dequantize().to(kind), requires_grad=False)
    if canonical.bias is not None:
        layer.bias = nn.Parameter(canonical.bias.to(kind), requires_grad=False)


def quantize_alone(
    name: str, layer: nn.Linear, grid: GroupGrid, algorithm: str, options: GroupwiseOptions
) -> LayerResult:
    """One layer without data; the weight is put in place."""
    weight = _weight(name, layer)
    if algorithm == "hqq":
        found = hqq(weight, grid, p=options.hqq_p)
    else:
        found = rtn(weight, grid, search=_data_free_search(options))
    return _placed(layer, found, {"algorithm": algorithm})


def _data_free_search(options: GroupwiseOptions) -> str:
    return "mse" if options.search in ("mse", "output") else "minmax"


def quantize_stage(
    stage: Stage, grid: GroupGrid, algorithm: str, options: GroupwiseOptions, tied: frozenset[int]
) -> StageResult:
    """All linears of a stage, those with the same input together; their rounded weights are put in place.

    Args:
        tied: ids of parameters that several modules share.

    Raises:
        ValueError: a weight or an input holds NaN or infinity.
    """
    result = StageResult()
    if not stage.layers:
        return result
    one_by_one = options.sequential and algorithm == "gptq"
    for part in parts(stage, reader_groups(stage), one_by_one):
        statistics = collect(stage, part)
        if algorithm == "awq":
            _awq(stage, part, statistics, grid, options, tied, result)
        else:
            for names in (names for group in part for names in _same_statistics(group, statistics)):
                pieces = _gptq(stage, names, statistics[names[0]], None, grid, options)
                for name, piece in zip(names, pieces, strict=True):
                    result.layers[name] = _placed(stage.layers[name], piece, {"algorithm": "gptq"})
    for name, layer in stage.layers.items():
        if name not in result.layers:
            found = quantize_alone(name, layer, grid, "rtn", options)
            note = f"{algorithm} had no input of it in calibration"
            result.layers[name] = LayerResult(found.canonical, {**found.report, "note": note})
    result.layers = {name: result.layers[name] for name in stage.layers}
    return result


def _placed(layer: nn.Linear, found: Quantized, report: Mapping[str, Any]) -> LayerResult:
    canonical = found.canonical(layer.bias)
    set_weight(layer, canonical)
    return LayerResult(canonical, {**report, **found.report})


def _gptq(
    stage: Stage,
    names: list[str],
    statistics: InputStatistics,
    scale: Tensor | None,
    grid: GroupGrid,
    options: GroupwiseOptions,
) -> list[Quantized]:
    """One solution for all rows that have the same Hessian; ``scale`` as `awq` takes it."""
    layers = [stage.layers[name] for name in names]
    matrices = [_weight(name, layer) for name, layer in zip(names, layers, strict=True)]
    if scale is not None:
        matrices, statistics = [matrix * scale for matrix in matrices], statistics.divided(scale)
    found = gptq(
        torch.cat(matrices),
        statistics,
        grid,
        search=options.search or "output",
        act_order=options.act_order,
        dampening=options.dampening,
        block_cols=options.block_cols,
        sweeps=options.sweeps,
    )
    pieces = found.split([layer.out_features for layer in layers])
    for matrix, piece in zip(matrices, pieces, strict=True):
        piece.report.update(found.report)
        if "relative_error" in found.report:
            piece.report["relative_error"] = statistics.relative_error(matrix, piece.dequantize())
    return pieces


def _same_statistics(group: list[str], statistics: Mapping[str, InputStatistics]) -> list[list[str]]:
    """The group, or its members one by one where they turned out to read different inputs."""
    alike = all(statistics[name] is statistics[group[0]] for name in group)
    return [group] if alike else [[name] for name in group]


def _weight(name: str, layer: nn.Linear) -> Tensor:
    weight = layer.weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f"quantize_weights: the weight of {name!r} holds NaN or infinity; repair the model, or leave the layer out"
        )
    return weight


def _awq(
    stage: Stage,
    part: list[list[str]],
    statistics: Mapping[str, InputStatistics],
    grid: GroupGrid,
    options: GroupwiseOptions,
    tied: frozenset[int],
    result: StageResult,
) -> None:
    groups = [names for group in part for names in _same_statistics(group, statistics)]
    found = producers(stage, groups, frozenset(result.layers), tied)
    scales: dict[str, Tensor] = {}
    reports: dict[str, dict[str, Any]] = {}
    # From the last on: a producer's own weight is scaled before its own scales are searched.
    for names in reversed(groups):
        report: dict[str, Any] = {"algorithm": "awq"}
        producer, seen = found.get(names[0]), statistics[names[0]]
        if producer is None:
            report["note"] = "nothing in front of it can take scales; only clipped"
        else:
            weights = [_weight(name, stage.layers[name]) for name in names]
            best = awq_scale(weights, seen, grid, steps=options.awq_steps, shared=producer.channel)
            made = fold_into(producer, best.scale) if best.alpha > 0.0 else {}
            report |= {"alpha": best.alpha, "folded_into": producer.name}
            if made is None:
                report["note"] = f"the weight of {producer.name} would overflow; only clipped"
            elif made:
                scales |= dict.fromkeys(names, best.scale)
                producer.module._parameters.update(made)
                result.folded |= {f"{producer.name}.{key}": value for key, value in made.items()}
        reports |= dict.fromkeys(names, report)
    for names in groups:
        seen, scale = statistics[names[0]], scales.get(names[0])
        if options.awq_rounding == "gptq":
            pieces = _gptq(stage, names, seen, scale, grid, options)
        else:
            weights = [_weight(name, stage.layers[name]) for name in names]
            pieces = [awq(weight, seen, grid, scale=scale, clip=options.awq_clip) for weight in weights]
        for name, piece in zip(names, pieces, strict=True):
            result.layers[name] = _placed(stage.layers[name], piece, reports[name])
