"""`export_compressed_tensors`: layers as a directory that vLLM, transformers and `read_checkpoint` open."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch import Tensor

from fastcompress.errors import CheckpointError
from fastcompress.formats import atomic, strictjson
from fastcompress.formats.checkpoints.content import LayerCanonical, StoredLayer
from fastcompress.formats.checkpoints.layout import layer_tensors, settings_of
from fastcompress.formats.checkpoints.requantize import ExportLoss, with_zero_points
from fastcompress.formats.tensorfile import write_tensors
from fastcompress.ops.canonical_w4 import W4Canonical

__all__ = ["ExportReport", "export_compressed_tensors"]

_FUNCTION = "export_compressed_tensors"


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        directory: where it is.
        nbytes: size of the tensor file.
        losses: layers whose float minima became integer zero points → how far their weights moved.
    """

    directory: Path
    nbytes: int
    losses: Mapping[str, ExportLoss] = field(default_factory=dict)


@contextlib.contextmanager
def _new_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory that is renamed to ``directory`` at the end: there is all of it or nothing."""
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = parent / f".fastcompress-{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        atomic.fsync_directory(temporary)
        os.replace(temporary, directory)  # refused by the system unless ``directory`` is empty or not there
        atomic.fsync_directory(parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _synced(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _requantized(layers: dict[str, StoredLayer]) -> dict[str, ExportLoss]:
    losses = {}
    for name, stored in layers.items():
        c = stored.canonical
        if isinstance(c, W4Canonical) and c.weight_min is not None:
            canonical, losses[name] = with_zero_points(c)
            layers[name] = replace(stored, canonical=canonical)
    return losses


def _named_tensors(layers: Mapping[str, StoredLayer], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = dict(others)
    for name, stored in layers.items():
        for key, value in layer_tensors(name, stored).items():
            if key in tensors:
                raise ValueError(f"tensor {key!r}: is a tensor of its own and part of a quantized layer")
            tensors[key] = value
    return tensors


def export_compressed_tensors(
    layers: Mapping[str, StoredLayer | LayerCanonical],
    directory: str | os.PathLike[str],
    *,
    tensors: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write layers in compressed-tensors' formats: ``pack-quantized`` for four bits, ``int-quantized`` for eight.

    ``config.json`` and ``model.safetensors`` appear together, in a directory that must not exist or be empty. A layer
    with float minima (GGUF's Q4_1, HQQ) gets integer zero points, the only inexact step; the report says how far its
    weights moved.

    Args:
        layers: module name → layer.
        directory: where to write.
        tensors: all other tensors of the model by their names in ``state_dict()``.
        config: the model's ``config.json``; its quantization is replaced.

    Raises:
        TypeError: `layers` has something else. ValueError: there is no layer, or one that the format cannot hold.
        CheckpointError: the directory has files already, or the disk refused. Nothing is left behind.

    Example:
        >>> report = export_compressed_tensors(checkpoint.layers, "out/model", tensors=checkpoint.tensors,
        ...                                    config=checkpoint.config)
        >>> max(loss.relative_squared for loss in report.losses.values())
        0.0012

    Source: compressed-tensors' pack-quantized and int-quantized formats, see `compressed`.
    """
    if not layers:
        raise ValueError(f"{_FUNCTION}: `layers` is empty; quantize some first")
    stored: dict[str, StoredLayer] = {}
    for name, layer in layers.items():
        if not isinstance(layer, StoredLayer | LayerCanonical):
            raise TypeError(
                f"{_FUNCTION}: layer {name!r}: must be a StoredLayer or canonical, is {type(layer).__name__}"
            )
        stored[name] = layer if isinstance(layer, StoredLayer) else StoredLayer(layer)
    path = Path(directory)
    others = {} if tensors is None else dict(tensors)
    losses = _requantized(stored)
    plain = {name.removesuffix(".weight") for name, t in others.items() if name.endswith(".weight") and t.dim() == 2}
    ignore = plain | ({"lm_head"} - stored.keys())
    try:
        named = _named_tensors(stored, others)
        settings = {"quant_method": "compressed-tensors", **settings_of(stored, ignore)}
    except ValueError as error:
        raise ValueError(f"{_FUNCTION}: {error}") from None
    body = {**({} if config is None else config), "quantization_config": settings}
    try:
        with _new_directory(path) as temporary:
            with open(temporary / "model.safetensors", "wb") as file:
                nbytes, _ = write_tensors(cast(BinaryIO, file), named)
                _synced(file)
            with open(temporary / "config.json", "wb") as file:
                file.write((strictjson.dumps(body, indent=2) + "\n").encode("ascii"))
                _synced(file)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{_FUNCTION}: {path}: {error}; give a new directory on a disk with room") from error
    return ExportReport(path, nbytes, losses)
