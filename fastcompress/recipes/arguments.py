"""Checks of `compress`'s arguments before anything is trained."""

from __future__ import annotations

import hashlib
import math
from typing import Any, cast

import torch
from torch import nn

__all__ = ["check_numbers", "check_options", "fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """A digest of the names, shapes and values that training starts from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_numbers(epochs: object, every: object, max_drop: object, eval_fn: object) -> int:
    """The number of epochs, if all of these are what they must be."""
    for name, value in (("epochs", epochs), ("checkpoint_every", every)):
        if value is None and name == "checkpoint_every":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"compress: {name} must be a positive whole number, got {value!r:.80}")
    if max_drop is None:
        return cast(int, epochs)
    if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not math.isfinite(max_drop):
        raise ValueError(f"compress: max_drop must be a finite number, got {max_drop!r:.80}")
    if max_drop < 0:
        raise ValueError(f"compress: max_drop must be zero or more, got {max_drop!r}")
    if eval_fn is None:
        raise ValueError("compress: max_drop is a drop of the score that eval_fn gives; pass eval_fn")
    return cast(int, epochs)


def check_options(*, seed: object, autocast: object, clip_norm: object, **functions: Any) -> None:
    """Raise unless these are what they must be; ``functions`` may be None."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"compress: seed must be a whole number, zero or more, got {seed!r:.80}")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"compress: autocast must be torch.bfloat16, torch.float16 or None, got {autocast!r:.80}")
    number = isinstance(clip_norm, (int, float)) and not isinstance(clip_norm, bool)
    if clip_norm is not None and not (number and 0.0 < cast(float, clip_norm) < math.inf):
        raise ValueError(f"compress: clip_norm must be a finite number above zero, got {clip_norm!r:.80}")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"compress: {name} must be a function, got {function!r:.80}")
