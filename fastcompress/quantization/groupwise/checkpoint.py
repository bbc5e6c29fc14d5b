"""The finished stages of a long run on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastcompress.errors import CheckpointError
from fastcompress.ops.canonical_w4 import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical

__all__ = ["LayerResult", "StageFiles", "fingerprint"]

_TENSORS = ("weight_packed", "weight", "weight_scale", "bias", "weight_zero_point", "weight_min")


@dataclass(frozen=True)
class LayerResult:
    """One linear that was quantized.

    Attributes:
        canonical: its portable form; the bias is the layer's own, as it is now.
        report: numbers and words about how it went: ``algorithm``, and what that reports.
    """

    canonical: W4Canonical | W8Canonical
    report: Mapping[str, Any]


def fingerprint(settings: Iterable[object], tensors: Mapping[str, Tensor], batches: object) -> str:
    """A hash of all that decides the result of a run."""
    sha = hashlib.sha256()
    for item in settings:
        sha.update(repr(item).encode() + b"\0")
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode() + b"\0")
        _hash(sha, tensor)
    for leaf in tree_leaves(batches):
        if isinstance(leaf, Tensor):
            _hash(sha, leaf)
        elif isinstance(leaf, bool | int | float | str | None):
            sha.update(repr(leaf).encode() + b"\0")
    return sha.hexdigest()


def _hash(sha: Any, tensor: Tensor) -> None:
    sha.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
    sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


class StageFiles:
    """One safetensors file for each finished stage, written whole or not at all.

    Args:
        directory: is made if it is not there.
        key: `fingerprint` of the run.

    Raises:
        CheckpointError: the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str], key: str) -> None:
        self.directory, self.key = Path(directory), key
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"quantize_weights: checkpoint_dir {self.directory} cannot be made: {error}"
            ) from error

    def path(self, stage: int) -> Path:
        """The stage's file."""
        return self.directory / f"groupwise-{stage:04d}.safetensors"

    def save(self, stage: int, results: Mapping[str, LayerResult], folded: Mapping[str, Tensor]) -> None:
        """Write what a stage gave: its layers, and the parameters (by full name) that took scales."""
        tensors = {f"folded/{name}": value for name, value in folded.items()}
        layers = {}
        for name, result in results.items():
            c = result.canonical
            for part in _TENSORS:
                value = getattr(c, part, None)
                if isinstance(value, Tensor):
                    tensors[f"{part}/{name}"] = value
            layers[name] = {
                "bits": 4 if isinstance(c, W4Canonical) else 8,
                "in_features": c.in_features,
                "group_size": c.group_size,
                "report": dict(result.report),
            }
        own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        said = json.dumps(layers)
        metadata = {"fingerprint": self.key, "layers": said, "checksum": fingerprint((said,), own, None)}
        path = self.path(stage)
        temporary = self.directory / f".fastcompress-{secrets.token_hex(8)}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(safetensors.torch.save(own, metadata))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise CheckpointError(f"quantize_weights: {path} cannot be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, stage: int) -> tuple[dict[str, LayerResult], dict[str, Tensor]] | None:
        """What `save` wrote for a stage; None when it is not finished.

        Raises:
            ValueError: the file is another run's. CheckpointError: it is damaged.
        """
        path = self.path(stage)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["checksum"] != fingerprint((metadata["layers"],), tensors, None):
                raise KeyError("its checksum is not that of its content")
            layers = json.loads(metadata["layers"])
            if metadata["fingerprint"] != self.key:
                raise ValueError(
                    f"quantize_weights: checkpoint_dir {self.directory} holds another run (other weights, data, grid "
                    "or options); pass an empty directory, or repeat that run's arguments"
                )
            results = {name: _result(name, entry, tensors) for name, entry in layers.items()}
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise CheckpointError(
                f"quantize_weights: {path} is damaged ({type(error).__name__}: {error}); delete it, and the stage is "
                "done again"
            ) from error
        folded = {name.removeprefix("folded/"): t for name, t in tensors.items() if name.startswith("folded/")}
        return results, folded


def _result(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LayerResult:
    part = {key: tensors.get(f"{key}/{name}") for key in _TENSORS}
    scale = tensors[f"weight_scale/{name}"]
    if entry["bits"] == 8:
        eight = W8Canonical(tensors[f"weight/{name}"], scale, part["bias"], entry["group_size"])
        return LayerResult(eight, entry["report"])
    four = W4Canonical(
        tensors[f"weight_packed/{name}"],
        scale,
        part["bias"],
        entry["in_features"],
        entry["group_size"],
        "float",
        part["weight_zero_point"],
        part["weight_min"],
    )
    return LayerResult(four, entry["report"])
