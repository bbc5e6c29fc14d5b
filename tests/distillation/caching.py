"""What the tests of the teacher cache share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.distillation import Distiller, TeacherCache
from tests.distillation.models import ConvNet, images

LOSSES = ("logits", "feature")


class Counting(ConvNet):
    """Counts the samples it has seen, outside of its state."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__(width, seed)
        self.counter = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.counter[0] += len(x)
        return super().forward(x)


def distiller(cache: TeacherCache | None, teacher: nn.Module, losses: Any = LOSSES) -> tuple[Distiller, ConvNet]:
    student = ConvNet(4, 1).eval()
    bound = Distiller(teacher, losses, cache=cache).bind(student, images())
    if isinstance(teacher, Counting):
        teacher.counter[0] = 0
    return bound, student


def run(bound: tuple[Distiller, nn.Module], batch: Any) -> dict[str, Tensor]:
    with bound[0].watching():
        output = bound[1](batch)
    return bound[0].loss(bound[1], batch, output)


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.safetensors"))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
