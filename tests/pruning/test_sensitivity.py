"""Sensitivity curves: every point, the table, the plot; and what stays as it was."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.pruning import (
    CRITERIA,
    SensitivityCurves,
    SensitivityPoint,
    masked,
    prune,
    sensitivity,
    sparsity_of,
)
from fastcompress.pruning.curves_svg import svg_chart

from .models import conv_net, mlp, same, snapshot, vectors

_SVG = "{http://www.w3.org/2000/svg}"


def quality(model: nn.Module) -> float:
    """Minus the pruned fraction of all weights: exact, and different for every layer and sparsity."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return -sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_every_point() -> None:
    model = mlp()
    before = snapshot(model)
    seen = []

    def evaluate(candidate: nn.Module) -> float:
        assert candidate is not model
        seen.append(sorted(masked(candidate)))
        return quality(candidate)

    curves = sensitivity(model, evaluate, (0.75, 0.5), ("4x4", "2:4", "4x4"))
    assert same(model, before)
    total = 2048 + 2048 + 320
    assert curves.baseline == 0.0
    assert [(p.layer, p.pattern, p.sparsity, p.value) for p in curves.points] == [
        ("0", "4x4", 0.5, -1024 / total),
        ("0", "4x4", 0.75, -1536 / total),
        ("0", "2:4", 0.5, -1024 / total),
        ("2", "4x4", 0.5, -1024 / total),
        ("2", "4x4", 0.75, -1536 / total),
        ("2", "2:4", 0.5, -1024 / total),
        ("4", "2:4", 0.5, -160 / total),
    ]
    assert {(p.weight_elems, p.elem_bytes) for p in curves.points} == {(2048, 4), (320, 4)}
    assert curves.skipped == {"4x4": {"4": "pattern 4x4 needs outputs divisible by 4, it has 10"}, "2:4": {}}
    assert seen == [[], ["0"], ["0"], ["0"], ["2"], ["2"], ["2"], ["4"]]
    assert (curves.layers, curves.patterns) == (["0", "2", "4"], ["4x4", "2:4"])
    assert curves.curve("0", "4x4") == [(0.5, -1024 / total), (0.75, -1536 / total)]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_point_is_what_prune_gives(criterion: str) -> None:
    model, x = mlp().requires_grad_(False), torch.cat(vectors())

    def evaluate(candidate: nn.Module) -> float:
        return -float((candidate(x) - model(x)).square().sum())

    options: dict[str, Any] = {"criterion": criterion, "calibration_data": vectors()}
    curves = sensitivity(model, evaluate, (0.5, 0.8), ("4x4",), targets="2", **options)
    assert curves.baseline == 0.0
    assert [(s, value) for s, value in curves.curve("2", "4x4")] == [
        (s, evaluate(prune(model, s, "4x4", targets="2", **options))) for s in (0.5, 0.8)
    ]


def test_a_pruned_model_keeps_its_masks() -> None:
    model = prune(mlp(), 0.5, "4x4", ignore="4")
    seen = []
    sensitivity(
        model,
        lambda m: seen.append((sparsity_of(m[0]), sparsity_of(m[2]))) or 0.0,
        (0.75,),
        ("4x4",),
        targets=("0", "2"),
    )
    assert seen == [(0.5, 0.5), (0.75, 0.5), (0.5, 0.75)]


def test_layers_without_evidence_are_skipped() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    curves = sensitivity(
        model,
        lambda m: 1.0,
        (0.5,),
        ("4x4",),
        criterion="wanda",
        calibration_data=torch.ones(1, 8),
        forward_fn=lambda m, batch: m[0](batch),
    )
    assert curves.layers == ["0"]
    assert curves.skipped == {"4x4": {"1": "it was never called during calibration"}}


def test_layers_whose_hessian_says_nothing_are_skipped() -> None:
    curves = sensitivity(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
        lambda m: 1.0,
        (0.5, 0.75),
        ("4x4", "2:4"),
        criterion="sparsegpt",
        calibration_data=torch.zeros(4, 8),
        targets="re:.*",
    )
    assert curves.layers == ["2"]  # whose inputs are the first one's bias
    assert curves.skipped == {key: {"0": "its inputs were zero throughout calibration"} for key in ("4x4", "2:4")}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "good", torch.ones(2)])
def test_eval_fn_must_return_a_number(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"sensitivity: eval_fn returned .* for the unpruned model; it must return a fin"
    ):
        sensitivity(mlp(), lambda model: value)
    with pytest.raises(ValueError, match=r"for layer '0' at sparsity 0\.5, pattern '4x4'"):
        sensitivity(mlp(), lambda model: value if masked(model) else 1.0, (0.5,), "4x4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"eval_fn": 3}, TypeError, r"sensitivity: eval_fn must be callable as eval_fn\(model\), got 3"),
        ({"model": 3}, TypeError, r"sensitivity: model must be a torch\.nn\.Module, got int"),
        ({"sparsities": (0.5, 1.0)}, ValueError, r"sensitivity: sparsities must lie in \(0, 1\), got 1.0"),
        ({"sparsities": (0,)}, ValueError, r"sensitivity: sparsities must lie in \(0, 1\), got 0"),
        ({"sparsities": ()}, ValueError, "sensitivity: sparsities is empty"),
        ({"patterns": ()}, ValueError, "sensitivity: patterns is empty"),
        ({"patterns": ("16b4",)}, ValueError, "sensitivity: pattern '16b4' is unknown"),
        ({"patterns": 3}, TypeError, "sensitivity: patterns must be pattern names"),
        ({"patterns": ("channel",)}, ValueError, "sensitivity: pattern 'channel' removes whole channels"),
        ({"criterion": "wanda"}, ValueError, "sensitivity: criterion 'wanda' needs calibration_data"),
        ({"criterion": "x"}, ValueError, "criterion 'x' is unknown"),
        ({"targets": "nix"}, ValueError, "targets entry 'nix' matches no layer that can be pruned"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sensitivity(**({"model": mlp(), "eval_fn": quality} | kwargs))


POINTS = (
    SensitivityPoint("fc<1>", "16x4", 0.5, 0.9, 100),
    SensitivityPoint("fc<1>", "16x4", 0.925, 0.5, 100),
    SensitivityPoint("", "2:4", 0.5, 0.95, 100),
)


def test_table_columns_are_not_rounded_into_each_other() -> None:
    points = tuple(SensitivityPoint("a", "4x4", s, 0.5, 1) for s in (0.29, 0.9375, 0.94))
    assert SensitivityCurves(1.0, points).table().splitlines()[2] == "| layer | pattern | 29% | 93.75% | 94% |"


def test_table() -> None:
    assert SensitivityCurves(1.0, POINTS, "wanda").table().splitlines() == [
        "Change of the score (1 unpruned) when one layer is pruned, wanda:",
        "",
        "| layer | pattern | 50% | 92.5% |",
        "| --- | --- | ---: | ---: |",
        "| fc<1> | 16x4 | -0.1 | -0.5 |",
        "| (the model) | 2:4 | -0.05 |  |",
    ]


def test_svg(tmp_path: Path) -> None:
    path = SensitivityCurves(1.0, POINTS).plot(tmp_path / "curves.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{_SVG}svg"
    lines = [line.attrib["points"].split() for line in root.iter(f"{_SVG}polyline")]
    assert [len(line) for line in lines] == [3, 2]
    heights = [[float(point.split(",")[1]) for point in line] for line in lines]
    assert heights[0] == sorted(heights[0])  # falling quality goes down the page
    texts = [text.text for text in root.iter(f"{_SVG}text")]
    assert texts[-2:] == ["fc<1> 16x4", "(the model) 2:4"]
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for line in lines:
        for point in line:
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


@pytest.mark.parametrize("curve", [[], [(0.0, 0.0)], [(0.0, 5.0), (0.5, 5.0)], [(0.0, -1e9), (0.9, 1e-9)]])
def test_svg_of_degenerate_curves(curve: list[tuple[float, float]]) -> None:
    text = svg_chart([("a", curve)], "x", "y")
    assert ElementTree.fromstring(text).tag == f"{_SVG}svg"
    assert "nan" not in text
    assert "inf" not in text


def test_other_formats_need_matplotlib(tmp_path: Path) -> None:
    curves = SensitivityCurves(1.0, POINTS)
    if importlib.util.find_spec("matplotlib"):
        assert curves.plot(tmp_path / "curves.png").stat().st_size > 1000
    else:
        with pytest.raises(
            ImportError, match=r"'curves.png' needs matplotlib, which is not installed; write a .svg file"
        ):
            curves.plot(tmp_path / "curves.png")


def test_convolutions() -> None:
    curves = sensitivity(conv_net(), lambda m: 1.0, (0.5,), ("16x4",))
    assert curves.layers == ["3", "5", "8"]
    assert sorted(curves.skipped["16x4"]) == ["0", "4"]


def test_a_failing_evaluation_leaves_the_model_alone() -> None:
    model = prune(mlp(), 0.25, "4x4", targets="2")
    before, calls = snapshot(model), []

    def evaluate(candidate: nn.Module) -> float:
        calls.append(candidate)
        if len(calls) == 3:
            raise KeyError("on purpose")
        return 1.0

    with pytest.raises(KeyError, match="on purpose"):
        sensitivity(model, evaluate, (0.5,), "4x4", criterion="sparsegpt", calibration_data=vectors())
    assert same(model, before)


def test_earlier_orders_are_kept() -> None:
    model = prune(mlp(), 0.5, "4x4", permute="inputs", targets="0")
    curves = sensitivity(model, sparsity_of_first, (0.75,), ("4x4",), targets="0")
    assert curves.curve("0", "4x4") == [(0.75, 0.75)]


def sparsity_of_first(model: nn.Module) -> float:
    return sparsity_of(model[0])
