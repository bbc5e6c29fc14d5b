"""The break-even sparsity: interpolation, what is measured, how often, and what `explain` shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.models.flow import InputKind
from fastcompress.nn import BlockSparse, SparseConv2d, SparseLinear
from fastcompress.report import break_even as module
from fastcompress.report.break_even import DENSITIES, break_even, interpolated, measured_break_even
from tests.nn.sparse_cases import CASES, Case, pruned_conv2d, pruned_linear


class Clock:
    """Runs everything; sparse calls take as many seconds as their density, dense ones the given time."""

    def __init__(self, dense: float) -> None:
        self.dense, self.calls = dense, 0

    def __call__(self, functions: Mapping[str, Any], *_: Any) -> dict[str, float]:
        self.calls += 1
        shapes = {name: function().shape for name, function in functions.items()}
        assert len(set(shapes.values())) == 1
        assert list(shapes) == ["dense", *(f"sparse {density}" for density in DENSITIES)]
        return {name: self.dense if name == "dense" else float(name.split()[1]) for name in functions}


@pytest.mark.parametrize(
    ("seconds", "dense", "expected"),
    [
        ([1.0, 3.0, 5.0], 2.0, 0.4),
        ([1.0, 3.0, 5.0], 3.0, 0.6),
        ([1.0, 3.0, 5.0], 4.5, 0.9),
        ([1.0, 3.0, 5.0], 9.0, 1.0),
        ([1.0, 3.0, 5.0], 1.0, 0.0),
        ([2.0, 2.0, 5.0], 2.0, 0.0),
    ],
)
def test_interpolation(seconds: list[float], dense: float, expected: float) -> None:
    assert interpolated([0.2, 0.6, 1.0], seconds, dense) == pytest.approx(expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_of_layer_is_measured_against_its_dense_form(case: Case) -> None:
    layer: Any = case.make(0)
    kind = InputKind.of(case.x)
    assert measured_break_even(layer, kind, Clock(0.3)) == pytest.approx(0.7)
    assert measured_break_even(layer, kind, Clock(0.01)) == 1.0
    assert measured_break_even(layer, kind, Clock(2.0)) == 0.0


def test_padding_of_every_kind_is_measured_as_it_is() -> None:
    x = InputKind((1, 8, 7, 6))
    for options in ({"padding": (0, 1, 2, 0)}, {"padding": 0, "same_padding": True}, {"padding": 1}):
        layer = SparseConv2d.from_float(pruned_conv2d(), **options)  # type: ignore[arg-type]
        assert measured_break_even(layer, x, Clock(0.3)) == pytest.approx(0.7)


def test_a_shape_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.4)
    monkeypatch.setattr(module, "compare", clock)
    monkeypatch.setattr(module, "_known", {})
    layer = SparseLinear.from_float(pruned_linear(32, 16))
    other = SparseLinear.from_float(pruned_linear(32, 16, 0.6, seed=1))
    for _ in range(2):
        assert break_even(layer, InputKind((5, 16))) == pytest.approx(0.6)
        assert break_even(other, InputKind((5, 16))) == pytest.approx(0.6)
    assert clock.calls == 1
    break_even(layer, InputKind((6, 16)))
    break_even(SparseLinear.from_float(pruned_linear(32, 16), block_size=(4, 1)), InputKind((5, 16)))
    assert clock.calls == 3


def model() -> nn.Sequential:
    linear = SparseLinear.from_float(pruned_linear(32, 16, 0.25))
    return nn.Sequential(linear, nn.Linear(32, 4), nn.ReLU()).eval()


def test_explain_tells_blocks_density_and_break_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "compare", Clock(0.4))
    monkeypatch.setattr(module, "_known", {})
    sparse = model()
    layer = sparse[0]
    assert isinstance(layer, BlockSparse)
    row, dense = fc.explain(sparse, torch.randn(5, 16)).rows
    assert (row.action, row.block, row.density, row.break_even) == (
        "sparse",
        "16x1",
        layer.density,
        pytest.approx(0.6),
    )
    assert (row.kernel, row.kind, row.shape) == (layer.kernel_name(), "SparseLinear", "16→32")
    assert (dense.block, dense.density, dense.break_even) == ("", None, None)
    text = str(fc.explain(sparse, torch.randn(5, 16)))
    for part in (layer.kernel_name(), f"16x1 {layer.density:.0%}", "60% sparse", "pays from"):
        assert part in text
    for seconds, word in ((9.0, "always"), (1e-9, "never")):
        monkeypatch.setattr(module, "compare", Clock(seconds))
        monkeypatch.setattr(module, "_known", {})
        assert word in str(fc.explain(sparse, torch.randn(5, 16)))


def test_without_inputs_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> dict[str, float]:
        raise AssertionError("measured")

    monkeypatch.setattr(module, "compare", never)
    monkeypatch.setattr(module, "_known", {})
    row = fc.explain(model()).rows[0]
    assert (row.block, row.break_even) == ("16x1", None)
    assert row.density is not None
    assert "pays from" not in str(fc.explain(model()))


def test_converted_and_quantized_layers_are_told_apart() -> None:
    masked = fc.prune(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval(), 0.75, "16x4")
    mixed = fc.quantize(masked, "W8A8-dynamic", targets="0", only_if_faster=False)
    done = fc.convert(mixed, timer=lambda functions: {"dense": 2.0, "sparse": 1.0})
    found = fc.explain(done)
    assert found.scheme == "W8A8-dynamic + sparse"
    assert found.counts() == {"quantized": 1, "sparse": 1}
    assert [row.block for row in found.rows] == ["16x4", "16x1"]
    text = str(found)
    assert "compressed ms" in text
    assert "2.00×" in text
    assert "sparse measured" not in text  # the columns say so
    assert "25% of its 16x1 blocks" in text


def test_the_real_stopwatch_gives_a_sparsity() -> None:
    row = fc.explain(model(), torch.randn(5, 16)).rows[0]
    assert row.break_even is not None
    assert 0.0 <= row.break_even <= 1.0
