"""Models and stopwatches for the tests of `convert`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Timer = Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]


def stopwatch(dense: float, sparse: float, seen: list[Any] | None = None) -> Timer:
    """Runs both functions, which must do the same work, and says what the test wants."""

    def timer(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        assert list(calls) == ["dense", "sparse"]
        a, b = calls["dense"](), calls["sparse"]()
        torch.testing.assert_close(a, b)
        if seen is not None:
            seen.append(a.shape)
        return {"dense": dense, "sparse": sparse}

    return timer


WINS, LOSES = stopwatch(3.0, 1.0), stopwatch(1.0, 2.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.Flatten(), nn.Linear(144, 32)
    ).eval()


def images() -> Tensor:
    return torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def linears() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).eval()


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)
