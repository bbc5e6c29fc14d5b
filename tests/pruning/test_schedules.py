"""Schedules against closed forms, edges included."""

from __future__ import annotations

import math

import pytest

from fastcompress.pruning import (
    SCHEDULES,
    constant_sparsity,
    cubic_sparsity,
    iterative_sparsity,
    linear_sparsity,
    round_steps,
)


def test_constant() -> None:
    assert [constant_sparsity(step, 0.9, start=3, initial=0.1) for step in (0, 2, 3, 4, 99)] == [
        0.1,
        0.1,
        0.9,
        0.9,
        0.9,
    ]
    assert constant_sparsity(0, 0.9) == 0.9


@pytest.mark.parametrize("step", range(21))
def test_linear_and_cubic_in_between(step: int) -> None:
    start, end, initial, final = 4, 14, 0.2, 0.9
    t = min(max((step - start) / (end - start), 0.0), 1.0)
    linear = linear_sparsity(step, final, start=start, end=end, initial=initial)
    cubic = cubic_sparsity(step, final, start=start, end=end, initial=initial)
    assert math.isclose(linear, initial + (final - initial) * t, rel_tol=1e-12)
    assert math.isclose(cubic, final + (initial - final) * (1 - t) ** 3, rel_tol=1e-12)


@pytest.mark.parametrize("function", [linear_sparsity, cubic_sparsity])
@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.9), (0.1, 0.9), (0.3, 0.8), (0.7, 0.95)])
def test_both_ends_are_exact(function: object, initial: float, final: float) -> None:
    values = [function(step, final, start=5, end=8, initial=initial) for step in range(12)]  # type: ignore[operator]
    assert values[:6] == [initial] * 6
    assert values[8:] == [final] * 4
    assert values == sorted(values)
    assert initial < values[6] < values[7] < final


@pytest.mark.parametrize("name", SCHEDULES)
def test_start_equal_to_end_is_a_step(name: str) -> None:
    values = [SCHEDULES[name](step, 0.75, start=3, end=3, rounds=1, initial=0.25) for step in range(6)]
    assert values == [0.25, 0.25, 0.25, 0.75, 0.75, 0.75]


def test_iterative_prunes_the_same_fraction_of_what_is_left() -> None:
    boundaries = round_steps(10, 40, 4)
    assert boundaries == (10, 20, 30, 40)
    initial, final = 0.2, 0.9
    ratio = ((1 - final) / (1 - initial)) ** (1 / 4)
    density = 1 - initial
    for step in range(50):
        if step in boundaries:
            density *= ratio
        found = iterative_sparsity(step, final, start=10, end=40, rounds=4, initial=initial)
        assert math.isclose(1 - found, density, rel_tol=1e-12)
    assert iterative_sparsity(40, final, start=10, end=40, rounds=4, initial=initial) == final
    assert iterative_sparsity(9, 0.9, start=10, end=40, rounds=4) == 0.0


def test_rounds_that_do_not_divide_and_a_single_one() -> None:
    assert round_steps(0, 10, 4) == (0, 3, 6, 10)
    assert round_steps(7, 100, 1) == (7,)
    assert iterative_sparsity(6, 0.5, start=7, end=100, rounds=1) == 0.0
    assert iterative_sparsity(7, 0.5, start=7, end=100, rounds=1) == 0.5
