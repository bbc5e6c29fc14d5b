"""`compression_report`: the numbers of every stage, and the pages made of them."""

from __future__ import annotations

import builtins
import dataclasses
import html
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.nn.mask import masked
from fastcompress.report import CompressionReport, compression_report, size_bytes
from fastcompress.report.compression import ReportLayer, StageRow
from fastcompress.report.compression.series import pareto_points
from fastcompress.report.compression.stages import stage_models

NASTY = '<script>alert("x")</script> & | `code` *bold*'

#: Milliseconds of one call by form, for every batch size.
SPEED = {
    "dense, fp32 eager": 8.0,
    "dense, fp32 channels-last": 6.0,
    "dense, bf16": 4.0,
    "pruned, dense kernels": 7.0,
    "pruned, dense kernels, channels-last": 5.0,
    "pruned, sparse float kernels": 3.0,
    "int8 without sparsity": 2.0,
    "compressed": 1.0,
    "compressed, frozen": 0.5,
}


def stopwatch(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """`SPEED`, and compressed layers twice as fast as dense ones."""
    for call in calls.values():
        call()
    layer = {"dense": 2e-3, "int8": 1e-3, "sparse": 1e-3, "sparse int8": 5e-4}
    return {name: layer.get(name, SPEED.get(name, 9.0) * 1e-3) for name in calls}


def make_net() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Linear(8 * 4 * 4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def result() -> Any:
    torch.manual_seed(1)
    data = [(torch.rand(8, 4, 4, 4), torch.randint(3, (8,))) for _ in range(3)]
    recipe = [fc.recipes.Pruning(0.75, pattern="4x4", end=1, ignore=("3",)), fc.recipes.QAT("W8A8", start=1)]
    scores = iter([0.5, 0.625, 0.875, 0.75])  # two epochs, dense, compressed
    return fc.compress(
        make_net(), recipe, data, epochs=2, eval_fn=lambda _: next(scores), progress=False, timer=stopwatch
    )


@pytest.fixture(scope="module")
def report(result: Any) -> CompressionReport:
    return compression_report(result, batches=(1, 5), timer=stopwatch, eval_fn=lambda _: 0.8125, title="A net")


@pytest.fixture
def nasty() -> CompressionReport:
    """All strings hostile, nothing measured."""
    return CompressionReport(
        title=NASTY,
        dense_score=0.9,
        score=0.8,
        batches=(1,),
        stages=(
            StageRow(NASTY, True, 1000, 0.9, {1: 0.002}, NASTY),
            StageRow("compressed", False, 100, 0.8, {1: 0.001}),
        ),
        layers=(ReportLayer(NASTY, NASTY, NASTY, 0.5, NASTY, NASTY, 2e-3, 1e-3, 2.0, 0.5, NASTY),),
        history=({"epoch": 1, "step": 1, "losses": {NASTY: 1.0}, "sparsity": 0.5, "score": 0.8, "learning_rate": 0.1,
                  "seconds": 1.0},),
        recipe={"stages": [{"kind": NASTY, "targets": [NASTY], "start": 0.0}], "note": NASTY},
        given_up=({"layer": NASTY, "what": NASTY, "before": NASTY, "after": NASTY, "score": 0.8},),
        environment={"cpu": NASTY, "threads": 1},
    )  # fmt: skip


class Page(HTMLParser):
    """The text, tags and attributes of a page; every tag closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append("")
        if tag not in ("meta", "path", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "td" in self.open:
            self.cells[-1][-1] += data


def page(report: CompressionReport, tmp_path: Path) -> tuple[str, Page]:
    report.save(tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_stages_and_their_numbers(report: CompressionReport, result: Any) -> None:
    assert [row.name for row in report.stages] == [
        "dense, fp32 eager", "dense, fp32 channels-last", "dense, bf16", "pruned, dense kernels",
        "pruned, sparse float kernels", "int8 without sparsity", "compressed", "compressed, frozen",
    ]  # fmt: skip
    rows = {row.name: row for row in report.stages}
    assert rows["pruned, dense kernels"].seconds == {1: 5e-3, 5: 5e-3}  # the faster of its two memory formats
    assert rows["compressed"].seconds == {1: 1e-3, 5: 1e-3}
    assert rows["dense, fp32 eager"].size_bytes == rows["pruned, dense kernels"].size_bytes == size_bytes(result.dense)
    assert rows["dense, bf16"].size_bytes < 0.6 * size_bytes(result.dense)
    assert rows["compressed"].size_bytes == size_bytes(result.model)
    scores = [row.score for row in report.stages]
    assert scores == [0.875, 0.875, None, 0.8125, 0.8125, None, 0.75, 0.8125]
    assert report.drop == 0.125
    assert report.strongest_dense(5).name == "dense, bf16"  # type: ignore[union-attr]
    assert report.speedup(1) == 4.0
    assert report.compressed is rows["compressed"]
    assert report.speedup(1, rows["compressed, frozen"]) == 8.0
    assert report.speedup(1, rows["pruned, dense kernels"]) == 0.8


def test_the_stages_are_what_they_are_called(result: Any) -> None:
    made = {name: make() for name, _, make in stage_models(result, stopwatch, None)}
    x = torch.rand(2, 4, 4, 4)
    assert not masked(made["pruned, dense kernels"])
    weight = made["pruned, dense kernels"][1].weight
    assert (weight == 0).float().mean() == pytest.approx(0.75, abs=1 / 16)
    torch.testing.assert_close(made["pruned, sparse float kernels"](x), made["pruned, dense kernels"](x))
    assert type(made["pruned, sparse float kernels"][1]).__name__ == "SparseLinear"
    assert type(made["int8 without sparsity"][1]).__name__ == "QuantLinear"
    assert made["compressed"] is result.model
    assert type(result.model[1]).__name__ == "SparseQuantLinear"
    assert masked(result.trained), "the trained model keeps its masks"


def test_layers(report: CompressionReport) -> None:
    layers = {layer.name: layer for layer in report.layers}
    assert list(layers) == ["0.0", "1", "3"]
    assert layers["1"].sparsity == 0.75
    assert layers["3"].sparsity is None
    assert {layer.precision for layer in report.layers} == {"int8"}
    assert "bsr4x4" in layers["1"].kernel
    assert layers["1"].speedup == pytest.approx(layers["1"].dense_seconds / layers["1"].seconds)  # type: ignore[operator]


def test_a_recipe_without_pruning_has_only_two_stages() -> None:
    data = [(torch.rand(4, 4, 4, 4), torch.randint(3, (4,)))]
    result = fc.compress(make_net(), fc.recipes.QAT(), data, epochs=1, progress=False, timer=stopwatch)
    report = compression_report(result, batches=(2,), timer=stopwatch, bf16=False)
    assert [row.name for row in report.stages if not row.dense] == ["compressed", "compressed, frozen"]
    assert report.score is None
    assert report.drop is None
    assert pareto_points(report, 2) == []
    assert "score" not in str(report)


def test_a_failing_form_stays_with_its_error(result: Any) -> None:
    class OnlyFloat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return x

    dense = nn.Sequential(OnlyFloat(), *make_net()).eval()
    report = compression_report(dataclasses.replace(result, dense=dense), batches=(1,), timer=stopwatch)
    row = next(row for row in report.stages if row.name == "dense, bf16")
    assert row.seconds == {1: None}
    assert row.note == "TypeError: float32 only"
    assert report.strongest_dense(1).name == "dense, fp32 channels-last"  # type: ignore[union-attr]


def test_a_result_that_does_not_run_is_an_error(result: Any) -> None:
    broken = dataclasses.replace(result, model=nn.Linear(5, 5))
    with pytest.raises(RuntimeError, match="compressed model did not run"):
        compression_report(broken, batches=(1,), timer=stopwatch)


def test_models_and_threads_are_left_as_they_were(result: Any) -> None:
    before = {name: tensor.clone() for name, tensor in result.trained.state_dict().items()}
    threads = torch.get_num_threads()
    result.trained.train()
    report = compression_report(result, batches=(1,), threads=1, timer=stopwatch)
    assert report.environment["threads"] == 1
    assert torch.get_num_threads() == threads
    assert result.trained.training
    after = result.trained.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_numbers_of_the_page_are_those_of_to_dict(report: CompressionReport, tmp_path: Path) -> None:
    known = json.loads(json.dumps(report.to_dict()))
    text, parsed = page(report, tmp_path)
    rows = {row[0]: row for row in parsed.cells if row}
    for stage in known["stages"]:
        line = rows[stage["name"]]
        assert line[1] == ("" if stage["score"] is None else f"{stage['score']:.4f}")
        for at, batch in ((3, "1"), (5, "5")):
            assert line[at] == f"{stage['seconds'][batch] * 1e3:.4g}"
            assert line[at + 1] == f"{4e-3 / stage['seconds'][batch]:.2f}×"
    for layer in known["layers"]:
        line = rows[layer["name"]]
        assert f"{layer['speedup']:.2f}×" in line
        assert layer["kernel"] in line
        assert layer["reason"] in line
    assert f"{known['size_ratio']:.2f}× smaller" in text
    assert "0.1250 lost" in text
    assert "4.00× as fast" in text
    assert known["accuracy"] == {"dense": 0.875, "compressed": 0.75, "drop": 0.125}
    assert [row["epoch"] for row in known["history"]] == [1, 2]
    assert rows["2"][-3] == "0.6250"  # the score after the second epoch
    assert "pattern = 4x4" in text


def test_json(report: CompressionReport, tmp_path: Path) -> None:
    report.save(str(tmp_path / "new" / "out.json"))
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == json.loads(json.dumps(report.to_dict()))


def test_the_page_needs_nothing_else(report: CompressionReport, nasty: CompressionReport, tmp_path: Path) -> None:
    for each in (report, nasty):
        text, parsed = page(each, tmp_path)
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
        assert parsed.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
        assert not [name for name, _ in parsed.attributes if name in ("src", "href") or name.startswith("on")]
        assert "@media (prefers-color-scheme: dark)" in text
        assert "color-scheme: light dark" in text
        assert text.count("<svg") == text.count("</svg>") >= 3


def test_svg_takes_every_colour_from_the_style(report: CompressionReport, tmp_path: Path) -> None:
    text, _ = page(report, tmp_path)
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert not re.search(r'(fill|stroke)="|#[0-9a-f]{3}|rgb\(', drawings)
    used = set(re.findall(r'class="(\w+)"', drawings))
    assert used <= set(re.findall(r"\.(\w+)", text.partition("</style>")[0]))


def test_every_string_is_escaped(nasty: CompressionReport, tmp_path: Path) -> None:
    text, parsed = page(nasty, tmp_path)
    assert "<script" not in text
    assert text.count(html.escape(NASTY)) >= 10
    assert "".join(parsed.words).count(NASTY) >= 10


def test_markdown(report: CompressionReport, nasty: CompressionReport, tmp_path: Path) -> None:
    report.save(tmp_path / "out.md")
    lines = (tmp_path / "out.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# A net"
    start = lines.index("## Every stage") + 2
    assert lines[start].split(" | ")[:2] == ["| model", "score"]
    assert set(lines[start + 1]) <= set("|-: ")
    assert lines[start + 2].startswith("| dense, fp32 eager | 0.8750 | ")
    assert lines[start + 8].startswith("| **compressed** | **0.7500** | ")
    nasty.save(tmp_path / "nasty.md")
    text = (tmp_path / "nasty.md").read_text(encoding="utf-8")
    assert "<script" not in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            bars = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
            assert len(set(bars)) == 1, "every row has as many cells as the heading"


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the extra report is not installed")
def test_png(report: CompressionReport, nasty: CompressionReport, tmp_path: Path) -> None:
    for each in (report, dataclasses.replace(nasty, title="$\\frac{$")):
        each.save(tmp_path / "out.png")
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_png_without_matplotlib_names_the_extra(
    report: CompressionReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"fastcompress\[report\]"):
        report.save(tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_other_suffixes_are_refused(report: CompressionReport, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'.pdf'; allowed are .html, .md, .png, .json"):
        report.save(tmp_path / "out.pdf")
    assert not list(tmp_path.iterdir())


def test_result_report_writes_the_page(result: Any, tmp_path: Path) -> None:
    report = result.report(tmp_path / "out.html", batches=(1,), timer=stopwatch)
    assert report.batches == (1,)
    assert "<title>Compression of Sequential</title>" in (tmp_path / "out.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": (0,)}, ValueError, "batches must be positive whole numbers, got 0"),
        ({"batches": (True,)}, ValueError, "got True"),
        ({"batches": 4}, TypeError, "batches must be batch sizes"),
        ({"threads": 0}, ValueError, "threads must be a positive whole number or None, got 0"),
        ({"min_seconds": math.inf}, ValueError, "min_seconds must be a positive number, got inf"),
        ({"title": 3}, TypeError, "title must be a string or None, got int"),
    ],
)
def test_wrong_options(result: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compression_report(result, **options)


def test_not_a_result() -> None:
    with pytest.raises(TypeError, match=r"got Linear without model, trained, dense"):
        compression_report(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_the_strongest_dense_form_is_in_the_plot(report: CompressionReport) -> None:
    points = {point.label: point for point in pareto_points(report, 1)}
    assert points["dense, fp32 channels-last"].x == 6.0
    assert points["dense, bf16 (score of fp32 eager)"].y == 0.875
    assert set(points) == {
        "dense, fp32 channels-last", "dense, bf16 (score of fp32 eager)", "pruned, dense kernels",
        "pruned, sparse float kernels", "compressed", "compressed, frozen",
    }  # fmt: skip
