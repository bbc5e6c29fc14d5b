"""Django's translations, read from its wheel, its source archive or an unpacked folder; nothing has to be installed.

Read are the compiled catalogs (``.mo``), by the standard library: unlike the ``.po`` files beside them they hold only
finished translations, no fuzzy ones.
"""

from __future__ import annotations

import gettext
import io
import re
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["COMMAND", "DEFAULT_DATA", "Catalog", "read_catalogs"]

DEFAULT_DATA = "build/data"
COMMAND = f"pip download --no-deps --dest {DEFAULT_DATA} Django==5.2.19"

#: The catalogs of the package itself, not those of its tests.
_CATALOG = re.compile(r"(?:^|/)((?:conf|contrib/\w+)/locale/(\w+)/LC_MESSAGES/\w+\.mo)$")
#: In a catalog, what stands between a message's context and the message.
_CONTEXT = "\x04"


@dataclass(frozen=True)
class Catalog:
    """One file of translations.

    Attributes:
        path: inside Django, such as ``contrib/admin/locale/de/LC_MESSAGES/django.mo``.
        language: its code, such as ``de`` or ``zh_Hans``.
        texts: pairs of English message and translation; a plural form is a pair of its own.
    """

    path: str
    language: str
    texts: tuple[tuple[str, str], ...]


def read_catalogs(path: str | Path = DEFAULT_DATA) -> list[Catalog]:
    """Read all translations of Django, sorted by path.

    Args:
        path: its wheel (``.whl``), its source archive (``.tar.gz``), a folder that holds one of the two, or a folder
            with the unpacked or installed package in it.

    Raises:
        FileNotFoundError: nothing there; the message says how to get Django.
        ValueError: neither kind of archive, no translations in it, more than one archive, or a damaged catalog.

    Example:
        >>> catalogs = read_catalogs("build/data/django-5.2.19-py3-none-any.whl")
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"read_catalogs: {place} does not exist; run `{COMMAND}`, or name Django with --data")
    if place.is_dir():
        archives = sorted(file for file in place.iterdir() if re.match(r"(?i)django-\d.*\.(whl|tar\.gz)$", file.name))
        if len(archives) > 1:
            names = ", ".join(file.name for file in archives)
            raise ValueError(f"read_catalogs: {place} holds {names}; name one of them with --data")
        place = archives[0] if archives else place
    files = _files(place)
    if not files:
        raise ValueError(
            f"read_catalogs: {place} holds no translations of Django (conf/locale/*/LC_MESSAGES/*.mo and the like); "
            f"run `{COMMAND}`, and name what it wrote with --data"
        )
    return [_catalog(name, files[name], place) for name in sorted(files)]


def _files(place: Path) -> dict[str, bytes]:
    """The catalogs' paths inside Django, and what is in them."""
    if place.is_dir():
        found = ((_CATALOG.search(file.as_posix()), file) for file in place.glob("**/*.mo"))
        return {match[1]: file.read_bytes() for match, file in found if match}
    try:
        if zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as wheel:
                return {match[1]: wheel.read(name) for name in wheel.namelist() if (match := _CATALOG.search(name))}
        with tarfile.open(place) as source:
            wanted = ((_CATALOG.search(member.name), source.extractfile(member)) for member in source)
            return {match[1]: stream.read() for match, stream in wanted if match and stream}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"read_catalogs: {place} is neither a wheel nor a source archive, or damaged ({reason}); run `{COMMAND}`"
        ) from error


def _catalog(path: str, content: bytes, place: Path) -> Catalog:
    match = _CATALOG.search(path)
    assert match is not None
    try:
        translations = gettext.GNUTranslations(io.BytesIO(content))
    except (OSError, struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise ValueError(f"read_catalogs: {place}: {path} is damaged ({error}); run `{COMMAND}`") from error
    # The standard library reads catalogs, but has no name of its own for all that is in one. A key is a message, or
    # for a plural the message and the form's number.
    texts: dict[str | tuple[str, int], str] = vars(translations)["_catalog"]
    pairs = ((key[0] if isinstance(key, tuple) else key, text) for key, text in texts.items())
    return Catalog(path, match[2], tuple((key.split(_CONTEXT)[-1], text) for key, text in pairs if key))
