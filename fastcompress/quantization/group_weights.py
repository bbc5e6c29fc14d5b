"""Weights in groups for the layers of a plan, by the algorithm that was asked for."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from torch import nn

from fastcompress.config import QuantConfig
from fastcompress.quantization.group_layer import scale_dtype
from fastcompress.quantization.groupwise import GroupGrid, GroupwiseOptions, quantize_weights
from fastcompress.quantization.job import Job
from fastcompress.quantization.plan import Plan

__all__ = ["checked_options", "find_weights"]

#: What `QuantConfig.algorithm_options` may hold besides the fields of `GroupwiseOptions`.
_CHECKPOINTS = "checkpoint_dir"


def checked_options(config: QuantConfig) -> GroupwiseOptions:
    """The algorithm's settings.

    Raises:
        TypeError: ``checkpoint_dir`` is no path.
        ValueError: an unknown name, or a value out of range.
    """
    allowed = [field.name for field in dataclasses.fields(GroupwiseOptions)]
    given = {name: value for name, value in config.algorithm_options.items() if name != _CHECKPOINTS}
    for name in given:
        if name not in allowed:
            raise ValueError(
                f"QuantConfig: algorithm_options has no {name!r}; there are {', '.join([*allowed, _CHECKPOINTS])}"
            )
    checkpoints = config.algorithm_options.get(_CHECKPOINTS)
    if checkpoints is not None and not isinstance(checkpoints, str | os.PathLike):
        raise TypeError(
            f"QuantConfig: {_CHECKPOINTS} in algorithm_options must be None or a directory's path, got {checkpoints!r}"
        )
    return GroupwiseOptions(**given)


def find_weights(plan: Plan) -> None:
    """Set `Job.weights` of all layers, where plain rounding of each is not what was asked for.

    The model's linears get the rounded weights, and with AWQ what is in front of them takes the scales: whoever calls
    this undoes it when something fails afterwards.
    """
    config = plan.config
    if not config.kind.grouped or (config.algorithm == "rtn" and not config.algorithm_options):
        return
    layers = {name: layer for name, job in plan.jobs.items() if (layer := _own_linear(job)) is not None}
    grid = GroupGrid(config.kind.weight_bits, config.inputs_per_group, config.symmetric_weights, scale_dtype(config))
    checkpoints: Any = config.algorithm_options.get(_CHECKPOINTS)
    found = quantize_weights(
        plan.model,
        layers,
        grid,
        config.algorithm,
        plan.source.batches,
        plan.source.forward_fn,
        checked_options(config),
        plan.source.progress,
        checkpoints,
    )
    for name, job in plan.jobs.items():
        if name not in found:
            job.notes.append(f"rounded to the nearest: {config.algorithm} takes plain linears, no masks or BatchNorm")
            continue
        job.weights = found[name].canonical
        job.notes.append(_note(found[name].report))


def _own_linear(job: Job) -> nn.Linear | None:
    """The model's own module, if the layer is exactly that."""
    module = job.candidate.module
    return module if type(module) is nn.Linear and job.plain is module and job.fusion.norm is None else None


def _note(report: Any) -> str:
    """What an algorithm says about a layer, in a few words."""
    parts = [str(report["algorithm"])]
    if report.get("relative_error") is not None:
        parts.append(f"relative output error {report['relative_error']:.3g}")
    if report.get("retries"):
        parts.append(f"dampening raised {report['retries']} times to {report['dampening']:.3g}")
    if report.get("folded_into"):
        parts.append(f"scales folded into {report['folded_into']}")
    if report.get("note"):
        parts.append(str(report["note"]))
    return ", ".join(parts)
