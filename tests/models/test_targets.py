"""``targets`` and ``ignore``: names, patterns, classes, and entries that match nothing."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fastcompress.config import QuantConfig
from fastcompress.models.targets import unwanted
from fastcompress.quantization.candidates import find_candidates


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 1, 1), nn.Linear(1, 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(1)
        self.head = nn.Linear(1, 1)
        self.alias = self.head


def left(**kwargs: Any) -> list[str]:
    model = Net()
    candidates = find_candidates(model)
    out = unwanted(model, candidates, QuantConfig(**kwargs))
    return [c.name for c in candidates if c.name not in out]


ALL = ["blocks.0.conv", "blocks.0.fc", "blocks.1.conv", "blocks.1.fc", "head"]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, ALL),
        ({"targets": ("head",)}, ["head"]),
        ({"targets": "alias"}, ["head"]),
        ({"targets": ("blocks.0",)}, ALL[:2]),
        ({"targets": ("re:.*fc",)}, ["blocks.0.fc", "blocks.1.fc"]),
        ({"targets": (nn.Linear,)}, ["blocks.0.fc", "blocks.1.fc", "head"]),
        ({"targets": nn.Conv2d, "ignore": "blocks.0"}, ["blocks.1.conv"]),
        ({"ignore": (Block,)}, ["head"]),
        ({"ignore": ("re:blocks",)}, ["head"]),
        ({"targets": ("head",), "ignore": ("head",)}, []),
    ],
)
def test_selection(kwargs: dict[str, Any], expected: list[str]) -> None:
    assert left(**kwargs) == expected


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"targets": ("haed",)}, "targets entry 'haed' matches no layer that can be quantized; close names: head"),
        ({"ignore": ("norm",)}, "ignore entry 'norm' .* a module of that name exists, but holds no linear or conv"),
        ({"ignore": ("re:fc",)}, "ignore entry 're:fc' .* the pattern must match a whole module name, such as 'blocks"),
        ({"targets": (nn.GRU,)}, "targets entry GRU .* classes here: Conv2d, Linear"),
    ],
)
def test_entry_that_matches_nothing(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        left(**kwargs)


def test_model_without_layers() -> None:
    with pytest.raises(ValueError, match="targets entry 'a' matches no layer that can be quantized; ReLU has none"):
        unwanted(nn.ReLU(), [], QuantConfig(targets="a"))
