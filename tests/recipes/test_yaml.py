"""Recipes as files: what they mean, and errors that name the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastcompress as fc
from fastcompress.distillation import SelfDistillation
from fastcompress.recipes import QAT, Distillation, Pruning, load_recipe, parse_recipe

from .small import loader, network, same_state

GOOD = """\
epochs: 3
learning_rate: constant
seed: 4
stages:
  - pruning: {sparsity: 0.75, pattern: 4x4, end: 2, frequency: 2, ignore: ["9"]}
  - distillation:
      teacher: dense
      losses: [logits, feature]
      temperature: 2
  - qat: {scheme: W8A8, start: 1, freeze_at: 2.5}
"""


def test_a_file_means_the_same_as_the_stages(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    found = load_recipe(path)
    stages = (
        Pruning(0.75, pattern="4x4", end=2, frequency=2, ignore=("9",)),
        Distillation("dense", losses=("logits", "feature"), temperature=2),
        QAT("W8A8", start=1, freeze_at=2.5),
    )
    assert found.stages == stages
    assert found.settings == {"epochs": 3, "learning_rate": "constant", "seed": 4}
    options: dict[str, Any] = {"progress": False, "convert": False}
    one = fc.compress(network(), path, loader(), **options)
    other = fc.compress(network(), stages, loader(), epochs=3, learning_rate="constant", seed=4, **options)
    assert same_state(one.trained, other.trained)


def test_patterns_are_words_whatever_yaml_thinks() -> None:
    stages = parse_recipe("stages:\n  - pruning: {sparsity: 0.5, pattern: 2:4}\n").stages
    assert stages == (Pruning(0.5, pattern="2:4"),)


def test_teachers() -> None:
    kinds = {"self": SelfDistillation, "tests.recipes.small:network": type(network())}
    for name, kind in kinds.items():
        (stage,) = parse_recipe(f"stages:\n- distillation: {{teacher: '{name}'}}").stages
        assert isinstance(stage, Distillation)
        assert isinstance(stage.teacher, kind)


WRONG = [
    ("", "r:1: the file is empty"),
    ("epochs: 3\n", "r:1: the recipe has no stages"),
    ("epochs: 3\nstage:\n", "r:2: the recipe: unknown field 'stage'; did you mean 'stages'?"),
    ("epochs: 3\nepochs: 4\nstages: []\n", "r:2: the recipe: field 'epochs' is given twice"),
    ("stages:\n  pruning: 3\n", "r:2: stages must be a list"),
    ("stages:\n  - pruning: {sparsitiy: 0.9}\n", "r:2: Pruning: unknown field 'sparsitiy'; did you mean 'sparsity'?"),
    ("stages:\n  - pruning: {pattern: 4x4}\n", "r:2: Pruning: field 'sparsity' is missing"),
    ("stages:\n  - prunning: {}\n", "r:2: a stage: unknown field 'prunning'; did you mean 'pruning'?"),
    ("stages:\n  - pruning: {sparsity: 0.5}\n    qat: {}\n", "r:2: an entry of stages names one stage, this one 2"),
    ("stages:\n  - qat:\n      start: 1\n      freeze_at: 0.5\n", "r:4: QAT: freeze_at must not be before start=1"),
    ("stages:\n  - pruning:\n      sparsity: 1.5\n", "r:3: PrunerConfig: sparsity"),
    ("stages:\n  - pruning:\n      sparsity: 0.5\n      pattern: 5by5\n", "r:4: PrunerConfig: pattern '5by5'"),
    ("stages:\n  - distillation: {teacher: nobody}\n", "r:2: Distillation: teacher must be 'dense', 'self' or"),
    ("stages:\n  - distillation: {teacher: 'no.such:thing'}\n", "r:2: Distillation: teacher 'no.such:thing' failed"),
    ("stages:\n  - [\n", "not valid YAML"),
    ("a: 1\n---\nb: 2\n", "not valid YAML"),
    ("- 1\n", "r:1: the recipe must be a mapping"),
    ("stages:\n  - pruning: !!python/object/apply:os.system ['true']\n", "r:2: Pruning must be a mapping"),
    ("stages:\n  - pruning: {sparsity: !!python/name:os.system ''}\n", "r:2: cannot be read"),
    ("stages:\n  - pruning: {sparsity: &a [*a]}\n", "r:2: "),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_every_error_names_the_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_recipe(text, "r")
    assert message in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_recipe(path)
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ValueError, match="at most"):
        load_recipe(path)


def test_a_wrong_setting_is_refused_by_compress(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("epochs: 3", "epochs: three"))
    with pytest.raises(ValueError, match="epochs must be a positive whole number, got 'three'"):
        fc.compress(network(), path, loader(), progress=False)
