"""Random numbers that depend on the seed, the process and the step alone, so that a resumed run draws the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .processes import rank

__all__ = ["own_random_numbers", "seed_step", "start_epoch"]

_MASK = (1 << 64) - 1


def _mixed(*parts: int) -> int:
    """A well-mixed 63-bit number from some integers (the finisher of SplitMix64, Steele et al. 2014)."""
    value = 0
    for part in parts:
        value = (value + part + 0x9E3779B97F4A7C15) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value >> 1


def _seed_all(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)  # noqa: NPY002  # transforms draw from the global state


def seed_step(seed: int, step: int) -> None:
    """Seed torch, numpy and random for one optimizer step of this process."""
    _seed_all(_mixed(seed, rank(), 1 + step))


def start_epoch(seed: int, epoch: int, loader: Any) -> None:
    """Before a loader is iterated: the same order in every process, another one in every epoch."""
    value = _mixed(seed, 0, -1 - epoch & _MASK)
    _seed_all(value)
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    holders: tuple[Any, ...] = (loader, getattr(loader, "sampler", None), batch_sampler, inner)
    for holder in holders:
        if hasattr(holder, "set_epoch"):
            holder.set_epoch(epoch)
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(value)


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
            yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
