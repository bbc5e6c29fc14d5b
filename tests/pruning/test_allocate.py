"""Sparsities under a budget: the greedy choice, exact budgets, and budgets that cannot be met."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcompress.pruning import SensitivityCurves, SensitivityPoint, allocate, prune, sensitivity

from .models import mlp


def curves(drops: dict[str, dict[float, float]], sizes: dict[str, int] | None = None) -> SensitivityCurves:
    return SensitivityCurves(
        1.0,
        tuple(
            SensitivityPoint(layer, "16x4", sparsity, 1.0 - drop, (sizes or {}).get(layer, 100), 4)
            for layer, levels in drops.items()
            for sparsity, drop in levels.items()
        ),
    )


#: a is robust, b is not, c is in between and ten times as large.
EXAMPLE = curves(
    {"a": {0.5: 0.0, 0.75: 0.125}, "b": {0.5: 0.25, 0.75: 0.5}, "c": {0.5: 0.25, 0.75: 0.5}},
    {"a": 100, "b": 100, "c": 1000},
)


@pytest.mark.parametrize(
    ("max_drop", "expected"),
    [
        (0.0, {"a": 0.5, "b": 0.0, "c": 0.0}),
        (0.25, {"a": 0.5, "b": 0.0, "c": 0.5}),
        (0.5, {"a": 0.5, "b": 0.0, "c": 0.75}),
        (0.625, {"a": 0.75, "b": 0.0, "c": 0.75}),
        (10.0, {"a": 0.75, "b": 0.75, "c": 0.75}),
    ],
)
def test_max_drop(max_drop: float, expected: dict[str, float]) -> None:
    assert allocate(EXAMPLE, max_drop=max_drop) == expected


@pytest.mark.parametrize(
    ("size_ratio", "expected"),
    [
        (1.0, {"a": 0.0, "b": 0.0, "c": 0.0}),
        (0.96, {"a": 0.5, "b": 0.0, "c": 0.0}),
        (0.6, {"a": 0.5, "b": 0.0, "c": 0.5}),
        (0.25, {"a": 0.75, "b": 0.75, "c": 0.75}),
    ],
)
def test_size(size_ratio: float, expected: dict[str, float]) -> None:
    assert allocate(EXAMPLE, size_ratio=size_ratio) == expected


def seconds(**changes: float) -> dict[tuple[str, float], float]:
    """Dense 8 s each; half 6 s, three quarters 2 s."""
    table = {(layer, s): t for layer in "abc" for s, t in ((0.0, 8.0), (0.5, 6.0), (0.75, 2.0))}
    return table | {(key[0], float(key[1:]) / 100): value for key, value in changes.items()}


def test_latency_counts_seconds_not_bytes() -> None:
    # c saves no more than the others now, so robust a goes first and to the end.
    assert allocate(EXAMPLE, latency=seconds(), target_seconds=18.0) == {"a": 0.75, "b": 0.0, "c": 0.0}
    assert allocate(EXAMPLE, latency=seconds(), target_seconds=12.0) == {"a": 0.75, "b": 0.75, "c": 0.0}


def test_a_level_that_is_slower_than_dense_is_jumped_over() -> None:
    slow = seconds(a50=9.0)
    assert allocate(EXAMPLE, latency=slow, target_seconds=18.0)["a"] == 0.75
    never = seconds(a50=9.0, a75=8.5)
    assert allocate(EXAMPLE, latency=never, max_drop=10.0)["a"] == 0.0


def test_both_budgets() -> None:
    assert allocate(EXAMPLE, max_drop=0.25, size_ratio=0.6) == {"a": 0.5, "b": 0.0, "c": 0.5}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"size_ratio": 0.2},
            "allocate: size_ratio=0.2 cannot be met: the closest is size ratio 0.25, with an estimated drop of 1.125",
        ),
        (
            {"size_ratio": 0.5, "max_drop": 0.25},
            "allocate: size_ratio=0.5 cannot be met within max_drop=0.25: the closest is size ratio 0.5417",
        ),
        (
            {"latency": seconds(), "target_seconds": 5.0},
            "allocate: target_seconds=5.0 cannot be met: the closest is 6 s of 24 s dense, with an estimated drop of",
        ),
        ({}, "allocate: give a budget: max_drop, size_ratio, or latency with target_seconds"),
        ({"latency": seconds()}, "allocate: give a budget"),
        ({"target_seconds": 1.0}, "allocate: target_seconds needs latency"),
        ({"size_ratio": 0.5, "latency": seconds()}, "size_ratio counts bytes and latency seconds"),
        ({"size_ratio": 0.0}, r"allocate: size_ratio must lie in \(0, 1\], got 0.0"),
        ({"size_ratio": 1.5}, r"allocate: size_ratio must lie in \(0, 1\], got 1.5"),
        ({"max_drop": -1}, "allocate: max_drop must be a number of at least 0, got -1"),
        ({"max_drop": float("nan")}, "allocate: max_drop must be a number of at least 0, got nan"),
        ({"max_drop": 1, "pattern": "4x4"}, "allocate: pattern '4x4' has no curve; there are '16x4'"),
        (
            {"latency": {("a", 0.0): 1.0}, "target_seconds": 1.0},
            r"allocate: latency has no seconds for \('a', 0.5\) \(8 missing\)",
        ),
    ],
)
def test_budgets_that_cannot_be_met_and_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(EXAMPLE, **kwargs)


def test_wrong_curves() -> None:
    with pytest.raises(TypeError, match=r"allocate: curves must be SensitivityCurves from sensitivity\(\), got dict"):
        allocate({}, max_drop=1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="allocate: latency must map"):
        allocate(EXAMPLE, latency=[1.0], target_seconds=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allocate: the curves have no points"):
        allocate(SensitivityCurves(1.0, ()), max_drop=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "1", None, True])
def test_latencies_that_are_no_seconds(value: Any) -> None:
    message = r"allocate: latency of \('b', 0.5\) must be a finite number of seconds, at least 0, got "
    with pytest.raises(ValueError, match=message):
        allocate(EXAMPLE, latency=seconds() | {("b", 0.5): value}, target_seconds=18.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_curves_that_are_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match=r"allocate: the curve of 'a' has the value -?(nan|inf) at 0\.5"):
        allocate(curves({"a": {0.5: value}}), max_drop=1.0)


def test_several_patterns() -> None:
    both = SensitivityCurves(
        1.0, (SensitivityPoint("a", "4x4", 0.5, 1.0, 10), SensitivityPoint("a", "16x4", 0.9, 1.0, 10))
    )
    with pytest.raises(ValueError, match="the curves have several patterns, '4x4', '16x4'; choose one with pattern="):
        allocate(both, max_drop=1.0)
    assert allocate(both, max_drop=1.0, pattern="16x4") == {"a": 0.9}


def test_gains_are_no_budget() -> None:
    lucky = curves({"a": {0.5: -0.5}, "b": {0.5: 0.25}})
    assert allocate(lucky, max_drop=0.0) == {"a": 0.5, "b": 0.0}


_LEVELS = st.dictionaries(st.sampled_from([0.25, 0.5, 0.75, 0.875]), st.integers(0, 64), min_size=1)


@given(st.dictionaries(st.sampled_from("abc"), _LEVELS, min_size=1), st.integers(0, 128))
def test_budgets_hold_and_nothing_more_fits(drops: dict[str, dict[float, int]], budget: int) -> None:
    exact = {layer: {s: drop / 64 for s, drop in levels.items()} for layer, levels in drops.items()}
    chosen = allocate(curves(exact), max_drop=budget / 64)
    paid = {layer: {0.0: 0.0} | exact[layer] for layer in exact}
    total = sum(paid[layer][sparsity] for layer, sparsity in chosen.items())
    assert total <= budget / 64
    for layer in exact:
        for sparsity, drop in exact[layer].items():
            if sparsity > chosen[layer]:
                assert total + drop - paid[layer][chosen[layer]] > budget / 64
    # A size that the choice reaches can be asked for.
    size = sum(1 - sparsity for sparsity in chosen.values()) / len(chosen)
    again = allocate(curves(exact), size_ratio=size) if size > 0 else chosen
    assert sum(1 - sparsity for sparsity in again.values()) / len(again) <= size


def test_greedy_is_close_to_the_best_of_all() -> None:
    drops = {"a": {0.5: 0.02, 0.75: 0.05}, "b": {0.5: 0.01, 0.75: 0.2}, "c": {0.5: 0.1, 0.75: 0.11}}
    options = {layer: {0.0: 0.0} | levels for layer, levels in drops.items()}
    chosen = allocate(curves(drops), max_drop=0.18)
    best = min(
        sum(1 - s for s in choice)
        for choice in itertools.product(*options.values())
        if sum(options[layer][s] for layer, s in zip(options, choice, strict=True)) <= 0.18
    )
    assert sum(1 - s for s in chosen.values()) == best


def test_the_result_is_for_prune() -> None:
    found = sensitivity(mlp(), lambda model: 1.0, (0.5, 0.75), ("4x4",))
    sparsities = allocate(found, size_ratio=0.5)
    pruned = prune(mlp(), sparsities, "4x4")
    assert sum(s * p.weight_elems for p in found.points[::2] for s in [sparsities[p.layer]]) >= 2048
    assert [bool(s) for s in sparsities.values()].count(True) == sum(
        hasattr(module, "parametrizations") for module in pruned
    )
