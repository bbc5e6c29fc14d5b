"""Small catalogs of translations as GNU gettext compiles them, laid out as in Django."""

from __future__ import annotations

import random
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["compiled_catalog", "invented_language", "write_folder", "write_sdist", "write_wheel"]


def compiled_catalog(messages: Mapping[str, str]) -> bytes:
    """A ``.mo`` file. Source: GNU gettext manual, section 10.3."""
    entries = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    tables: list[bytes] = []
    strings = b""
    begin = 28 + 16 * len(entries)
    for column in zip(*entries, strict=True):
        for text in column:
            encoded = text.encode()
            tables.append(struct.pack("<2I", len(encoded), begin + len(strings)))
            strings += encoded + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, 0)
    return header + b"".join(tables) + strings


def invented_language(letters: str, messages: int, seed: int = 0) -> dict[str, str]:
    """English messages and what they are called in a language of these letters."""
    generator = random.Random(f"{letters}{seed}")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

    def number(value: int) -> str:
        return " ".join(words[int(digit)] for digit in str(value))

    return {
        f"Please enter the number {number(index)}.": "".join(generator.choices(letters, k=30)) + " %(count)s"
        for index in range(messages)
    }


def _paths(languages: Mapping[str, Mapping[str, str]]) -> dict[str, bytes]:
    return {
        f"django/conf/locale/{code}/LC_MESSAGES/django.mo": compiled_catalog(messages)
        for code, messages in languages.items()
    }


def write_folder(folder: Path, languages: Mapping[str, Mapping[str, str]]) -> Path:
    """The unpacked package."""
    for name, content in _paths(languages).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_wheel(folder: Path, languages: Mapping[str, Mapping[str, str]], version: str = "5.2") -> Path:
    """The wheel, with a catalog of something else in it."""
    path = folder / f"django-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in _paths(languages).items():
            wheel.writestr(name, content)
        wheel.writestr("tests/i18n/other/locale/de/LC_MESSAGES/django.mo", compiled_catalog({"not": "dies nicht"}))
    return path


def write_sdist(folder: Path, languages: Mapping[str, Mapping[str, str]]) -> Path:
    """The source archive."""
    path = folder / "django-5.2.tar.gz"
    with tarfile.open(path, "w:gz") as source:
        source.add(write_folder(folder / "unpacked", languages), "django-5.2")
    return path
