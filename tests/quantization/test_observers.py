"""Every observer against closed forms and brute force, streaming, degenerate data, errors."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcompress.quantization import OBSERVERS, Observer, choose_qparams, make_observer

NAMES = sorted(OBSERVERS)
HISTOGRAMS = ["entropy", "mse", "percentile"]


def observed(name: str, *batches: Tensor, **options: float) -> Observer:
    observer = make_observer(name, **options)
    for batch in batches:
        observer.update(batch)
    return observer


def normal(count: int = 50_000, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def clipped_error(data: Tensor, scale: float, zero_point: int) -> float:
    q = (torch.round(data.double() / scale) + zero_point).clamp(0, 255)
    return float(((q - zero_point) * scale - data.double()).square().mean())


# --- minmax and moving average: closed forms


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5), min_size=1))
def test_minmax_is_exact(batches: list[list[float]]) -> None:
    observer = make_observer("minmax")
    for batch in batches:
        observer.update(torch.tensor(batch, dtype=torch.float32))
    values = [value for batch in batches for value in batch]
    assert observer.has_data == bool(values)
    if values:
        assert observer.value_range() == (min(values), max(values))
        assert observer.qparams() == choose_qparams(min(values), max(values))


def test_minmax_streaming_equals_one_shot() -> None:
    data = normal()
    assert observed("minmax", *data.split(999)).qparams() == observed("minmax", data).qparams()


@pytest.mark.parametrize("averaging", [0.01, 0.1, 0.5, 1.0])
def test_moving_average_is_the_recurrence(averaging: float) -> None:
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0]), torch.tensor([-0.5, 8.0])]
    low, high = -1.0, 2.0
    for batch in batches[1:]:
        low = (1 - averaging) * low + averaging * float(batch.min())
        high = (1 - averaging) * high + averaging * float(batch.max())
    assert observed("moving_average", *batches, averaging=averaging).value_range() == (low, high)


def test_moving_average_damps_one_wild_batch() -> None:
    batches = [*normal().split(5000), torch.tensor([1000.0])]
    assert observed("moving_average", *batches).value_range()[1] < 110.0
    assert observed("minmax", *batches).value_range()[1] == 1000.0


# --- percentile


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("kind", ["normal", "relu", "exp", "few"])
def test_percentile_is_torch_quantile_to_one_bin(percentile: float, kind: str) -> None:
    base = normal()
    data = {"normal": base, "relu": base.relu(), "exp": base.exp(), "few": base[:7]}[kind]
    observer = observed("percentile", *data.split(1234), percentile=percentile)
    width = observer.histogram.width  # type: ignore[attr-defined]
    want = torch.quantile(data.double(), torch.tensor([1 - percentile / 100, percentile / 100], dtype=torch.float64))
    low, high = observer.value_range()
    assert abs(low - float(want[0])) <= width
    assert abs(high - float(want[1])) <= width
    if percentile == 100.0:
        assert (low, high) == (float(data.min()), float(data.max()))


def test_percentile_of_mostly_zeros_is_exactly_zero() -> None:
    data = torch.zeros(10_000)
    data[:50] = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 1.0
    assert observed("percentile", data, percentile=99.0).value_range() == (0.0, 0.0)
    assert observed("percentile", data, percentile=99.6).value_range()[1] > 1.0


def test_percentile_ignores_an_outlier() -> None:
    data = torch.cat((normal(), torch.tensor([500.0])))
    assert observed("percentile", data).value_range()[1] < 6.0


# --- mse


@pytest.mark.parametrize("kind", ["normal", "relu", "cubed", "uniform"])
def test_mse_is_near_the_best_scale_of_a_brute_force_search(kind: str) -> None:
    base = normal(20_000)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1)) - 0.25
    data = {"normal": base, "relu": base.relu(), "cubed": base**3, "uniform": uniform}[kind]
    got = clipped_error(data, *observed("mse", data).qparams())
    low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
    fractions = np.linspace(0.1, 1.0, 46)
    candidates = [(a * low, b * high) for a in (fractions if low < 0 else [1.0]) for b in fractions]
    # Both ends move together here: symmetric data needs no more, and the uniform one none at all.
    candidates = [(a, b) for a, b in candidates if low == 0 or abs(a / low - b / high) < 0.1]
    best = min(clipped_error(data, *choose_qparams(a, b)) for a, b in candidates)
    # The histogram knows values to 1/4 of a level: the error it minimises is that good.
    assert got <= best * 1.02
    assert got <= clipped_error(data, *choose_qparams(low, high)) * 1.001


def test_mse_on_a_normal_distribution_clips_near_four_sigma() -> None:
    def error(clip: float) -> float:
        """step²/12 + 2∫(x - clip)² over the tail of the normal density, in closed form."""
        density = math.exp(-clip * clip / 2) / math.sqrt(2 * math.pi)
        tail = math.erfc(clip / math.sqrt(2)) / 2
        return (2 * clip / 255) ** 2 / 12 + 2 * ((1 + clip * clip) * tail - clip * density)

    best = min((clip / 1000 for clip in range(2000, 6000)), key=error)
    low, high = observed("mse", normal(1_000_000)).value_range()
    # Some ten values of a million decide where exactly; 0.15 changes the error by at most 3%.
    assert max(error(best - 0.15), error(best + 0.15)) < 1.03 * error(best)
    assert -low == pytest.approx(best, abs=0.15)
    assert high == pytest.approx(best, abs=0.15)


def test_symmetric_mse_searches_the_symmetric_grid() -> None:
    observer = observed("mse", normal() ** 3)
    scale, zero_point = observer.qparams(symmetric=True)
    assert zero_point == 128
    data = normal() ** 3
    q = (torch.round(data.double() / scale)).clamp(-127, 127) * scale
    full = choose_qparams(float(data.min()), float(data.max()), symmetric=True)[0]
    q_full = (torch.round(data.double() / full)).clamp(-127, 127) * full
    assert (q - data).square().mean() < (q_full - data).square().mean()


# --- entropy


def test_entropy_keeps_data_that_fills_its_range() -> None:
    data = torch.linspace(-1.0, 2.0, 100_000)
    low, high = observed("entropy", data).value_range()
    assert low == pytest.approx(-1.0, abs=0.02)
    assert high == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_entropy_cuts_a_far_outlier_and_nothing_else(sign: float) -> None:
    data = torch.cat((normal(), torch.tensor([200.0]))) * sign
    low, high = sorted(end * sign for end in observed("entropy", data).value_range())
    assert high < 150.0
    assert low <= -4.0


def test_entropy_clips_heavy_tails() -> None:
    data = normal() ** 5
    low, high = observed("entropy", data).value_range()
    assert high < 0.8 * float(data.max())
    assert float((data.gt(high) | data.lt(low)).float().mean()) < 0.02


def test_entropy_ignores_how_many_zeros_there_are() -> None:
    positive = normal().abs()
    with_zeros = torch.cat((positive, torch.zeros(500_000)))
    assert observed("entropy", with_zeros).qparams() == observed("entropy", positive).qparams()


# --- what holds for all


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_streaming_equals_one_shot(name: str) -> None:
    data = torch.cat((normal(3000) * 0.01, normal(3000, 1) * 7.0, normal(3000, 2).exp()))
    whole = observed(name, data)
    for pieces in (data.split(701), data.flip(0).split(13)):
        streamed = observed(name, *pieces)
        assert streamed.qparams() == whole.qparams()
        assert streamed.qparams(symmetric=True) == whole.qparams(symmetric=True)


DEGENERATE = {
    "all zero": torch.zeros(10),
    "constant": torch.full((10,), 3.5),
    "negative constant": torch.full((10,), -3.5),
    "all negative": -torch.rand(100, generator=torch.Generator().manual_seed(3)) - 1.0,
    "all positive": torch.rand(100, generator=torch.Generator().manual_seed(4)) + 1.0,
    "single": torch.tensor(0.25),
    "two": torch.tensor([-1.0, 1e-30]),
    "huge": torch.tensor([-3.4e38, 0.0, 3.4e38]),
    "tiny": torch.tensor([1e-45, -1e-40, 3e-39]),
    "huge and tiny": torch.tensor([1e-45, 1e-30, 3e38]),
    "half": torch.tensor([-1.5, 2.5], dtype=torch.float16),
    "bfloat16": torch.tensor([-1.5, 3e38], dtype=torch.bfloat16),
    "float64": torch.tensor([-1.5, 2.5], dtype=torch.float64),
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("data", DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_data_gives_usable_parameters(name: str, data: Tensor, symmetric: bool) -> None:
    observer = observed(name, data)
    low, high = observer.value_range(symmetric)
    scale, zero_point = observer.qparams(symmetric)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert scale == float(np.float32(scale))
    assert np.finfo(np.float32).tiny <= scale < math.inf
    assert 0 <= zero_point <= 255
    assert observer.nonfinite_elems == 0


@pytest.mark.parametrize("value", [3.5, -3.5, 1e-20, 3e38])
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_is_represented_to_half_a_level(name: str, value: float) -> None:
    scale, zero_point = observed(name, torch.full((3, 4), value)).qparams()
    assert zero_point == (0 if value > 0 else 255)
    q = min(max(round(value / scale) + zero_point, 0), 255)
    assert abs((q - zero_point) * scale - value) <= scale / 2


@pytest.mark.parametrize("name", NAMES)
def test_nonfinite_values_are_left_out_counted_and_warned_of_once(name: str) -> None:
    clean = normal(1000)
    dirty = torch.cat((clean, torch.tensor([math.nan, math.inf, -math.inf])))
    observer = make_observer(name)
    with pytest.warns(RuntimeWarning, match=r"update: `x` holds 3 NaN or infinite values out of 1003"):
        observer.update(dirty)
    assert observer.qparams() == observed(name, clean).qparams()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observer.update(torch.tensor([math.nan, 0.0]))
    assert observer.nonfinite_elems == 4


@pytest.mark.parametrize("name", NAMES)
def test_float64_beyond_float32_counts_as_infinite(name: str) -> None:
    observer = make_observer(name)
    with pytest.warns(RuntimeWarning, match="holds 1 NaN or infinite values out of 2"):
        observer.update(torch.tensor([1e300, 1.0], dtype=torch.float64))
    assert observer.data_max == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_no_data_is_an_error(name: str) -> None:
    observer = make_observer(name)
    with pytest.raises(ValueError, match=r"no data was observed; run at least one non-empty"):
        observer.qparams()
    observer.update(torch.empty(0, 5))
    assert not observer.has_data
    with pytest.warns(RuntimeWarning):
        observer.update(torch.full((2, 2), math.nan))
    assert not observer.has_data
    with pytest.raises(ValueError, match=r"no data was observed \(4 NaN or infinite values were ignored\)"):
        observer.value_range()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_an_error(name: str) -> None:
    observer = make_observer(name)
    with pytest.raises(TypeError, match=r"`x` must be floating point, got torch\.uint8"):
        observer.update(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"`x` must be a torch.Tensor, got list"):
        observer.update([1.0])  # type: ignore[arg-type]
    assert not observer.has_data


@pytest.mark.parametrize("name", NAMES)
def test_layout_does_not_matter_and_no_graph_is_kept(name: str) -> None:
    x = normal(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).requires_grad_()
    want = observed(name, x.flatten()).qparams()
    assert observed(name, x.to(memory_format=torch.channels_last)).qparams() == want
    assert observed(name, x.permute(3, 1, 0, 2)).qparams() == want


@pytest.mark.parametrize("name", NAMES)
def test_observers_copy_and_pickle(name: str) -> None:
    observer = observed(name, normal(100))
    for twin in (copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))):
        assert twin.qparams() == observer.qparams()
        twin.update(torch.tensor([100.0]))
        assert twin.data_max != observer.data_max


@pytest.mark.parametrize("name", NAMES)
def test_more_data_after_asking_is_fine(name: str) -> None:
    observer = observed(name, normal(100))
    observer.qparams()
    observer.update(normal(100, 1))
    assert observer.qparams() == observed(name, normal(100), normal(100, 1)).qparams()


# --- make_observer


def test_unknown_names_and_options() -> None:
    with pytest.raises(ValueError, match=r"make_observer: `name` must be one of minmax, moving_average, .* got 'max'"):
        make_observer("max")
    with pytest.raises(TypeError, match="observer 'percentile' has no option 'averaging'; allowed: percentile, bins"):
        make_observer("percentile", averaging=0.1)
    with pytest.raises(TypeError, match="observer 'minmax' has no option 'bins'; allowed: none"):
        make_observer("minmax", bins=5)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("percentile", "percentile", 50.0),
        ("percentile", "percentile", 100.1),
        ("percentile", "percentile", math.nan),
        ("moving_average", "averaging", 0.0),
        ("moving_average", "averaging", 1.5),
        ("mse", "bins", 100),
        ("entropy", "bins", 0),
    ],
)
def test_option_values_out_of_range(name: str, option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{option}` must be "):
        make_observer(name, **{option: value})
