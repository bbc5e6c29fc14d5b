"""The text table: batches, the dense network's file, rows on a little data, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import fastcompress as fc
from benchmarks.training import judge
from benchmarks.training.runs import row_named
from benchmarks.training.text import dense as dense_module
from benchmarks.training.text import rows as rows_module
from benchmarks.training.text import table
from benchmarks.training.text.data import KEPT, LENGTH, TextDataset, TextSplit, load_texts
from benchmarks.training.text.dense import load_dense, train_dense
from benchmarks.training.text.network import PATCH, TextConfig
from benchmarks.training.text.rows import ROWS, fine_tuning
from benchmarks.training.text.summary import markdown
from benchmarks.training.text.table import TextLab
from benchmarks.training.text.trainer import TextBatches, TextSettings, accuracy
from fastcompress.pruning import masked, sparsity_of
from fastcompress.quantization import fake_quantized
from tests.benchmarks.catalog_files import invented_language, write_wheel

FULL = row_named(ROWS, "90% 16x4, gradual + distillation + W8A8")
TINY = TextConfig(classes=2, width=64, layers=1, heads=2, byte_width=8)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_wheel(tmp_path, {"aa": invented_language("abcdef", 250), "cc": invented_language("efghij", 250)})


@pytest.fixture
def data(wheel: Path) -> TextDataset:
    return load_texts(wheel, fewest=200)


@pytest.fixture
def lab(data: TextDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextLab:
    monkeypatch.setattr(rows_module, "EPOCHS", 4)
    monkeypatch.setattr(rows_module, "STUDENT_EPOCHS", 1)
    monkeypatch.setattr(judge, "latency", partial(judge.latency, min_time_s=0.001))
    path = tmp_path / "dense.safetensors"
    train_dense(data, TINY, TextSettings(epochs=3, peak=3e-3), path, tmp_path / "dense", progress=False)
    return TextLab(data, load_dense(path, data), tmp_path)


def test_all_fine_tuned_rows_have_the_same_settings() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len({replace(fine_tuning(row, 0), seed=0) for row in ROWS if not row.student}) == 1
    with pytest.raises(ValueError, match="is no row"):
        row_named(ROWS, "99%")


def test_windows_hold_the_text_from_any_place_of_its_first_token_on() -> None:
    texts = torch.zeros(400, KEPT, dtype=torch.uint8)
    texts[:200, :10] = torch.arange(1, 11)
    texts[200:, :100] = torch.arange(1, 101)
    split = TextSplit(texts, torch.arange(400) // 200)
    settings = TextSettings(epochs=1, peak=1.0, batch=100)
    starts: tuple[set[int], set[int]] = (set(), set())
    for windows, labels in TextBatches(split, settings, 0):
        assert windows.shape == (100, LENGTH)
        for window, label in zip(windows, labels.tolist(), strict=True):
            seen = window[window != 0]
            assert torch.equal(seen, torch.arange(int(seen[0]), int(seen[0]) + len(seen)))
            before = int((window != 0).nonzero()[0, 0])
            assert before < PATCH
            starts[label].add(int(seen[0]) - 1 - before)
            assert label or len(seen) == 10
    assert starts[0] == {0, -1, -2, -3}
    assert min(starts[1]) == -3
    assert max(starts[1]) == 100 - LENGTH


def test_batches_depend_on_seed_and_epoch_only(data: TextDataset) -> None:
    settings = TextSettings(epochs=2, peak=1.0, batch=64)
    first, again = (list(TextBatches(data.train, settings, 1)) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], next(iter(TextBatches(data.train, settings, 0)))[0])
    assert len(first) == len(data.train) // 64


def test_the_dense_network_learns_and_comes_back_from_its_file(lab: TextLab, data: TextDataset) -> None:
    record = json.loads((lab.work / "dense.json").read_text(encoding="utf-8"))
    assert record["test_accuracy"] == round(accuracy(lab.dense, data.test), 4) > 80
    assert record["languages"] == ["aa", "cc"]
    assert all(parameter.dtype == torch.float32 for parameter in lab.dense.parameters())
    assert not lab.dense.training


def test_a_dense_network_of_other_texts_is_refused(lab: TextLab, data: TextDataset) -> None:
    other = replace(data, test=data.validation)
    with pytest.raises(ValueError, match="was not trained on these texts"):
        load_dense(lab.work / "dense.safetensors", other)
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks\.training\.text\.dense"):
        load_dense(lab.work / "none.safetensors", data)


def test_the_full_recipe_prunes_quantizes_and_comes_back(lab: TextLab) -> None:
    assert not lab.is_done(FULL, 0)
    model = lab.run(FULL, 0, progress=False).model
    assert lab.is_done(FULL, 0)
    layers = {f"blocks.0.{name}" for name in ("qkv", "out", "up", "down")}
    assert set(masked(model)) == layers
    assert all(sparsity_of(layer) >= 0.85 for layer in masked(model).values())
    assert set(fake_quantized(model)) == {"patches", "head", *layers}
    # Finished rows come back at once, the same.
    for one, other in zip(model.parameters(), lab.trained(FULL, 0).parameters(), strict=True):
        assert torch.equal(one, other)


def test_rows_are_converted_judged_and_timed(lab: TextLab, data: TextDataset) -> None:
    rows = [
        row_named(ROWS, "90% 16x4, one-shot, not trained"),
        FULL,
        row_named(ROWS, "student (¼ of the parameters), distilled"),
    ]
    lab.run(rows[2], 0, progress=False)
    example = data.test.inputs()[:64]
    judging = judge.Judge(lab.dense, example, lambda model: accuracy(model, data.test), compiled=False)
    lines = judge.judge_rows(lab, rows, judging, lab.work / "kept")
    assert [(line["row"], line["epochs"]) for line in lines] == [(rows[0].name, 0), (rows[2].name, 1)]
    assert {"fp32 eager", "bf16", "strongest dense", "this"} <= set(lines[1]["latency"]["64"])
    place = {"cpu": "a CPU", "threads": 2, "torch": "2.13.0", "commit": "0" * 40}
    dense = {"accuracy": 91.0, "bytes": 6_000_000}
    text = markdown({"dense": dense, "languages": 2, "rows": lines, "machine": place, "command": "make"})
    assert f"| {rows[2].name} | 1 | {lines[1]['accuracy']:.2f} |" in text


def test_the_network_freezes(lab: TextLab, data: TextDataset) -> None:
    quantized = fc.quantize(
        lab.dense, fc.QuantConfig("W8A8", only_if_faster=False), calibration_data=[data.train.inputs()[:64]]
    )
    frozen = fc.freeze(quantized, data.test.inputs()[:64])
    assert frozen.additions == 2
    with torch.no_grad():
        assert torch.equal(frozen(data.test.inputs()[:5]), quantized(data.test.inputs()[:5]))


def test_the_command_trains_a_row_and_finishes(
    lab: TextLab, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lab.work / "table.json"
    monkeypatch.setattr(table, "TABLE", path)
    monkeypatch.setattr(table, "load_texts", lambda place: load_texts(place, fewest=200))
    row = "student (¼ of the parameters), alone"
    files = ["--data", str(wheel), "--dense", str(lab.work / "dense.safetensors"), "--work", str(lab.work / "rows")]
    assert table.main(["train", "--row", row, "--seed", "0", *files]) == 0
    assert f"{row}, seed 0: validation" in capsys.readouterr().out
    assert table.main(["finish", "--row", row, "--no-compile", *files]) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [(line["row"], line["seed"]) for line in report["rows"]] == [(row, 0)]
    assert f"| {row} | 1 |" in path.with_suffix(".md").read_text(encoding="utf-8")
    # What is in the table is not trained again.
    assert table.main(["train", "--row", row, "--seed", "0", *files[:4], "--work", str(lab.work / "new")]) == 0
    assert not (lab.work / "new").exists()


def test_a_command_without_data_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["train", "--data", str(tmp_path / "none")]) == 1
    assert dense_module.main(["--data", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("pip download --no-deps --dest build/data Django==5.2.19") == 2
