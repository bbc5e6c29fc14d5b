"""Timing: medians, interleaving, rotation of operands. A fake clock makes the results exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from fastcompress.report import compare, measure, median_seconds, rotate


class Clock:
    """Time that passes only when `work` is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def work(self, name: str, durations: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now += next(durations)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)
    return clock


def _forever(value: float) -> Iterator[float]:
    while True:
        yield value


def test_median_ignores_outliers_and_warm_up(clock: Clock) -> None:
    def durations() -> Iterator[float]:
        yield from (50.0, 0.001, 0.004, 9.0, 0.001, 0.003, 0.002)  # two warm-up calls, then five samples
        yield from _forever(0.0)

    assert median_seconds(clock.work("a", durations()), 0.001) == pytest.approx(0.003)


def test_samples_until_the_time_is_spent(clock: Clock) -> None:
    median_seconds(clock.work("a", _forever(0.001)), 0.0205)
    assert len(clock.order) == 2 + 21


def test_sample_count_is_bounded(clock: Clock) -> None:
    median_seconds(clock.work("a", _forever(0.001)), 100.0, max_samples=7)
    assert len(clock.order) == 2 + 7


def test_short_calls_are_timed_in_groups(clock: Clock) -> None:
    assert median_seconds(clock.work("a", _forever(1e-6)), 1e-9, min_samples=3) == pytest.approx(1e-6)
    assert len(clock.order) >= 2 + 3 * 45


def test_competitors_take_turns(clock: Clock) -> None:
    calls = {name: clock.work(name, _forever(cost)) for name, cost in (("a", 0.001), ("b", 0.003), ("c", 0.002))}
    result = compare(calls, 0.001, min_samples=4)
    assert list(result) == ["a", "b", "c"]
    assert result == pytest.approx({"a": 0.001, "b": 0.003, "c": 0.002})
    assert "".join(clock.order[6:]) == "abc" + "bca" + "cab" + "abc"


def test_slow_phase_of_the_machine_hits_everybody(clock: Clock) -> None:
    def run(cost: float) -> Callable[[], None]:
        def call() -> None:
            clock.now += cost * (3.0 if clock.now < 0.1 else 1.0)

        return call

    result = compare({"a": run(0.001), "b": run(0.002)}, 0.1)
    assert result["b"] / result["a"] == pytest.approx(2.0)


@pytest.mark.parametrize("arguments", [(0.0, 5, 10), (-1.0, 5, 10), (float("nan"), 5, 10), (0.1, 0, 10), (0.1, 5, 4)])
def test_limits_must_make_sense(arguments: tuple[float, int, int]) -> None:
    seconds, least, most = arguments
    with pytest.raises(ValueError, match="min_time_s must be positive"):
        compare({"a": lambda: None}, seconds, min_samples=least, max_samples=most)


def test_nothing_to_compare() -> None:
    assert compare({}) == {}


def test_rotation_walks_through_more_memory_than_asked() -> None:
    operand = torch.arange(8.0)
    copies = rotate(operand, total_bytes=100)
    seen = [next(copies) for _ in range(12)]
    distinct = {tensor.data_ptr(): tensor for tensor in seen}
    assert len(distinct) == 4  # ceil(100 / 32)
    assert operand.data_ptr() not in distinct
    assert all(torch.equal(tensor, operand) for tensor in seen)
    assert seen[0].data_ptr() == seen[4].data_ptr() != seen[1].data_ptr()
