"""Trained networks and half-trained ones as safetensors files: tensors, and one JSON object in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from benchmarks.harness.layout import channels_last
from benchmarks.training.augment import Normalizer
from benchmarks.training.network import NetworkConfig, ResidualCNN
from fastcompress.formats.atomic import publish, temporary_file

__all__ = ["Trained", "load_network", "read", "restore_state", "save_network", "state_tensors", "write", "write_json"]

_KEY = "training"
_MOMENTUM = "momentum."
_MODEL = "model."


@dataclass(frozen=True)
class Trained:
    """A network from a file: the model (evaluation mode, float32, channels-last), its normalizer and its record."""

    model: ResidualCNN
    normalizer: Normalizer
    record: dict[str, Any]


def write(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object as one file, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _publish(path, save(plain, metadata={_KEY: json.dumps(record)}))


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    _publish(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def _publish(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path.parent) as (file, temporary):
        file.write(content)
        publish(file, temporary, path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, cut off, or written by something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"read: {path} does not exist; train it with `python -m benchmarks.training.dense`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        record = json.loads(metadata[_KEY])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"read: {path} is damaged or no training checkpoint ({error}); remove it") from error
    if not isinstance(record, dict):
        raise ValueError(f"read: {path} is no training checkpoint (its record is a {type(record).__name__}); remove it")
    return tensors, record


def save_network(path: Path, model: ResidualCNN, normalizer: Normalizer, record: Mapping[str, Any]) -> None:
    """Write a trained network; ``record`` is whatever else should be known about it."""
    own = {"network": model.config.to_json(), "normalizer": {"mean": normalizer.mean, "std": normalizer.std}}
    write(path, model.state_dict(), {**record, **own})


def load_network(path: str | Path) -> Trained:
    """Read a trained network.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or no network of this package.

    Example:
        >>> dense = load_network("dense.safetensors")
        >>> scores = dense.model(dense.normalizer(images))
    """
    tensors, record = read(Path(path))
    try:
        model = ResidualCNN(NetworkConfig.from_json(record["network"]))
        normalizer = Normalizer(*(tuple(record["normalizer"][name]) for name in ("mean", "std")))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"load_network: {path} holds no network of this package: {error}") from error
    return Trained(channels_last(model).eval(), normalizer, record)


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors a run goes on from: the model's and the optimizer's momentum."""
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[_MOMENTUM + name] = momentum
    return tensors


def restore_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` returned."""
    model.load_state_dict({k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)})
    for name, parameter in model.named_parameters():
        if _MOMENTUM + name in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[_MOMENTUM + name].clone()
