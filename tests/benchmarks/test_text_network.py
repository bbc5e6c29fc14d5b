"""The byte transformer: shapes, padding, the student's size, and that the library finds its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastcompress as fc
from benchmarks.training.text.data import LENGTH
from benchmarks.training.text.network import ByteTransformer, TextConfig, student_of
from benchmarks.training.text.rows import DENSE_LAYERS
from fastcompress.pruning import masked


def _parameters(config: TextConfig) -> int:
    return sum(parameter.numel() for parameter in ByteTransformer(config).parameters())


def test_scores_for_each_text() -> None:
    texts = torch.randint(1, 256, (3, LENGTH))
    assert ByteTransformer(TextConfig(classes=7, width=32, layers=1))(texts).shape == (3, 7)


def test_what_is_behind_the_end_does_not_matter() -> None:
    torch.manual_seed(0)
    model = ByteTransformer(TextConfig(classes=5, width=32)).eval()
    texts = torch.zeros(2, LENGTH, dtype=torch.int64)
    texts[:, :12] = torch.randint(1, 256, (12,))
    before = model(texts)
    torch.testing.assert_close(before[0], before[1])
    with torch.no_grad():
        model.positions[3:] += torch.randn(13, 32)  # of empty tokens
    torch.testing.assert_close(model(texts), before)
    with torch.no_grad():
        model.positions[2] += torch.randn(32)
    assert not torch.allclose(model(texts), before)


def test_a_student_has_a_quarter_of_the_parameters() -> None:
    dense = TextConfig(classes=60)
    assert 0.23 < _parameters(student_of(dense)) / _parameters(dense) < 0.27
    with pytest.raises(ValueError, match="heads 1 cannot be halved"):
        student_of(TextConfig(classes=2, heads=1))


@pytest.mark.parametrize("pattern", ["4x4", "16x4"])
def test_every_layer_between_the_first_and_the_last_can_be_pruned(pattern: str) -> None:
    model = ByteTransformer(TextConfig(classes=60))
    pruned = fc.prune(model, 0.9, pattern, ignore=DENSE_LAYERS)
    layers = ("qkv", "out", "up", "down")
    assert set(masked(pruned)) == {f"blocks.{block}.{layer}" for block in range(2) for layer in layers}
    assert sum(layer.weight.numel() for layer in masked(pruned).values()) > 0.9 * _parameters(model.config)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"classes": 0}, ValueError, "classes must be at least 1"),
        ({"classes": 2.5}, TypeError, "classes must be an integer"),
        ({"classes": 2, "width": 30}, ValueError, "divisible by heads=4"),
        ({"classes": 2, "dropout": 1.0}, ValueError, "dropout must lie in"),
    ],
)
def test_bad_sizes_are_named(values: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        TextConfig(**values)
