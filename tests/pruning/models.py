"""Small models and data for the pruning tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.pruning import mask_of, masked


def mlp() -> nn.Sequential:
    """Linears of 32×64, 64×32 and 32×10 (in × out)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def vectors(count: int = 3) -> list[Tensor]:
    """Batches of correlated inputs for `mlp`."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(32, 32, generator=generator) @ torch.diag(torch.logspace(0, -1.5, 32))
    return [torch.randn(64, 32, generator=generator) @ mix for _ in range(count)]


def conv_net() -> nn.Sequential:
    """Convolutions: first (3 inputs), 3×3, depthwise, grouped; then a linear."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, groups=64, padding=1),
        nn.Conv2d(64, 64, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 16),
    )


def images(count: int = 2) -> list[Tensor]:
    """Batches for `conv_net`."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 12, 12, generator=generator) for _ in range(count)]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything `prune` might change: structure, values, flags, hooks, gradients."""
    return {
        "modules": {name: (id(m), type(m), m.training, len(m._forward_pre_hooks)) for name, m in model.named_modules()},
        "state": copy.deepcopy(model.state_dict()),
        "parameters": {n: (id(p), p.requires_grad, p.grad) for n, p in model.named_parameters()},
        "attributes": sorted(model.__dict__),
    }


def same(model: nn.Module, before: dict[str, Any]) -> bool:
    """Whether ``model`` is as `snapshot` found it."""
    after = snapshot(model)
    state, old = after.pop("state"), before["state"]
    rest = {key: value for key, value in before.items() if key != "state"}
    return after == rest and state.keys() == old.keys() and all(torch.equal(state[key], old[key]) for key in state)


def pruned_blocks(module: nn.Module, rows: int, cols: int) -> int:
    """How many blocks are masked; every block must be masked as a whole."""
    mask = mask_of(module)
    assert mask is not None
    matrix = mask if mask.dim() == 2 else mask.permute(0, 2, 3, 1).reshape(mask.shape[0], -1)
    kept = matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // cols, cols).sum(dim=(1, 3))
    assert set(kept.unique().tolist()) <= {0, rows * cols}
    return int((kept == 0).sum())


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - 1.0).square().mean().backward()
    optimizer.step()


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: mask_of(module).clone() for name, module in masked(model).items()}  # type: ignore[union-attr]
