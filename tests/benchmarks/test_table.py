"""The image table: rows, their training on a little data, and the summary."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from benchmarks.training import rows as rows_module
from benchmarks.training.augment import Normalizer
from benchmarks.training.data import Split
from benchmarks.training.judge import Judge, check_rows, fits, judge_rows, latency, timed_again
from benchmarks.training.network import NetworkConfig, ResidualCNN, Stage
from benchmarks.training.rows import ROWS, fine_tuning
from benchmarks.training.runs import folder_name, row_named
from benchmarks.training.script import reported, write_table
from benchmarks.training.summary import ALONE, DISTILLED, FULL, SPARSEST, goals, markdown
from benchmarks.training.table import Batches, Lab
from benchmarks.training.trainer import accuracy
from fastcompress.pruning import masked, sparsity_of
from fastcompress.quantization import fake_quantized


def _split(count: int) -> Split:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (count,), generator=generator))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(rows_module, "EPOCHS", 4)
    monkeypatch.setattr(rows_module, "STUDENT_EPOCHS", 1)
    torch.manual_seed(0)
    train = _split(256)
    network = ResidualCNN(NetworkConfig(stem=16, stages=(Stage(16, 2), Stage(16, 2, residual=True)))).eval()
    return Lab(train, _split(32), _split(64), network, Normalizer.of(train.images), tmp_path)


def test_names_and_seeds_are_those_of_the_summary() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for name in (FULL, SPARSEST, ALONE, DISTILLED):
        row_named(ROWS, name)
    assert row_named(ROWS, FULL).seeds == row_named(ROWS, ALONE).seeds == (0, 1, 2)
    with pytest.raises(ValueError, match="is no row"):
        row_named(ROWS, "99%")


def test_all_fine_tuned_rows_have_the_same_settings() -> None:
    settings = {str(replace(fine_tuning(row, 0), seed=0)) for row in ROWS if not row.student}
    assert len(settings) == 1


def test_batches_depend_on_seed_and_epoch_only(lab: Lab) -> None:
    config = fine_tuning(row_named(ROWS, FULL), 0)
    first, again = (list(Batches(lab.train, lab.normalizer, config, 1)) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    other = next(iter(Batches(lab.train, lab.normalizer, config, 2)))
    assert not torch.equal(first[0][0], other[0])
    assert len(first) == len(Batches(lab.train, lab.normalizer, config, 1)) == 2


def test_the_full_recipe_prunes_and_quantizes_all_but_stem_and_head(lab: Lab) -> None:
    row = row_named(ROWS, FULL)
    assert not lab.is_done(row, 0)
    model = lab.run(row, 0, progress=False).model
    assert lab.is_done(row, 0)
    assert "stem.conv" not in masked(model)
    assert all(sparsity_of(layer) >= 0.85 for layer in masked(model).values())
    assert {"stem.conv", "head", *masked(model)} == set(fake_quantized(model))
    # Finished rows come back at once, the same.
    for one, other in zip(model.parameters(), lab.trained(row, 0).parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_baseline_trains_without_stages(lab: Lab) -> None:
    result = lab.run(row_named(ROWS, "dense, trained on"), 0, progress=False)
    assert masked(result.model) == {}
    assert len(result.history) == 4


def test_kept_networks_are_judged_again(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small a network may be faster in float.
    monkeypatch.setattr(fc, "convert", partial(fc.convert, only_if_faster=False))
    row = row_named(ROWS, "90% 4x4, gradual + distillation + W8A8")
    lab.run(row, 0, progress=False)
    example = lab.normalizer(lab.test.images)

    def tested(model: nn.Module) -> float:
        return accuracy(model, lab.test, lab.normalizer)

    judge, kept_in = Judge(lab.dense, example, tested, compiled=False), tmp_path / "kept"
    lines = judge_rows(lab, [row], judge, kept_in)
    assert [(line["row"], line["seed"], line["epochs"]) for line in lines] == [(row.name, 0, 4)]
    assert set(lines[0]["latency"]) == {"1", "64"}
    kept = [path.name for path in (tmp_path / "kept").iterdir()]
    assert kept == [folder_name(row.name, 0)]
    assert check_rows(lines, kept_in, lab.empty, judge) == 0
    assert "as in the table" in capsys.readouterr().out
    other_seed = {**lines[0], "seed": 1}  # not kept
    old = {**lines[0], "latency": {}, "commit": "of another day"}
    (again,) = timed_again([old, other_seed], [], kept_in, lab.empty, judge)
    assert set(again["latency"]) == {"1", "64"}
    assert {**again, "latency": {}} == {**lines[0], "latency": {}}
    assert timed_again([old], lines, kept_in, lab.empty, judge) == []  # judged just now
    lines[0]["accuracy"] += 1.0
    assert check_rows(lines, kept_in, lab.empty, judge) == 1
    assert "the table says" in capsys.readouterr().out
    assert check_rows([other_seed], kept_in, lab.empty, judge) == 0
    with pytest.raises(RuntimeError, match="the table says"):
        timed_again(lines, [], kept_in, lab.empty, judge)


def test_networks_without_all_channels_are_not_kept() -> None:
    def int8(width: int) -> nn.Module:
        x = torch.randn(4, 8)
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))
        return fc.quantize(model, fc.QuantConfig("W8A8", only_if_faster=False), calibration_data=[x], progress=False)

    dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    assert fits(int8(16), dense)
    assert not fits(int8(8), dense)


def test_lines_of_another_dense_network_do_not_stay(tmp_path: Path) -> None:
    table, dense, other = tmp_path / "table.json", tmp_path / "dense", tmp_path / "other"
    dense.write_bytes(b"dense")
    other.write_bytes(b"other")
    line = {"row": FULL, "seed": 0, "epochs": 1, "accuracy": 90.0}
    assert reported(table, dense) == []
    for fresh, file, kept in (([line], dense, 1), ([{**line, "seed": 1}], dense, 2), ([], dense, 2), ([], other, 0)):
        write_table(table, fresh, [FULL], {"dense": {"accuracy": 91.0}}, file, "module", lambda report: "table", "task")
        assert len(reported(table, file)) == kept
    assert reported(table, dense) == []


def _report() -> dict[str, object]:
    latency = {"1": {"fp32 eager": 5.0, "strongest dense": 3.0, "this": 1.0}}
    latency["64"] = {"fp32 eager": 4.0, "strongest dense": 3.0, "this": 1.0}
    lines = [{"row": FULL, "seed": s, "accuracy": 94.0 + s / 10, "bytes": 100_000} for s in range(3)]
    lines[0]["latency"] = latency
    lines += [{"row": ALONE, "seed": s, "accuracy": 92.0 + s / 10, "bytes": 1} for s in range(3)]
    lines += [{"row": DISTILLED, "seed": s, "accuracy": 92.25 + s / 10, "bytes": 1} for s in range(3)]
    place = {"cpu": "a CPU", "threads": 2, "torch": "2.13.0", "commit": "0" * 40}
    return {"dense": {"accuracy": 94.4, "bytes": 1_706_408}, "rows": lines, "machine": place, "command": "make"}


def test_goals_are_judged_by_means_and_deviations() -> None:
    judged = {title: (seen, met) for title, seen, met in goals(_report())}
    assert judged["full recipe at 90% loses at most 0.3 points"] == ("0.30 points, 3 seeds", True)
    assert judged["full recipe at 95% loses at most 1.0 point"] == ("not measured", None)
    assert judged["full recipe at 90% runs at least 5× faster than torch fp32, batch 1"] == ("5.00×", True)
    assert judged["full recipe at 90% runs at least 5× faster than torch fp32, batch 64"] == ("4.00×", False)
    student = judged["a student gains from distillation by more than 2 standard deviations"]
    assert student == ("+0.25 points, the larger sd is 0.10", True)


def test_the_summary_keeps_losses() -> None:
    text = markdown(_report())
    assert f"| {FULL} | 3 | 94.10 ± 0.10 | 0.10 | 1.00 (3.0×, 5.0×) | 1.00 (3.0×, 4.0×) |" in text
    assert "4.00× | **missed** |" in text


def test_times_every_dense_form_or_none(lab: Lab) -> None:
    seen = latency(lab.dense, lab.dense, torch.randn(2, 1, 28, 28), compiled=False, min_time_s=0.001)
    assert {"fp32 eager", "fp32 channels-last", "bf16"} <= set(seen)
    assert seen["strongest dense"] == min(seen[name] for name in ("fp32 eager", "fp32 channels-last", "bf16"))

    class Float32Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.float())

    with pytest.raises(RuntimeError, match=r"latency: bf16 \(RuntimeError: .*did not run"):
        latency(lab.dense, Float32Only(), torch.randn(2, 1, 28, 28), compiled=False, min_time_s=0.001)
