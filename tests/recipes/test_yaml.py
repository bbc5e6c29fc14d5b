"""Recipes as files: what they mean, and errors that name the line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fastcompress as fc
from fastcompress.distillation import FeatureLoss, SelfDistillation
from fastcompress.recipes import QAT, Distillation, Pruning, RunSettings, load_recipe, parse_recipe

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
    assert found.settings == RunSettings(epochs=3, learning_rate="constant", seed=4)
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
    ("epochs: 3\nepochs: 4\nstages: []\n", "r:2: 'epochs' is given twice; it is in line 1 too"),
    ("stages:\n  pruning: 3\n", "r:1: stages must be a list, got a mapping"),
    ("stages:\n  - pruning: {sparsitiy: 0.9}\n", "r:2: Pruning: unknown field 'sparsitiy'; did you mean 'sparsity'?"),
    ("stages:\n  - pruning: {pattern: 4x4}\n", "r:2: Pruning: field 'sparsity' is missing"),
    ("stages:\n  - prunning: {}\n", "r:2: the recipe: unknown stage 'prunning'; did you mean 'pruning'?"),
    (
        "stages:\n  - pruning: {sparsity: 0.5}\n    qat: {}\n",
        "r:2: a stage is written 'name: {fields}', one in each list entry, got a mapping with 2 keys",
    ),
    ("stages:\n  - qat:\n      start: 1\n      freeze_at: 0.5\n", "r:4: QAT: freeze_at must not be before start=1"),
    ("stages:\n  - pruning:\n      sparsity: 1.5\n", "r:3: Pruning: sparsity must lie in [0, 1)"),
    ("stages:\n  - pruning:\n      sparsity: 0.5\n      pattern: 5by5\n", "r:4: Pruning: pattern '5by5'"),
    ("stages:\n  - distillation: {teacher: nobody}\n", "r:2: Distillation: teacher must be 'dense', 'self' or"),
    ("stages:\n  - distillation: {teacher: 'no.such:thing'}\n", "r:2: Distillation: teacher 'no.such:thing' failed"),
    ("stages:\n  - [\n", "r:3: not valid YAML: "),
    ("a: 1\n---\nb: 2\n", "r:2: a second document begins here"),
    ("- 1\n", "r:1: the recipe must be a mapping"),
    ("stages:\n  - pruning: !!python/object/apply:os.system ['true']\n", "r:2: tag '!!python/object/apply:os.system'"),
    (
        "stages:\n  - pruning: {sparsity: !!python/name:os.system ''}\n",
        "r:2: tag '!!python/name:os.system' is not allowed",
    ),
    (
        "stages:\n  - pruning: {sparsity: &a [*a]}\n",
        "r:2: more than 16 levels; aliases (*name) that grow are not allowed",
    ),
    ("stages:\n  - pruning: {sparsity: {a: 0.5, a: 0.9}}\n", "r:2: 'a' is given twice"),
    (
        "stages:\n  - pruning:\n      sparsity: half\n",
        "r:3: Pruning: sparsity must be a number or a mapping of names to num",
    ),
    (
        "stages:\n  - pruning:\n      sparsity: 0.5\n      rounds: 2.5\n",
        "r:4: Pruning: rounds must be a whole number, got '2.5'",
    ),
    ("stages:\n  - pruning: {sparsity: 0.5, start: 3,\n     end: 2}\n", "r:3: Pruning: end must not be before start=3"),
    (
        "stages:\n  - pruning: {sparsity: 0.5, rewind: 2,\n      schedule: iterative}",
        "r:2: Pruning: rewind must not be after",
    ),
    ("stages:\n  - qat:\n      fold_batchnorm: yes\n", "r:3: QAT: fold_batchnorm must be true or false, got 'yes'"),
    ("stages:\n  - qat: 3\n", "r:2: QAT: expected a mapping of its fields, got '3'"),
    ("stages:\n  - distillation: {losses: logits}\n", "r:2: Distillation: field 'teacher' is missing"),
    (
        "stages:\n- distillation: {teacher: dense,\n    losses: [logit]}",
        "r:3: Distillation: unknown loss 'logit'; did you mean",
    ),
    ("stages:\n- distillation: {teacher: dense, losses: 3}", "r:2: a loss is written 'name: {fields}'"),
    (
        "stages:\n- distillation: {teacher: dense, losses: [feature: {wait: 1}]}",
        "r:2: FeatureLoss: unknown field 'wait'",
    ),
    ("stages:\n- distillation: {teacher: {source: emma}}", "r:2: SelfDistillation: source 'emma' is unknown"),
    ("stages:\n- distillation: {teacher: 'collections:OrderedDict'}", "returned a OrderedDict, not a torch.nn.Module"),
    ("stages: []\nlearning_rate: cosin\n", "r:2: the recipe: unknown learning_rate 'cosin'; did you mean 'cosine'?"),
    ("stages: []\nautocast: bf16\n", "r:2: the recipe: autocast must be bfloat16 or float16, got 'bf16'"),
    ("stages: []\n\nclip_norm: 0\n", "r:3: the recipe: clip_norm must be above zero, got 0"),
    ("epochs: 4\nstages:\n  - qat: {}\n  - qat: {}\n", "r:2: the recipe has 2 QAT stages, which would overlap"),
    ("epochs: 4\nstages:\n  - qat: {start: 9}\n", "r:2: QAT: start=9 is after the end of the run, which has 4 epochs"),
    ("stages:\n  - pruning: {sparsity: \x01}\n", "r:2: not valid YAML: character U+0001 is not allowed"),
    ("stages: " + "[" * 3000, "r:1: nested deeper than 16 levels"),
    ("stages: []\nseed: " + "9" * 5000, "r:2: "),
    ("stages: []\n? [epochs]\n: 3\n", "r:2: a key must be a name"),
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
    with pytest.raises(
        ValueError, match=r"recipe\.yaml:1: the recipe: epochs must be a whole number or null, got 'three'"
    ):
        fc.compress(network(), path, loader(), progress=False)


def test_values_follow_yaml_1_2() -> None:
    found = parse_recipe(
        "max_drop: 1e-3\nstages:\n- pruning: {sparsity: {0: .5, conv.2: 0.75}, pattern: 4x4, ignore: [7, on]}\n"
        "- qat\n- qat:\n"
    )
    assert found.settings == RunSettings(max_drop=0.001)
    assert found.stages == (Pruning({"0": 0.5, "conv.2": 0.75}, "4x4", ignore=("7", "on")), QAT(), QAT())


def test_losses_with_fields_and_kinds_of_self_distillation() -> None:
    (stage,) = parse_recipe(
        "stages:\n- distillation:\n    teacher: {source: snapshot, every: 5}\n    losses:\n    - logits\n"
        "    - feature: {student_tap: a, teacher_tap: b, weight: 2}\n"
    ).stages
    assert stage == Distillation(SelfDistillation("snapshot", every=5), ("logits", FeatureLoss("a", "b", 2)))


def test_aliases_are_allowed_where_they_stay_small() -> None:
    text = "stages:\n- pruning: {sparsity: 0.5, ignore: &last [head]}\n- qat: {ignore: *last}\n"
    assert parse_recipe(text).stages == (Pruning(0.5, ignore=("head",)), QAT(ignore=("head",)))


def test_aliases_that_grow_are_refused_before_they_have_grown() -> None:
    rows = "".join(f"    - &n{i} [{', '.join([f'*n{i - 1}' if i else 'a'] * 9)}]\n" for i in range(9))
    with pytest.raises(ValueError, match=r"^r:\d+: more than 10000 values; aliases"):
        parse_recipe(f"stages:\n- qat:\n    ignore:\n{rows}", "r")


def test_epochs_of_the_call_go_before_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 1\nstages:\n- qat: {start: 1, freeze_at: 2}\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml:2: QAT: start=1 is after the end"):
        load_recipe(path)
    assert load_recipe(path, epochs=2).stages == (QAT(start=1, freeze_at=2),)
    result = fc.compress(network(), path, loader(), epochs=2, progress=False, convert=False)
    assert len(result.history) == 2
    result = fc.compress(network(), load_recipe(path, epochs=2), loader(), epochs=3, progress=False, convert=False)
    assert len(result.history) == 3


def test_a_teacher_is_found_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"teachers_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(2, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (stage,) = parse_recipe(f"stages:\n- distillation: {{teacher: '{name}:net'}}\n").stages
    assert isinstance(stage, Distillation)
    assert isinstance(stage.teacher, nn.Linear)
