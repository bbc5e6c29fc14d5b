"""Recipes written as YAML read back equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from fastcompress.distillation import FeatureLoss, LogitsLoss, RelationalLoss, SelfDistillation, TeacherCache
from fastcompress.recipes import QAT, Distillation, Pruning, RunSettings, dump_recipe, parse_recipe
from fastcompress.recipes.stages import Stage

STAGES: list[Stage] = [
    Pruning(0.9),
    Pruning(0.5, "2:4", start=1, end=2.5, frequency=3, targets=("0", "re:.*conv.*", "1e5", "null", "true", "é: [x]")),
    Pruning({"0": 0.5, "2:4": 0.75, "head": 0.0}, "4x4", ignore=("no", "~", "a, b", "# c", "\n", "")),
    Pruning(1e-5, criterion="taylor", start=1, schedule="iterative", rounds=3, rewind=0.5, seed=2**63),
    Pruning(0.8, schedule="constant", regrow="rigl", end=4, scope="global"),
    QAT(),
    QAT("W8A8", start=5, freeze_at=7, method="lsq", fold_batchnorm=False, observer_momentum=0.1, targets=("12:30",)),
    Distillation("dense"),
    Distillation(SelfDistillation(), losses=("logits", "feature"), temperature=2, weight=0.5, end=3),
    Distillation(
        SelfDistillation("snapshot", every=4),
        losses=(LogitsLoss(8.0), FeatureLoss("a.0", "b.1", weight=2), RelationalLoss(), "attention"),
    ),
]


@pytest.mark.parametrize("stage", STAGES, ids=range(len(STAGES)))
def test_a_stage_reads_back_equal(stage: Stage) -> None:
    found = parse_recipe(dump_recipe(stage))
    assert found.stages == (stage,)
    assert found.settings == RunSettings()


def test_settings_read_back_equal() -> None:
    settings = RunSettings(8, "cosine", 0.01, 100, torch.bfloat16, 1.0, 50, 7)
    stages = (Pruning(0.9, "4x4"), QAT(start=5))
    found = parse_recipe(dump_recipe(stages, settings))
    assert (found.stages, found.settings) == (stages, settings)
    assert parse_recipe(dump_recipe([], settings)).stages == ()


def test_the_text_is_what_a_person_would_write() -> None:
    text = dump_recipe([Pruning(0.9, "4x4", end=6), QAT(), Distillation("dense")], RunSettings(epochs=8))
    assert text == (
        "epochs: 8\nstages:\n  - pruning: {sparsity: 0.9, pattern: 4x4, end: 6}\n  - qat\n"
        "  - distillation: {teacher: dense}\n"
    )


def test_readers_of_yaml_1_1_see_the_same_words() -> None:
    (entry,) = yaml.safe_load(dump_recipe(STAGES[1]))["stages"]
    assert entry["pruning"]["pattern"] == "2:4"
    assert entry["pruning"]["targets"] == ["0", "re:.*conv.*", "1e5", "null", "true", "é: [x]"]


def test_a_network_as_teacher_is_written_by_reference() -> None:
    stage = Distillation(nn.Linear(2, 2), losses=("feature",))
    with pytest.raises(ValueError, match="the teacher is a Linear, which text cannot hold; pass teacher='module:call"):
        dump_recipe(stage)
    text = dump_recipe(stage, teacher="tests.recipes.small:network")
    assert "teacher: tests.recipes.small:network" in text.replace("'", "")
    (found,) = parse_recipe(text).stages
    assert isinstance(found, Distillation)
    assert isinstance(found.teacher, nn.Module)
    assert found.losses == ("feature",)


def test_a_cache_is_written_with_its_arguments(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "cache", max_bytes=1000, recompute="missing")
    (found,) = parse_recipe(dump_recipe(Distillation("dense", cache=cache))).stages
    assert isinstance(found, Distillation)
    assert found.cache is not None
    assert (found.cache.directory, found.cache.max_bytes, found.cache.recompute) == (cache.directory, 1000, "missing")
    (short,) = parse_recipe("stages:\n- distillation: {teacher: dense, cache: some/where}\n").stages
    assert isinstance(short, Distillation)
    assert short.cache is not None
    assert short.cache.directory == Path("some/where")


@pytest.mark.parametrize(
    ("stages", "settings", "kind", "message"),
    [
        ([Pruning(0.5, ignore=(nn.Linear,))], None, ValueError, "ignore holds the class Linear"),
        ([Pruning({nn.Linear: 0.5})], None, ValueError, "sparsity holds the class Linear"),
        ([QAT()], RunSettings(learning_rate=lambda progress: 1.0), ValueError, "learning_rate is a function"),
        ([3], None, TypeError, "stages holds a int"),
    ],
)
def test_what_text_cannot_hold(stages: Any, settings: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"dump_recipe: {message}"):
        dump_recipe(stages, settings)
