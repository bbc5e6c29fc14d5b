"""The full recipe on handwritten digits: real data, real training, int8 block-sparse layers that keep the accuracy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from examples.digits import accuracy_on, compress_digits, digits, digits_network, train_dense
from fastcompress.nn import SparseQuantConv2d
from fastcompress.pruning import masked, sparsity_of


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, fc.recipes.CompressionResult]:
    data = digits()
    dense = train_dense(data, epochs=6)
    return dense, compress_digits(dense, data, epochs=10, progress=False)


def test_accuracy_is_kept(trained: tuple[nn.Module, fc.recipes.CompressionResult]) -> None:
    _, result = trained
    assert result.dense_score is not None
    assert result.score is not None
    assert result.dense_score >= 0.97
    assert result.score >= result.dense_score - 0.02


def test_the_simulated_network_is_the_finished_one(trained: tuple[nn.Module, fc.recipes.CompressionResult]) -> None:
    _, result = trained
    images = digits().test_images
    with torch.no_grad():
        simulated, finished = result.trained(images), result.model(images)
    assert (simulated.argmax(1) == finished.argmax(1)).float().mean() >= 0.995


def test_the_pruned_layers_can_run_sparse(
    trained: tuple[nn.Module, fc.recipes.CompressionResult],
) -> None:
    _, result = trained
    pruned = masked(result.trained)
    assert len(pruned) == 2  # the first convolution has one channel, the head ten outputs
    assert all(sparsity_of(layer) >= 0.89 for layer in pruned.values())
    forced = fc.convert(result.trained, example_inputs=digits().test_images[:8], only_if_faster=False)
    assert sum(isinstance(module, SparseQuantConv2d) for module in forced.modules()) == 2


def test_it_is_saved_and_loaded(trained: tuple[nn.Module, fc.recipes.CompressionResult], tmp_path: Any) -> None:
    _, result = trained
    fc.save(result.model, tmp_path)
    loaded = fc.load(tmp_path, model=digits_network())
    images = digits().test_images[:64]
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))


def test_the_score_is_that_of_the_finished_model(trained: tuple[nn.Module, fc.recipes.CompressionResult]) -> None:
    _, result = trained
    with torch.no_grad():
        assert accuracy_on(digits())(result.model) == pytest.approx(result.score)
