"""The task: tell the language of a text. Texts as bytes, split so that no message is trained on and judged by.

All translations of one English message are on the same side of the split, so no test text is a translation of
anything that was trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.training.text.catalogs import COMMAND, DEFAULT_DATA, Catalog, read_catalogs

__all__ = ["LENGTH", "TextDataset", "TextSplit", "distinct_texts", "load_texts", "normalized", "side_of"]

#: Bytes that the network reads, and bytes of a text that are kept, of which training reads a random part.
LENGTH, KEPT = 64, 160
#: Letters and other characters that a text must have: shorter ones ("OK", "e-mail") often tell nothing.
SHORTEST = 12

_PLACEHOLDER = re.compile(r"%\([^)]*\)[a-z]|%[a-z%]|\{[^}]*\}|<[^>]*>|&[a-z]+;")


@dataclass(frozen=True)
class TextSplit:
    """Texts and their languages.

    Attributes:
        texts: UTF-8, uint8 ``[n, KEPT]``, zero behind the end.
        labels: int64 ``[n]``.
    """

    texts: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> TextSplit:
        """The texts at these indices (int64 ``[k]``)."""
        return TextSplit(self.texts[index], self.labels[index])

    def inputs(self) -> Tensor:
        """What the network reads when it is judged: the first ``LENGTH`` bytes, int64."""
        return self.texts[:, :LENGTH].long()


@dataclass(frozen=True)
class TextDataset:
    """Three splits by English message (70, 10 and 20%) and the languages' codes in the order of the labels."""

    train: TextSplit
    validation: TextSplit
    test: TextSplit
    languages: tuple[str, ...]

    def digest(self) -> str:
        """SHA-256 over languages, texts and labels: whether a network belongs to these data."""
        seen = hashlib.sha256(" ".join(self.languages).encode())
        for split in (self.train, self.validation, self.test):
            for tensor in (split.texts, split.labels):
                seen.update(repr(tuple(tensor.shape)).encode())
                seen.update(cast(Any, tensor.contiguous().numpy()))
        return seen.hexdigest()


def normalized(text: str) -> str:
    """What two texts share that differ in placeholders, case, digits, spaces and punctuation only.

    Example:
        >>> normalized("Enter %(count)s values!")
        'entervalues'
    """
    return "".join(letter for letter in _PLACEHOLDER.sub("", text).casefold() if letter.isalpha())


def side_of(message: str) -> str:
    """The split of an English message and all its translations: ``"train"``, ``"validation"`` or ``"test"``.

    It depends on the message only, so it is the same in every run and version of Django.
    """
    number = hashlib.blake2b(normalized(message).encode(), digest_size=8).digest()[0] % 10
    return "test" if number < 2 else "validation" if number == 2 else "train"


def load_texts(path: str | Path = DEFAULT_DATA, fewest: int = 300) -> TextDataset:
    """Read Django's translations as a task.

    Args:
        path: see `read_catalogs`.
        fewest: texts that a language must have.

    Raises:
        FileNotFoundError, ValueError: no translations there, or no two languages with enough texts.

    Example:
        >>> load_texts("django-5.2.19-py3-none-any.whl").languages[:3]
        ('af', 'ar', 'az')
    """
    found = distinct_texts(read_catalogs(path))
    languages = tuple(sorted(name for name, texts in found.items() if len(texts) >= fewest))
    if len(languages) < 2:
        raise ValueError(
            f"load_texts: {path} has {len(languages)} languages with {fewest} texts or more, fewer than two to tell "
            f"apart; run `{COMMAND}`, or lower fewest"
        )
    sides: dict[str, list[tuple[str, int]]] = {side: [] for side in ("train", "validation", "test")}
    for label, language in enumerate(languages):
        for text, message in found[language]:
            sides[side_of(message)].append((text, label))
    return TextDataset(**{side: _split(texts) for side, texts in sides.items()}, languages=languages)


def distinct_texts(catalogs: Iterable[Catalog]) -> dict[str, list[tuple[str, str]]]:
    """Language → pairs of text and English message, each text once.

    A language's texts are distinct after `normalized`. Texts that two languages share have no right answer and are left
    out, and so are regional variants (``es_MX``, ``sr_Latn``), short texts, and what was left in English.
    """
    found: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for catalog in catalogs:
        if "_" in catalog.language and catalog.language != "zh_Hans":
            continue
        for message, text in catalog.texts:
            same = normalized(text)
            if len(text) >= SHORTEST and same and same != normalized(message):
                found[catalog.language].setdefault(same, (text, message))
    homes = Counter(same for texts in found.values() for same in texts)
    return {name: [pair for same, pair in texts.items() if homes[same] == 1] for name, texts in found.items()}


def _split(texts: list[tuple[str, int]]) -> TextSplit:
    """Texts and labels as tensors."""
    kept = b"".join(text.encode()[:KEPT].ljust(KEPT, b"\0") for text, _ in texts)
    rows = torch.frombuffer(bytearray(kept), dtype=torch.uint8) if kept else torch.empty(0, dtype=torch.uint8)
    return TextSplit(rows.reshape(-1, KEPT), torch.tensor([label for _, label in texts], dtype=torch.int64))
