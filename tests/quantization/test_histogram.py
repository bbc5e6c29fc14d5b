"""The histogram: streaming equals one-shot, counts equal numpy's, memory bounded, extreme data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcompress.quantization import histogram as module
from fastcompress.quantization.histogram import Cells, Histogram


def filled(*batches: Tensor, bins: int = 64) -> Histogram:
    histogram = Histogram(bins)
    for batch in batches:
        histogram.update(batch, float(batch.min()), float(batch.max()))
    return histogram


def same(a: Cells, b: Cells) -> bool:
    return torch.equal(a.left, b.left) and torch.equal(a.right, b.right) and torch.equal(a.count, b.count)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=1, max_size=6), min_size=1, max_size=6))
def test_streaming_equals_one_shot_in_any_order(batches: list[list[float]]) -> None:
    tensors = [torch.tensor(batch, dtype=torch.float32) for batch in batches]
    streamed, backwards, whole = filled(*tensors), filled(*reversed(tensors)), filled(torch.cat(tensors))
    assert same(streamed.cells(), whole.cells())
    assert same(backwards.cells(), whole.cells())
    assert streamed.width == whole.width


@settings(max_examples=150, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_every_value_is_counted_once_where_it_lies(values: list[float]) -> None:
    data = torch.tensor(values, dtype=torch.float32)
    histogram = filled(data)
    cells = histogram.cells()
    assert histogram.total == len(values) == int(cells.count.sum())
    assert bool((cells.left <= cells.right).all())
    assert bool((cells.right[:-1] <= cells.left[1:]).all())
    assert float(cells.left[0]) == float(data.min())
    assert float(cells.right[-1]) == float(data.max())
    for value in data.double():
        assert bool(((cells.left <= value) & (value <= cells.right)).any())


@pytest.mark.parametrize("offset", [-30.0, 0.0, 7.0])
def test_counts_are_numpys(offset: float) -> None:
    data = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 3 + offset
    histogram = filled(data, bins=2048)
    cells = histogram.cells()
    index = np.floor(data.numpy().astype(np.float64) / histogram.width)
    expected = np.unique(index, return_counts=True)[1]
    np.testing.assert_array_equal(cells.count.numpy(), expected)


@pytest.mark.parametrize("reach", [1e-20, 0.3, 1.0, 5.0, 3e38])
def test_resolution(reach: float) -> None:
    histogram = filled(torch.tensor([-reach, reach / 2]), bins=2048)
    span = 1.5 * reach
    # Two bins may be needed for the ragged ends.
    assert span / 2048 <= histogram.width <= 2 * span / 2046


def test_growth_merges_and_loses_nothing() -> None:
    histogram = Histogram(16)
    generator = torch.Generator().manual_seed(1)
    total = 0
    for power in range(-10, 30, 4):
        batch = torch.randn(100, generator=generator) * 2.0**power
        histogram.update(batch, float(batch.min()), float(batch.max()))
        total += 100
        assert histogram.total == total
        assert histogram._counts.numel() == 16


def test_zeros_are_a_cell_of_their_own() -> None:
    cells = filled(torch.tensor([-1.0, 0.0, -0.0, 0.0, 1.0])).cells()
    zero = (cells.left == 0) & (cells.right == 0)
    assert cells.count[zero].tolist() == [3.0]
    assert int(cells.without_zeros().count.sum()) == 2
    assert filled(torch.zeros(7)).cells().count.tolist() == [7.0]


def test_pieces_layouts_and_short_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = filled(data.float().flatten()).cells()
    monkeypatch.setattr(module, "_CHUNK_ELEMS", 7)
    assert same(filled(data).cells(), whole)
    assert same(filled(data.contiguous(memory_format=torch.channels_last)).cells(), whole)
    assert same(filled(data.transpose(1, 3)).cells(), whole)


def test_too_few_bins() -> None:
    with pytest.raises(ValueError, match="Histogram: `bins` must be at least 2, got 1"):
        Histogram(1)
