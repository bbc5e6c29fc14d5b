"""Dense or block-sparse int8: which of the two forms a pruned linear takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.config import QuantConfig
from fastcompress.nn import SparseQuantLinear
from fastcompress.ops.packing import KERNEL_BLOCKS
from fastcompress.quantization.job import Job
from fastcompress.quantization.speed import Timer

__all__ = ["block_density", "choose_forms"]

#: Fuller weights are not even tried.
_HOPELESS = 0.9

#: Without a measurement: the kernels' break-even lies near 0.7 for many tokens and above for few.
_UNMEASURED = 0.6


def block_density(weight: Tensor) -> float:
    """Fraction of the 16x4 blocks of ``weight`` ``[out, in]`` that are not all zero."""
    height, width = KERNEL_BLOCKS[torch.int8][0]
    rows, columns = weight.shape[0] // height, weight.shape[1] // width
    return float((weight.reshape(rows, height, columns, width) != 0).any(dim=3).any(dim=1).float().mean())


def choose_forms(
    jobs: Iterable[Job], config: QuantConfig, modules: Mapping[str, nn.Module], timer: Timer | None
) -> None:
    """Set `Job.sparse`: block-sparse where enough blocks are zero and, given a timer, that form is measured faster."""
    measured: dict[tuple[Any, ...], bool] = {}
    for job in jobs:
        plain = job.plain
        if not isinstance(plain, nn.Linear) or SparseQuantLinear.problem(plain) is not None:
            continue
        density = block_density(plain.weight.detach())
        if density > _HOPELESS:
            continue
        key = (tuple(plain.weight.shape), round(density, 2), plain.bias is not None, job.fusion.activation, job.inputs)
        if timer is None or not job.inputs:
            job.sparse = density <= _UNMEASURED
        else:
            if key not in measured:
                measured[key] = _is_faster(job, config, modules, timer)
            job.sparse = measured[key]
        form = "block-sparse" if job.sparse else "dense int8, which is faster"
        job.notes.append(f"{density:.0%} of its 16x4 blocks are not zero: {form}")


def _is_faster(job: Job, config: QuantConfig, modules: Mapping[str, nn.Module], timer: Timer) -> bool:
    forms = {}
    for sparse in (False, True):
        job.sparse = sparse
        forms[sparse] = job.trial(config, modules)
    seconds = {False: 0.0, True: 0.0}
    with torch.no_grad():
        for kind, weight in job.inputs:
            x = kind.make()
            seen = timer({"int8": partial(forms[False], x), "sparse int8": partial(forms[True], x)})
            seconds[False] += seen["int8"] * weight
            seconds[True] += seen["sparse int8"] * weight
    return seconds[True] < seconds[False]
