"""Checks of `compress`'s functions, and digests of models."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = ["check_functions", "fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """A digest of the names, shapes and values that training starts from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_functions(**functions: object) -> None:
    """Raise unless these can be called, or are None."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"compress: {name} must be a function, got {function!r:.80}")
