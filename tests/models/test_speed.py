"""The speed contract, with a stopwatch that says what the test wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.models.flow import InputKind
from fastcompress.models.speed import SpeedCase, choose_inputs, decide
from fastcompress.nn import QuantLinear


class Stopwatch:
    """Runs both functions and gives the next times from a list (the last ones again and again)."""

    def __init__(self, *times: tuple[float, float]) -> None:
        self.times, self.calls = list(times), 0

    def __call__(self, fns: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        shapes = {fns[name]().shape for name in ("dense", "int8")}
        assert len(shapes) == 1, "dense and int8 must do the same work"
        dense, quantized = self.times[min(self.calls, len(self.times) - 1)]
        self.calls += 1
        return {"dense": dense, "int8": quantized}


def test_int8_that_loses_is_not_used() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    q = fc.quantize(model, "W8A8", [torch.randn(4, 8)], timer=Stopwatch((1.0, 2.0)))
    assert type(q[0]) is nn.Linear
    assert type(q[1]) is nn.ReLU
    decision = q._fastcompress_record["0"]
    assert (decision.action, decision.dense_seconds, decision.quantized_seconds) == ("kept", 1.0, 2.0)
    assert decision.reason == "int8 measured 0.50× as fast as dense here, dense is kept"
    assert decision.shapes == ((4, 8),)


def test_int8_that_wins_is_used() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    q = fc.quantize(model, "W8A8", [torch.randn(4, 8)], timer=Stopwatch((2.0, 1.0)))
    assert isinstance(q[0], QuantLinear)
    assert q._fastcompress_record["0"].speedup == 2.0


def test_a_tie_stays_dense() -> None:
    q = fc.quantize(nn.Sequential(nn.Linear(8, 8)), "W8A8-dynamic", timer=Stopwatch((1.0, 1.0)))
    assert type(q[0]) is nn.Linear


def test_each_distinct_layer_is_measured_once() -> None:
    watch = Stopwatch((2.0, 1.0))
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)), nn.Linear(8, 4))
    fc.quantize(model, "W8A8", [torch.randn(4, 8)], timer=watch)
    assert watch.calls == 2


def test_without_data_a_linear_is_measured_at_1_and_128_tokens() -> None:
    watch = Stopwatch((3.0, 1.0), (1.0, 2.0))
    q = fc.quantize(nn.Sequential(nn.Linear(8, 8)), "W8A8-dynamic", timer=watch)
    decision = q._fastcompress_record["0"]
    assert decision.shapes == ((1, 8), (128, 8))
    assert (decision.dense_seconds, decision.quantized_seconds) == (2.0, 1.5)  # the mean decides
    assert decision.action == "quantized"


def test_example_inputs_say_what_is_measured() -> None:
    q = fc.quantize(
        nn.Sequential(nn.Linear(8, 8)),
        "W8A8",
        [torch.randn(4, 8)],
        example_inputs=torch.randn(7, 3, 8),
        timer=Stopwatch((2.0, 1.0)),
    )
    assert q._fastcompress_record["0"].shapes == ((7, 3, 8),)


def test_only_if_faster_false_measures_nothing() -> None:
    def never(fns: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        raise AssertionError

    q = fc.quantize(nn.Sequential(nn.Linear(8, 8)), "W8A8-dynamic", only_if_faster=False, timer=never)
    assert isinstance(q[0], QuantLinear)
    assert q._fastcompress_record["0"].dense_seconds is None


def test_the_real_stopwatch_decides_and_records() -> None:
    q = fc.quantize(nn.Sequential(nn.Linear(8, 8)), "W8A8-dynamic")
    decision = q._fastcompress_record["0"]
    assert decision.dense_seconds is not None
    assert decision.quantized_seconds is not None
    assert (decision.action == "quantized") == (decision.quantized_seconds < decision.dense_seconds)


class Shared(nn.Module):
    """Two different layers before one activation module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(6, 8), nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))))


def test_layers_before_a_shared_activation_are_decided_together() -> None:
    x = torch.randn(4, 6)
    q = fc.quantize(Shared(), "W8A8", [x], timer=Stopwatch((9.0, 1.0), (1.0, 2.0)))
    assert isinstance(q.second, QuantLinear)
    assert type(q.act) is nn.Identity
    assert q._fastcompress_record["second"].reason == (
        "int8 so that all layers before the shared act fuse it: 3.33× as fast for all of them together"
    )


def test_a_group_that_loses_is_decided_one_by_one() -> None:
    x = torch.randn(4, 6)
    q = fc.quantize(Shared(), "W8A8", [x], timer=Stopwatch((2.0, 1.0), (1.0, 9.0)))
    assert isinstance(q.first, QuantLinear)
    assert q.first.activation == "none"
    assert type(q.second) is nn.Linear
    assert type(q.act) is nn.ReLU


def test_choose_inputs_takes_the_frequent_the_largest_and_the_smallest() -> None:
    seen = Counter({InputKind((n, 8)): 1 for n in (1, 2, 3, 4, 5)})
    seen[InputKind((3, 8))] = 7
    seen[InputKind((0, 8))] = 99
    assert [(kind.shape[0], weight) for kind, weight in choose_inputs(seen)] == [(3, 7), (5, 1), (1, 1)]


def test_inputs_are_weighted_by_how_often_they_came() -> None:
    kinds = ((InputKind((1, 8)), 3), (InputKind((2, 8)), 1))
    case = SpeedCase("a", ("key",), kinds, lambda x: x, nn.Identity)
    verdict = decide([case], Stopwatch((1.0, 2.0), (9.0, 2.0)))["a"]
    assert (verdict.dense_seconds, verdict.quantized_seconds) == (3.0, 2.0)
    assert verdict.faster


def test_a_failing_stopwatch_leaves_the_model_alone() -> None:
    def broken(fns: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        raise OSError("no clock")

    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(OSError, match="no clock"):
        fc.quantize(model, "W8A8-dynamic", inplace=True, timer=broken)
    assert type(model[0]) is nn.Linear
    assert not hasattr(model, "_fastcompress_record")
