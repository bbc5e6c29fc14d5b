"""What the tests of four-bit quantization-aware training share: numpy oracles, small networks, training."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.quantization import GroupWeightFakeQuantize, QATConfig, set_fake_quant
from fastcompress.quantization.fake_layer import weight_quantizer

__all__ = ["INPUTS", "SCHEMES", "codes_of", "group_net", "groups_of", "prepared", "rounded_rows", "steps", "tokens"]

Scheme = Literal["W4A8", "W4A16"]
SCHEMES: list[Scheme] = ["W4A8", "W4A16"]

#: Inputs of `group_net`: two groups of 16 and a shorter one.
INPUTS = 40

F32 = NDArray[np.float32]


def stored(scale: F32, dtype: str) -> F32:
    """Scales as they are kept, by the definition of each format."""
    if dtype == "float32":
        return np.maximum(scale, np.float32(2.0**-100))
    if dtype == "float16":
        return np.maximum(scale, np.float32(2.0**-14)).astype(np.float16).astype(np.float32)
    bits = np.maximum(scale, np.float32(2.0**-100)).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # half to even
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def codes_of(
    weight: Tensor, size: int, dtype: str = "bfloat16", scale: F32 | None = None
) -> tuple[NDArray[np.int64], F32, F32]:
    """Integers -8 to 7, scales ``[out, groups]`` and rounded weights; by default scales are the largest over 7.5."""
    w = weight.detach().float().numpy()
    pieces = [w[:, i : i + size] for i in range(0, w.shape[1], size)]
    if scale is None:
        peaks = np.stack([np.abs(piece).max(axis=1) for piece in pieces], axis=1)
        scale = stored(peaks / np.float32(7.5), dtype)
    wide = np.concatenate([np.tile(scale[:, g : g + 1], (1, p.shape[1])) for g, p in enumerate(pieces)], axis=1)
    q = np.clip(np.rint(w / wide), -8, 7)
    return q.astype(np.int64), scale, q.astype(np.float32) * wide


def rounded_rows(x: Tensor) -> F32:
    """Activations of W4A8, by architecture §1."""
    a = x.detach().float().numpy()
    peak = np.abs(a).max(axis=-1, keepdims=True)
    scale = np.maximum(peak * (np.float32(1) / np.float32(127)), np.float32(2.0**-100))
    return np.asarray(np.clip(np.rint(a * (np.float32(1) / scale)), -127, 127) * scale, np.float32)


def group_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, 8))


def tokens(seed: int = 1, count: int = 24) -> Tensor:
    """Inputs of `group_net`."""
    return torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(seed))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 4, start: int = 0) -> None:
    """Training steps that depend on their number only."""
    model.train()
    for step in range(start, start + count):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens(10 + step)), torch.arange(24) % 8).backward()
        optimizer.step()


def prepared(scheme: str, method: str, state: str = "train", model: nn.Module | None = None, **options: Any) -> Any:
    """A model with groups of 16, some steps into its training in ``state``."""
    made = fc.prepare(model or group_net(), QATConfig(scheme, method, group_size=16, **options))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    steps(made, optimizer)
    if state != "train":
        set_fake_quant(made, state)
        steps(made, optimizer, start=4)
    return made


def groups_of(layer: nn.Module) -> GroupWeightFakeQuantize:
    found = weight_quantizer(layer)
    assert isinstance(found, GroupWeightFakeQuantize)
    return found
