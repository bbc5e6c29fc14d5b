"""Where equalization and smoothing apply, learned from the recorded flow, and their application."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from fastcompress.models.flow import Flow
from fastcompress.models.targets import tied_groups
from fastcompress.quantization.channels import in_channels, out_channels
from fastcompress.quantization.equalize import equalize, is_positively_homogeneous
from fastcompress.quantization.job import Job
from fastcompress.quantization.smooth import smooth

__all__ = ["apply_equalization", "apply_smoothing", "equalizable_pairs", "smoothable_groups"]


def equalizable_pairs(jobs: Mapping[str, Job], modules: Mapping[str, nn.Module], flow: Flow) -> list[tuple[str, str]]:
    """(first, second) names of layers with at most a positively homogeneous activation between them, at every call."""
    pairs: list[tuple[str, str]] = []
    for name, job in jobs.items():
        end = job.fusion.norm or name
        following = flow.sole_next(end)
        if following is not None and following not in jobs:
            if not is_positively_homogeneous(modules[following]) or flow.sole_source(following) != end:
                continue
            end, following = following, flow.sole_next(following)
        if following is None or following not in jobs or following == name or flow.sole_source(following) != end:
            continue
        second = jobs[following]
        if type(job.plain) is type(second.plain) and out_channels(job.plain) == in_channels(second.plain):
            pairs.append((name, following))
    return pairs


def apply_equalization(jobs: Mapping[str, Job], modules: Mapping[str, nn.Module], flow: Flow) -> int:
    """Equalize the float layers of all pairs; returns how many there were."""
    pairs = equalizable_pairs(jobs, modules, flow)
    layers = [(_layer(jobs[first]), _layer(jobs[second])) for first, second in pairs]
    for (first, second), scale in zip(pairs, equalize(layers), strict=True):
        jobs[first].notes.append(f"equalized with {second}")
        _divide_input(jobs[second], scale)
    return len(pairs)


def smoothable_groups(jobs: Mapping[str, Job], modules: Mapping[str, nn.Module], flow: Flow) -> dict[str, list[str]]:
    """Norm → the linears that alone read its output and read nothing else."""
    tied = {module for group in _tied(modules) for module in group}
    groups: dict[str, list[str]] = {}
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 1 or isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        readers = flow.consumers.get(name, set())
        if not readers or module in tied:
            continue
        linears = [r for r in readers if r is not None and r in jobs and isinstance(jobs[r].plain, nn.Linear)]
        if len(linears) == len(readers) and all(flow.sole_source(r) == name for r in linears):
            groups[name] = sorted(linears, key=list(jobs).index)
    return groups


def _tied(modules: Mapping[str, nn.Module]) -> list[list[nn.Module]]:
    """Modules among ``modules`` that share a parameter with another one."""
    holder = nn.ModuleList(modules.values())
    return [[module for _, module in group] for group in tied_groups(holder)]


def apply_smoothing(
    jobs: Mapping[str, Job], modules: Mapping[str, nn.Module], flow: Flow, alpha: float
) -> dict[nn.Module, nn.Module]:
    """Smooth the float layers of all groups; returns the norms that must be replaced, each with its scaled copy."""
    replacements: dict[nn.Module, nn.Module] = {}
    for name, readers in smoothable_groups(jobs, modules, flow).items():
        watched = jobs[readers[0]].absmax
        peak = None if watched is None else watched.value
        if peak is None:
            continue
        norm = copy.deepcopy(modules[name])
        try:
            scale = smooth(norm, [_layer(jobs[reader]) for reader in readers], peak, alpha)
        except (TypeError, ValueError) as error:
            for reader in readers:
                jobs[reader].notes.append(f"not smoothed: {error}")
            continue
        replacements[modules[name]] = norm
        for reader in readers:
            jobs[reader].notes.append(f"smoothed through {name}")
            _divide_input(jobs[reader], scale)
    return replacements


def _layer(job: Job) -> nn.Linear | nn.Conv2d:
    assert job.layer is not None, "folded before"
    return job.layer


def _divide_input(job: Job, scale: Tensor) -> None:
    job.input_divisor = scale if job.input_divisor is None else job.input_divisor * scale
