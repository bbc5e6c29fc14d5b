"""Django's translations as a task: archives, catalogs, what is left out, and splits without overlap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.training.text.catalogs import COMMAND, Catalog, read_catalogs
from benchmarks.training.text.data import KEPT, LENGTH, distinct_texts, load_texts, normalized, side_of
from tests.benchmarks.catalog_files import compiled_catalog, invented_language, write_folder, write_sdist, write_wheel

LANGUAGES = {"aa": invented_language("abcdefg", 60), "cc": invented_language("αβγδεζη", 60)}


@pytest.mark.parametrize("write", [write_folder, write_wheel, write_sdist])
def test_reads_archives_and_folders_alike(tmp_path: Path, write: Callable[..., Path]) -> None:
    catalogs = read_catalogs(write(tmp_path, LANGUAGES))
    assert [(catalog.path, catalog.language) for catalog in catalogs] == [
        ("conf/locale/aa/LC_MESSAGES/django.mo", "aa"),
        ("conf/locale/cc/LC_MESSAGES/django.mo", "cc"),
    ]
    assert dict(catalogs[1].texts) == LANGUAGES["cc"]


def test_finds_the_archive_in_its_folder(tmp_path: Path) -> None:
    write_wheel(tmp_path, LANGUAGES)
    (tmp_path / "readme.txt").write_text("nothing")
    assert len(read_catalogs(tmp_path)) == 2
    write_wheel(tmp_path, LANGUAGES, version="5.1")
    with pytest.raises(ValueError, match=r"holds django-5\.1-.*, django-5\.2-.*--data"):
        read_catalogs(tmp_path)


def test_plural_forms_and_contexts_belong_to_their_message(tmp_path: Path) -> None:
    messages = {"month\x04May": "Mai", "one day\0%d days": "ein Tag\0%d Tage"}
    (catalog,) = read_catalogs(write_folder(tmp_path, {"de": messages}))
    assert sorted(catalog.texts) == [("May", "Mai"), ("one day", "%d Tage"), ("one day", "ein Tag")]


def test_what_is_not_there_or_no_archive_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=COMMAND):
        read_catalogs(tmp_path / "missing")
    with pytest.raises(ValueError, match=f"no translations.*{COMMAND}"):
        read_catalogs(tmp_path)
    other = tmp_path / "other.whl"
    other.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=f"neither a wheel nor a source archive.*{COMMAND}"):
        read_catalogs(other)
    with pytest.raises(ValueError, match=f"0 languages with 300 texts.*{COMMAND}"):
        load_texts(write_wheel(tmp_path, LANGUAGES))


@pytest.mark.parametrize("damage", [b"", b"abcd" * 9, compiled_catalog({"a": "b"})[:60]])
def test_a_damaged_catalog_is_named(tmp_path: Path, damage: bytes) -> None:
    write_folder(tmp_path, LANGUAGES)
    (tmp_path / "django/conf/locale/aa/LC_MESSAGES/django.mo").write_bytes(damage)
    with pytest.raises(ValueError, match=r"conf/locale/aa/LC_MESSAGES/django\.mo is damaged"):
        read_catalogs(tmp_path)


def test_leaves_out_what_has_no_right_answer() -> None:
    texts = (
        ("Save it now", "Speichern Sie jetzt"),
        ("Save it, now", "speichern sie jetzt!"),  # the same text again
        ("Shared by two", "In beiden Sprachen"),
        ("Nothing was done here", "Nothing was done here."),  # left in English
        ("Short", "Kurz"),
    )
    catalogs = [
        Catalog("1", "de", texts),
        Catalog("2", "xx", (("Shared by two", "in beiden sprachen %(n)s"),)),
        Catalog("3", "de_AT", (("Regional", "Regionales bleibt aus"),)),
    ]
    assert distinct_texts(catalogs) == {"de": [("Speichern Sie jetzt", "Save it now")], "xx": []}
    assert normalized("Enter %(count)s of {total} <b>values</b>!") == "enterofvalues"


def test_no_message_is_on_two_sides(tmp_path: Path) -> None:
    data = load_texts(write_wheel(tmp_path, LANGUAGES), fewest=10)
    assert data.languages == ("aa", "cc")
    sides: dict[str, set[str]] = {}
    for side in ("train", "validation", "test"):
        split = getattr(data, side)
        assert split.texts.dtype == torch.uint8
        assert split.texts.shape == (len(split), KEPT)
        assert split.inputs().shape == (len(split), LENGTH)
        assert set(split.labels.tolist()) == {0, 1}
        sides[side] = {bytes(row.tolist()).rstrip(b"\0").decode() for row in split.texts}
    for language in LANGUAGES.values():
        for message, text in language.items():
            assert [side for side, texts in sides.items() if text in texts] == [side_of(message)]
    assert sum(len(texts) for texts in sides.values()) == 120
    assert side_of("Save %(x)s") == side_of("save")
    assert load_texts(tmp_path, fewest=10).digest() == data.digest()
