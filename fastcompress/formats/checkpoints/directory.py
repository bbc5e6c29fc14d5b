"""A Hugging Face directory: ``config.json`` and safetensors files, read with every name and size checked first."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcompress.errors import CheckpointError
from fastcompress.formats import strictjson
from fastcompress.formats.reading import open_regular
from fastcompress.formats.tensorfile import read_header, read_tensors

__all__ = ["CONFIG_NAME", "Directory", "read_directory", "read_json"]

CONFIG_NAME = "config.json"
_INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-]*\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
#: Settings of quantizers that wrote them beside config.json.
_SETTINGS_NAMES = ("quantize_config.json", "quant_config.json")


@dataclass(frozen=True)
class Directory:
    """What the files hold: settings as parsed JSON, tensors, and the file of each tensor."""

    config: dict[str, Any]
    quantization: Any
    settings_path: Path
    tensors: dict[str, Tensor]
    origins: dict[str, Path]


def _inside(directory: Path, name: str) -> Path:
    """The file ``name`` of the directory, resolved; links may not lead out of it.

    The Hugging Face cache keeps its files in ``blobs`` and links to them from ``snapshots/<revision>``.
    """
    path = directory / name
    root, target = directory.resolve(), path.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(allowed) for allowed in roots):
        raise OSError("is a link to a file outside of the directory; copy the file in its place")
    return target


def read_json(function: str, directory: Path, name: str) -> dict[str, Any]:
    """Parse a JSON object of the directory; every fault is a `CheckpointError`."""
    path = directory / name
    try:
        with open_regular(_inside(directory, name)) as file:
            value = strictjson.loads(file.read())
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object")
    except FileNotFoundError:
        raise CheckpointError(f"{function}: {path}: no such file; give a Hugging Face model directory") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{function}: {path}: {error}") from None
    return value


def _shards(function: str, directory: Path, names: list[str]) -> tuple[list[str], dict[str, str] | None]:
    """The tensor files, and which one holds which tensor if there is an index."""
    if _INDEX_NAME in names:
        weight_map = read_json(function, directory, _INDEX_NAME).get("weight_map")
        where = f"{function}: {directory / _INDEX_NAME}"
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{where}: weight_map: must be a JSON object of tensor names and file names")
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or _FILE_NAME.fullmatch(shard) is None:
                raise CheckpointError(
                    f"{where}: tensor {tensor!r:.200}: {shard!r:.100} is no name of a safetensors file in this "
                    "directory"
                )
        return sorted(set(weight_map.values())), weight_map
    if _SINGLE_NAME in names:
        return [_SINGLE_NAME], None
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return found, None
    if found:
        raise CheckpointError(
            f"{function}: {directory}: has {len(found)} safetensors files but no {_INDEX_NAME}; leave one file, or "
            "add the index"
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise CheckpointError(
            f"{function}: {directory / pickles[0]}: pickle files can run any code and are never read; convert the "
            "checkpoint to safetensors (transformers: model.save_pretrained(directory))"
        )
    raise CheckpointError(f"{function}: {directory}: has no safetensors file; give a Hugging Face model directory")


def _read_shard(function: str, directory: Path, name: str, expected: set[str] | None) -> dict[str, Tensor]:
    try:
        with open_regular(_inside(directory, name)) as file:
            infos, head = read_header(file, os.fstat(file.fileno()).st_size)
            if expected is not None:
                for tensor in sorted(infos.keys() ^ expected):
                    where = "this file" if tensor in infos else _INDEX_NAME
                    raise ValueError(f"tensor {tensor!r:.200}: is in {where} only")
            return read_tensors(file, infos, head)[0]
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{function}: {directory / name}: {error}") from None


def _quantization(function: str, directory: Path, config: dict[str, Any], names: list[str]) -> tuple[Any, Path]:
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            return config[key], directory / CONFIG_NAME
    for name in _SETTINGS_NAMES:
        if name in names:
            settings = read_json(function, directory, name)
            method = "gptq" if name == "quantize_config.json" else "awq"
            return {"quant_method": method, **settings}, directory / name
    return None, directory / CONFIG_NAME


def read_directory(function: str, directory: Path) -> Directory:
    """Read all files of a checkpoint directory.

    Raises:
        CheckpointError: the message names the file and the tensor.
    """
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise CheckpointError(f"{function}: {directory}: {error.strerror}; give a Hugging Face directory") from None
    config = read_json(function, directory, CONFIG_NAME)
    quantization, settings_path = _quantization(function, directory, config, names)
    shards, weight_map = _shards(function, directory, names)
    tensors: dict[str, Tensor] = {}
    origins: dict[str, Path] = {}
    for shard in shards:
        expected = None if weight_map is None else {name for name, file in weight_map.items() if file == shard}
        read = _read_shard(function, directory, shard, expected)
        tensors |= read
        origins |= dict.fromkeys(read, directory / shard)
    return Directory(config, quantization, settings_path, tensors, origins)
