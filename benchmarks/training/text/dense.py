"""``python -m benchmarks.training.text.dense``: train the dense network that every row of the text table starts from.

Writes FILE.safetensors, in float16 (in use it is float32), and beside it FILE.json: settings, loss and validation
accuracy of each epoch, test accuracy, versions and commit. Checkpoints lie in the folder ``--work``; the same command
goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine
from benchmarks.training import checkpoint
from benchmarks.training.text.catalogs import DEFAULT_DATA
from benchmarks.training.text.data import TextDataset, load_texts
from benchmarks.training.text.network import ByteTransformer, TextConfig
from benchmarks.training.text.rows import DENSE
from benchmarks.training.text.trainer import TextSettings, accuracy, fit

__all__ = ["DEFAULT_DENSE", "load_dense", "main", "train_dense"]

DEFAULT_DENSE = "benchmarks/results/training/django_languages_dense.safetensors"
DEFAULT_WORK = "build/training-text"


def train_dense(
    data: TextDataset,
    config: TextConfig,
    settings: TextSettings,
    out: Path,
    work: Path,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train a network from nothing and write it.

    Args:
        data: what to train and judge with.
        config: the network's sizes.
        settings: of the training.
        out: the file to write, ``.safetensors``.
        work: folder of the checkpoints.
        progress: None: a bar on terminals.

    Returns:
        The record that is also written as JSON.
    """
    began = machine.describe()  # now: when it ends the working tree may hold another commit
    torch.manual_seed(settings.seed)
    result = fit(ByteTransformer(config), [], settings, data, work, progress)
    own = {"network": config.to_json(), "data": "Django's translations", "data_sha256": data.digest()}
    checkpoint.write(out, {name: tensor.half() for name, tensor in result.model.state_dict().items()}, own)
    model = load_dense(out, data)
    record = {
        **own,
        "languages": list(data.languages),
        "texts": {side: len(getattr(data, side)) for side in ("train", "validation", "test")},
        "training": dataclasses.asdict(settings),
        "test_accuracy": round(accuracy(model, data.test), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "machine": began,
        "threads": torch.get_num_threads(),
        "history": [{"loss": row.losses["total"], "validation_accuracy": row.score} for row in result.history.rows],
    }
    checkpoint.write_json(out.with_suffix(".json"), record)
    return record


def load_dense(path: str | Path, data: TextDataset) -> ByteTransformer:
    """Read the dense network, in evaluation mode and float32.

    Raises:
        FileNotFoundError: no such file; the message says how to train it.
        ValueError: it is damaged, no network of this kind, or was trained on other texts.

    Example:
        >>> dense = load_dense(DEFAULT_DENSE, data)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"load_dense: {path} does not exist; train it with `python -m benchmarks.training.text.dense`"
        )
    tensors, record = checkpoint.read(path)
    if record.get("data_sha256") != data.digest():
        raise ValueError(
            f"load_dense: {path} was not trained on these texts, which may be another version of Django; name the "
            "right one with --data, or train again with `python -m benchmarks.training.text.dense`"
        )
    try:
        model = ByteTransformer(TextConfig(**record["network"]))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"load_dense: {path} holds no network of this kind: {error}") from error
    return model.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.text.dense",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default=DEFAULT_DATA, help=f"Django's wheel or the folder it is in ({DEFAULT_DATA})")
    parser.add_argument("--out", type=Path, default=Path(DEFAULT_DENSE), help="the trained network, .safetensors")
    parser.add_argument("--work", type=Path, default=Path(DEFAULT_WORK) / "dense", help="folder of the checkpoints")
    parser.add_argument("--threads", type=int, help="threads; the same bits on resuming need the same number")
    options = parser.parse_args(argv)
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        data = load_texts(options.data)
        record = train_dense(data, TextConfig(len(data.languages)), DENSE, options.out, options.work)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(data.languages)} languages, {record['parameters']} parameters")
    print(f"test accuracy {record['test_accuracy']:.2f}%; written: {options.out}, {options.out.with_suffix('.json')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
