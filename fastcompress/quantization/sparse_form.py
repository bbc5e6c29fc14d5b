"""Dense or block-sparse int8, and with which blocks: the form that a pruned linear or convolution takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fastcompress.config import QuantConfig
from fastcompress.models.speed import Timer, mean_seconds
from fastcompress.nn.blocks import Form, promising
from fastcompress.nn.orders import NATURAL, mask_orders
from fastcompress.quantization.job import Job

__all__ = ["choose_forms"]

_Key = tuple[Any, ...]


def choose_forms(
    jobs: Iterable[Job], config: QuantConfig, modules: Mapping[str, nn.Module], timer: Timer | None
) -> None:
    """Set `Job.block` and `Job.orders`: block-sparse where enough blocks are zero and that is (measured) faster.

    At most two block shapes are measured against dense int8; layers that take the same time are measured once.
    """
    measured: dict[_Key, tuple[int, int] | None] = {}
    for job in jobs:
        plain = job.plain
        measuring = timer is not None and bool(job.inputs)
        orders = mask_orders(job.candidate.module, plain.weight)
        tried = promising(plain.weight, torch.int8, getattr(plain, "groups", 1), orders, measuring=measuring)
        if not tried:
            continue
        if timer is None or not job.inputs:
            _take(job, tried[0])
        else:
            key = _key(job, tried)
            if key not in measured:
                measured[key] = _fastest(job, tried, config, modules, timer)
            _take(job, next((form for form in tried if form.block == measured[key]), None))
        job.notes.append(_note(tried, job.block))


def _take(job: Job, form: Form | None) -> None:
    job.block, job.orders = (None, NATURAL) if form is None else (form.block, form.orders)


def _key(job: Job, tried: list[Form]) -> _Key:
    plain = job.plain
    return (
        tuple(plain.weight.shape),
        *((form.block, round(form.density, 2), form.reordered) for form in tried),
        plain.bias is not None,
        *job.adapted.geometry,
        job.fusion.activation,
        job.inputs,
    )


def _note(tried: list[Form], block: tuple[int, int] | None) -> str:
    for form in tried:
        if form.block == block:
            return f"{form}: block-sparse"
    return f"{tried[0]}: dense int8, which is faster"


def _fastest(
    job: Job, tried: list[Form], config: QuantConfig, modules: Mapping[str, nn.Module], timer: Timer
) -> tuple[int, int] | None:
    """The block of the form that gains most over dense int8; None where none gains."""
    _take(job, None)
    dense = job.trial(config, modules)
    best, best_ratio = None, 1.0
    for form in tried:
        _take(job, form)
        sparse = job.trial(config, modules)
        seconds = mean_seconds({"int8": dense, "sparse int8": sparse}, job.inputs, timer)
        ratio = seconds["sparse int8"] / seconds["int8"] if seconds["int8"] > 0 else 1.0
        if ratio < best_ratio:
            best, best_ratio = form.block, ratio
    return best
