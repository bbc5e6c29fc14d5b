"""`benchmark`: forms, strongest baseline, ratios; the stopwatch is replaced where numbers are compared."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.report import BenchmarkResult, BenchmarkRow, benchmark, size_bytes
from tests.formats.models import Snapshot, make_float, make_input, make_quantized

module = importlib.import_module("fastcompress.report.benchmark")


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds by form; every form is still called once."""
    seconds = {"fp32 eager": 6.0, "fp32 channels-last": 4.0, "bf16": 3.0, "compressed": 2.0}

    def compare(calls: Mapping[str, Callable[[], Any]], min_time_s: float) -> dict[str, float]:
        assert min_time_s > 0
        for call in calls.values():
            call()
        return {name: seconds.get(name, 8.0) for name in calls}

    monkeypatch.setattr(module, "compare", compare)
    return seconds


def test_ratios_are_over_the_strongest_dense_form(stopwatch: dict[str, float]) -> None:
    result = benchmark(make_quantized(), make_float(), make_input())
    assert [row.name for row in result.rows] == [
        "fp32 eager", "fp32 channels-last", "bf16", "compressed", "compressed channels-last",
    ]  # fmt: skip
    assert result.strongest_dense.name == "bf16"
    assert result.compressed.name == "compressed"
    assert result.speedup == 1.5
    assert result.speedup_over("fp32 eager") == 3.0
    with pytest.raises(KeyError):
        result.speedup_over("onnx")


def test_a_loss_stays_in_the_table(stopwatch: dict[str, float]) -> None:
    stopwatch["bf16"] = 1.0
    result = benchmark(make_quantized(), make_float(), make_input())
    assert result.speedup == 0.5
    assert "0.50×" in str(result)


def test_sizes(stopwatch: dict[str, float]) -> None:
    dense = nn.Sequential(nn.Linear(64, 64))
    small = nn.Sequential(nn.Linear(64, 16, bias=False))
    rows = {row.name: row for row in benchmark(small, dense, torch.rand(1, 64)).rows}
    assert rows["fp32 eager"].size_bytes == size_bytes(dense) == 4 * (64 * 64 + 64)
    assert rows["bf16"].size_bytes == size_bytes(dense) // 2
    assert rows["compressed"].size_bytes == 4 * 64 * 16
    assert set(rows) == {"fp32 eager", "bf16", "compressed"}  # no convolution, no channels-last


def test_neither_model_nor_threads_nor_modes_change(stopwatch: dict[str, float]) -> None:
    model, baseline = make_quantized().train(), make_float().train()
    before = Snapshot(model), Snapshot(baseline)
    threads = torch.get_num_threads()
    result = benchmark(model, baseline, make_input(), threads=threads + 1)
    assert result.environment["threads"] == threads + 1
    assert torch.get_num_threads() == threads
    assert model.training
    assert baseline.norm.training
    before[0].assert_unchanged(model)
    before[1].assert_unchanged(baseline)


def test_form_that_fails_is_a_row_with_its_error(stopwatch: dict[str, float]) -> None:
    class OnlyFloat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype == torch.bfloat16:
                raise NotImplementedError("not in bfloat16")
            return self.linear(x)

    result = benchmark(OnlyFloat(), OnlyFloat(), torch.rand(1, 4))
    row = next(row for row in result.rows if row.name == "bf16")
    assert row.seconds is None
    assert row.note == "NotImplementedError: not in bfloat16"
    assert result.strongest_dense.name == "fp32 eager"
    assert "not in bfloat16" in str(result)


def test_keyword_inputs_and_tuples(stopwatch: dict[str, float]) -> None:
    class Takes(nn.Linear):
        def forward(self, input: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(input) + (0 if extra is None else extra.to(input.dtype))

    ids = torch.arange(2)
    for batch in ({"input": torch.rand(1, 2), "extra": ids}, (torch.rand(1, 2), "label")):
        assert all(row.seconds is not None for row in benchmark(Takes(2, 2), Takes(2, 2), batch).rows)


def test_inputs_that_do_not_fit(stopwatch: dict[str, float]) -> None:
    with pytest.raises(RuntimeError, match="benchmark: the baseline did not run on example_inputs: RuntimeError"):
        benchmark(nn.Linear(3, 3), nn.Linear(4, 4), torch.rand(1, 3))
    with pytest.raises(RuntimeError, match="benchmark: the model did not run on example_inputs: RuntimeError"):
        benchmark(nn.Linear(4, 4), nn.Linear(3, 3), torch.rand(1, 3))


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"benchmark: baseline must be a torch\.nn\.Module, got NoneType"):
        benchmark(nn.ReLU(), None, torch.rand(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="benchmark: threads must be a positive number, got 0"):
        benchmark(nn.ReLU(), nn.ReLU(), torch.rand(1), threads=0)


def test_real_stopwatch_and_json() -> None:
    result = benchmark(make_quantized(), make_float(), make_input(), min_time_s=1e-3)
    data = json.loads(json.dumps(result.to_dict()))
    assert all(row["seconds"] > 0 for row in data["rows"])
    assert data["speedup"] == result.speedup
    assert data["environment"]["torch"] == torch.__version__


def test_result_without_rows_says_so() -> None:
    with pytest.raises(RuntimeError, match="no dense form"):
        _ = BenchmarkResult((BenchmarkRow("compressed", False, 1.0, 1),)).speedup
