"""``fastcompress.json``: what it holds, how it is written, and the checks it must pass before anybody believes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcompress.formats import strictjson
from fastcompress.formats.fields import Fields
from fastcompress.formats.tensorfile import DTYPES

__all__ = ["FORMAT_VERSION", "MANIFEST_NAME", "Manifest", "ModuleEntry", "is_tensor_file", "tensor_file_name"]

MANIFEST_NAME = "fastcompress.json"
FORMAT_VERSION = 1
_MAX_NAME_CHARS = 1000

_TENSOR_FILE = re.compile(r"model-[0-9a-f]{16}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def tensor_file_name(sha256: str) -> str:
    """The tensor file is named after its content, so a manifest can never meet another save's tensors."""
    return f"model-{sha256[:16]}.safetensors"


def is_tensor_file(name: str) -> bool:
    """Whether ``name`` is a tensor file's; holds for no name with a path separator in it."""
    return _TENSOR_FILE.fullmatch(name) is not None


@dataclass(frozen=True)
class ModuleEntry:
    """One module that is rebuilt at load: a class name from the allow-list and its constructor's values."""

    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The contents of ``fastcompress.json``.

    ``modules`` and ``tensors`` are keyed by the names of ``named_modules()`` and ``state_dict()``; the two alias
    tables map further names of one shared module or tensor to the name it is stored under.
    """

    library_version: str
    tensor_file: str
    tensor_file_bytes: int
    tensor_file_sha256: str
    modules: Mapping[str, ModuleEntry]
    module_aliases: Mapping[str, str]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    tensor_aliases: Mapping[str, str]
    record: Any

    def to_bytes(self) -> bytes:
        """The file's content: readable JSON whose last word is a checksum of everything else."""
        body: dict[str, Any] = {
            "format": "fastcompress",
            "format_version": FORMAT_VERSION,
            "library_version": self.library_version,
            "tensor_file": {
                "name": self.tensor_file,
                "bytes": self.tensor_file_bytes,
                "sha256": self.tensor_file_sha256,
            },
            "modules": {
                name: {"class": entry.class_name, "config": dict(entry.config)} for name, entry in self.modules.items()
            },
            "module_aliases": dict(self.module_aliases),
            "tensors": {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in self.tensors.items()},
            "tensor_aliases": dict(self.tensor_aliases),
            "record": self.record,
        }
        body["manifest_sha256"] = strictjson.digest(body)
        return (strictjson.dumps(body, indent=1) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse and check everything that can be checked without the tensors or the model.

        Raises:
            ValueError: the message names the field.
        """
        body = strictjson.loads(data)
        fields = Fields(body, "manifest")
        fields.string("format", {"fastcompress"})
        version = fields.integer("format_version")
        if version > FORMAT_VERSION:
            raise fields.error(
                "format_version",
                f"is {version}, this fastcompress reads up to {FORMAT_VERSION}; load with a newer fastcompress",
            )
        expected = fields.string("manifest_sha256")
        if strictjson.digest({k: v for k, v in body.items() if k != "manifest_sha256"}) != expected:
            raise fields.error("manifest_sha256", "does not match the content; the file is corrupt or was edited")
        tensor_file = Fields(fields.mapping("tensor_file"), "manifest: tensor_file")
        name = tensor_file.string("name")
        if not is_tensor_file(name):
            raise tensor_file.error("name", f"{name!r:.80} is not of the form model-<16 hex digits>.safetensors")
        nbytes = tensor_file.integer("bytes", low=8, high=2**63 - 1)
        sha256 = tensor_file.string("sha256")
        if not _SHA256.fullmatch(sha256) or tensor_file_name(sha256) != name:
            raise tensor_file.error("sha256", "must be 64 hex digits that begin with the file name's")
        tensor_file.finish()
        manifest = cls(
            library_version=fields.string("library_version"),
            tensor_file=name,
            tensor_file_bytes=nbytes,
            tensor_file_sha256=sha256,
            modules={key: _module(key, value) for key, value in fields.mapping("modules").items()},
            module_aliases=dict(fields.mapping("module_aliases")),
            tensors={key: _tensor(key, value) for key, value in fields.mapping("tensors").items()},
            tensor_aliases=dict(fields.mapping("tensor_aliases")),
            record=fields.any("record"),
        )
        fields.finish()
        for table in (manifest.modules, manifest.module_aliases, manifest.tensors, manifest.tensor_aliases):
            _check_names(table)
        _check_aliases("module_aliases", manifest.module_aliases, manifest.modules)
        _check_aliases("tensor_aliases", manifest.tensor_aliases, manifest.tensors)
        _check_nesting({*manifest.modules, *manifest.module_aliases})
        return manifest


def _module(name: str, value: object) -> ModuleEntry:
    fields = Fields(value, f"manifest: module {name!r:.200}")
    entry = ModuleEntry(fields.string("class"), fields.mapping("config"))
    fields.finish()
    return entry


def _tensor(name: str, value: object) -> tuple[str, tuple[int, ...]]:
    fields = Fields(value, f"manifest: tensor {name!r:.200}")
    dtype = fields.string("dtype", DTYPES)
    shape = fields.any("shape")
    if not isinstance(shape, list):
        raise fields.error("shape", "must be a list of integers")
    checked = Fields({"shape": shape}, f"manifest: tensor {name!r:.200}").integers("shape", len(shape), 0, 2**63 - 1)
    fields.finish()
    return dtype, checked


def _check_names(table: Mapping[str, Any]) -> None:
    for name in table:
        if len(name) > _MAX_NAME_CHARS:
            raise ValueError(f"manifest: name {name!r:.80} has {len(name)} characters, {_MAX_NAME_CHARS} are allowed")


def _check_aliases(table: str, aliases: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    for alias, target in aliases.items():
        if alias in stored:
            raise ValueError(f"manifest: {table}: {alias!r:.200} is stored itself, it cannot be an alias too")
        if not isinstance(target, str) or target not in stored:
            raise ValueError(f"manifest: {table}: {alias!r:.200} points at {target!r:.200}, which is not stored")


def _check_nesting(names: set[str]) -> None:
    for name in names:
        parts = name.split(".")
        ancestors = {".".join(parts[:depth]) for depth in range(1, len(parts))} | ({""} if name else set())
        for ancestor in ancestors & names:
            raise ValueError(f"manifest: module {name!r:.200} lies inside the replaced module {ancestor!r:.200}")
