"""The tutorial's code runs as it stands, from the dense network to the deployed one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TUTORIAL.read_text(encoding="utf-8").split("## A loop of your own")[0]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["result"].score >= names["result"].dense_score - 0.02
    assert (tmp_path / "out.html").is_file()
    assert any((tmp_path / "out").glob("*.safetensors"))


def test_the_recipe_file_of_the_tutorial_is_the_recipe() -> None:
    import fastcompress as fc

    text = TUTORIAL.read_text(encoding="utf-8")
    (written,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    found = fc.recipes.parse_recipe(written)
    names: dict[str, Any] = {"fc": fc}
    (source,) = re.findall(r"(recipe = \[.*?\n\])", text, re.DOTALL)
    exec(source, names)
    assert list(found.stages) == names["recipe"]
    assert found.settings.epochs == 12
