"""Losses against direct quantization and a plain-Python KL divergence; searches against brute-force grids."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from fastcompress.quantization import choose_qparams
from fastcompress.quantization.histogram import Cells, Histogram
from fastcompress.quantization.range_search import mean_squared_errors, relative_entropies, search_range
from tests.quantization.margins import MSE_OPTIMUM


def direct_mse(data: Tensor, low: float, high: float, symmetric: bool) -> float:
    scale, zero = choose_qparams(low, high, symmetric)
    x = data.double()
    q = (torch.round(x / scale) + zero).clamp(1 if symmetric else 0, 255)
    return float(((q - zero) * scale - x).square().mean())


def histogram_of(data: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.update(data, float(data.min()), float(data.max()))
    return histogram


RANGES = [(-3.0, 3.0), (0.0, 2.0), (-0.5, 4.0), (-1.0, 0.0), (-40.0, 90.0), (-0.01, 0.02)]


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_of_points_is_the_direct_one(symmetric: bool) -> None:
    data = torch.randn(400, generator=torch.Generator().manual_seed(0)).double().sort().values
    cells = Cells(data, data, torch.ones(400, dtype=torch.float64))
    lows, highs = (torch.tensor(ends) for ends in zip(*RANGES, strict=True))
    got = mean_squared_errors(cells, lows, highs, symmetric)
    want = [direct_mse(data, low, high, symmetric) for low, high in RANGES]
    assert got.tolist() == pytest.approx(want, rel=1e-9)  # float64 sums of 400 terms


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_of_a_wide_cell_is_the_integral(symmetric: bool) -> None:
    cells = Cells(*(torch.tensor([v], dtype=torch.float64) for v in (-2.0, 5.0, 10.0)))
    samples = 400_000
    middle = -2.0 + 7.0 * (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    lows, highs = (torch.tensor(ends) for ends in zip(*RANGES, strict=True))
    got = mean_squared_errors(cells, lows, highs, symmetric)
    for value, (low, high) in zip(got.tolist(), RANGES, strict=True):
        # The midpoint rule meets at most 511 kinks, each in one of 400,000 panels.
        assert value == pytest.approx(direct_mse(middle, low, high, symmetric), rel=1e-4)


def plain_kl(histogram: Histogram, low: float, high: float) -> float:
    """The definition, bin by bin, in plain Python."""
    scale, zero = choose_qparams(low, high)
    cells = histogram.cells().without_zeros()
    bins = list(zip(cells.left.tolist(), cells.right.tolist(), cells.count.tolist(), strict=True))
    inside: list[tuple[int, float]] = []
    below = above = 0.0
    for left, right, count in bins:
        level = round((left + right) / 2 / scale) + zero
        if level < 0:
            below += count
        elif level > 255:
            above += count
        else:
            inside.append((level, count))
    if not inside:
        return math.inf
    by_level: dict[int, list[float]] = {}
    for level, count in inside:
        by_level.setdefault(level, []).append(count)
    q = [sum(by_level[level]) / len(by_level[level]) for level, _ in inside]
    p = [count for _, count in inside]
    p[0] += below
    p[-1] += above
    return sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("relu", [False, True])
def test_kl_divergence_is_the_plain_one(relu: bool) -> None:
    data = torch.randn(3000, generator=torch.Generator().manual_seed(1)) ** 3
    histogram = histogram_of(data.relu() if relu else data)
    ranges = [(-30.0, 30.0), (-10.0, 12.0), (-2.0, 9.0), (-0.3, 0.3), (0.0, 5.0), (-20.0, 0.0)]
    lows, highs = (torch.tensor(ends) for ends in zip(*ranges, strict=True))
    got = relative_entropies(histogram.cells().without_zeros(), lows, highs)
    want = [plain_kl(histogram, low, high) for low, high in ranges]
    assert got.tolist() == pytest.approx(want, rel=1e-9, abs=1e-12)  # float64 sums of at most 2048 terms


def test_kl_without_data_inside_is_infinite() -> None:
    histogram = histogram_of(torch.linspace(50.0, 100.0, 100))
    got = relative_entropies(histogram.cells().without_zeros(), torch.tensor([-1.0]), torch.tensor([0.0]))
    assert got.tolist() == [math.inf]


def samples(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(20_000, generator=generator)
    return {
        "normal": normal,
        "shifted": normal + 1.5,
        "relu": normal.relu(),
        "cubed": normal**3,
        "skewed": normal.exp() - 1.0,
        "outlier above": torch.cat((normal, torch.tensor([60.0]))),
        "outlier below": torch.cat((normal, torch.tensor([-60.0]))),
        "negative": -normal.abs(),
    }[kind]


KINDS = ["normal", "shifted", "relu", "cubed", "skewed", "outlier above", "outlier below", "negative"]


@pytest.mark.parametrize("kind", KINDS)
def test_mse_search_finds_the_best_of_a_grid(kind: str) -> None:
    data = samples(kind)
    low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
    cells = histogram_of(data).cells()
    loss = partial(mean_squared_errors, cells)
    found = search_range(low, high, loss)
    assert low <= found[0] <= 0.0 <= found[1] <= high
    grid = torch.linspace(0.02, 1.0, 40)
    lows, highs = torch.meshgrid(grid * low, grid * high, indexing="ij")
    pieces = [loss(a, b) for a, b in zip(lows, highs, strict=True)]
    best = float(torch.stack(pieces).min())
    value = float(loss(*(torch.tensor([end]) for end in found))[0])
    assert value <= best * MSE_OPTIMUM
    assert value <= float(loss(torch.tensor([low]), torch.tensor([high]))[0])
    # The histogram's error is the data's, except that inside a cell the data need not be uniform ("cubed" has a peak).
    assert value == pytest.approx(direct_mse(data, *found, symmetric=False), rel=0.1)


def test_search_with_one_end_at_zero_moves_the_other_only() -> None:
    seen: list[Tensor] = []

    def loss(lows: Tensor, highs: Tensor) -> Tensor:
        seen.append(lows)
        return (highs - 3.0).abs().double()

    assert search_range(0.0, 10.0, loss)[1] == pytest.approx(3.0, abs=10 / 64 / 12 / 6)  # the finest step
    assert not torch.cat(seen).any()


def test_search_respects_the_least_width() -> None:
    found = search_range(-4.0, 6.0, lambda lows, highs: (highs - lows).double(), min_fraction=0.5)
    assert 5.0 * (1 - 1e-5) <= found[1] - found[0] <= 5.5


def test_search_of_an_empty_range() -> None:
    assert search_range(0.0, 0.0, lambda lows, highs: lows.double()) == (0.0, 0.0)


def test_ties_keep_the_full_range() -> None:
    assert search_range(-1.0, 2.0, lambda lows, highs: torch.zeros(lows.shape, dtype=torch.float64)) == (-1.0, 2.0)
