"""The image sets that networks are trained on: found by their files, checked, and held as tensors of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.training import cifar10
from benchmarks.training.idx import MAGIC_IMAGES, MAGIC_LABELS, read_idx

__all__ = ["DEFAULT_FOLDER", "Dataset", "Split", "load_dataset", "validation_split"]

#: Where Debian's package dataset-fashion-mnist puts its files.
DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SUBFOLDERS = ("fashion-mnist", "cifar-10-batches-bin", "cifar-10-batches-py")
_CLASSES = 10
_SIDE = 28
_REMEDY = (
    "get Fashion-MNIST with `apt-get install dataset-fashion-mnist` (Debian, Ubuntu) or from "
    "github.com/zalandoresearch/fashion-mnist, or CIFAR-10 from www.cs.toronto.edu/~kriz/cifar.html, and name the "
    "folder with --data"
)


@dataclass(frozen=True)
class Split:
    """Images and their classes.

    Attributes:
        images: uint8 ``[n, channels, height, width]``.
        labels: int64 ``[n]``, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise TypeError(
                f"Split: images must be uint8 [n, channels, height, width], got {self.images.dtype} "
                f"{list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise TypeError(
                f"Split: labels must be int64 [{len(self.images)}], got {self.labels.dtype} {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """The images at these indices (int64 ``[k]``)."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """One image set: ``name`` says its kind, ``train`` and ``test`` are its published parts."""

    name: str
    train: Split
    test: Split

    def digest(self) -> str:
        """SHA-256 over every byte of images and labels, for the record of a run and to notice other data on resume."""
        seen = hashlib.sha256(self.name.encode())
        for split in (self.train, self.test):
            seen.update(repr(tuple(split.images.shape)).encode())
            seen.update(cast(Any, split.images.contiguous().numpy()))
            seen.update(cast(Any, split.labels.contiguous().numpy()))
        return seen.hexdigest()


def load_dataset(path: str | Path = DEFAULT_FOLDER, images_per_file: int = cifar10.IMAGES_PER_FILE) -> Dataset:
    """Load Fashion-MNIST (IDX files, ``.gz`` or not) or CIFAR-10 (binary or Python version) from a folder.

    Args:
        path: the folder that holds the files, or the one above ``fashion-mnist``, ``cifar-10-batches-bin`` or
            ``cifar-10-batches-py``.
        images_per_file: how many images each CIFAR-10 file has to hold; others than the published 10,000 are for tests.

    Returns:
        The set; images of Fashion-MNIST are ``[n, 1, 28, 28]``, of CIFAR-10 ``[n, 3, 32, 32]``.

    Raises:
        FileNotFoundError: no folder, or files are missing; the message lists what was looked for and how to get it.
        ValueError: a file is damaged: truncated, a wrong magic number, labels out of range.

    Example:
        >>> load_dataset("/usr/share/datasets/fashion-mnist").train.images.shape
        torch.Size([60000, 1, 28, 28])
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"load_dataset: path {str(folder)!r} is not a folder; {_REMEDY}")
    nearest: tuple[int, str] = (0, "")
    for place in (folder, *(folder / name for name in _SUBFOLDERS)):
        for wanted, load in _KINDS:
            files = {name: _find(place, name) for name in wanted}
            missing = [name for name, file in files.items() if file is None]
            if not missing:
                return load([file for file in files.values() if file is not None], images_per_file)
            found = len(wanted) - len(missing)
            if found > nearest[0]:
                nearest = found, f"{str(place)!r} lacks {', '.join(missing)}"
    looked_for = " / ".join(", ".join(wanted) for wanted, _ in _KINDS)
    problem = nearest[1] or f"{str(folder)!r} holds none of: {looked_for}"
    raise FileNotFoundError(f"load_dataset: {problem} (looked with and without .gz); {_REMEDY}")


def validation_split(train: Split, count: int = 5_000, seed: int = 0) -> tuple[Split, Split]:
    """Set ``count`` random training images aside to choose things by; the test images are for the final number only.

    Args:
        train: the training part of a set.
        count: size of the validation part, 0 ≤ count < len(train).
        seed: of the choice; the same seed chooses the same images.

    Returns:
        What is left for training, and the validation part.

    Raises:
        ValueError: ``count`` leaves nothing to train on, or is negative.

    Example:
        >>> train, validation = validation_split(dataset.train, 5_000)
    """
    if not 0 <= count < len(train):
        raise ValueError(f"validation_split: count must lie in [0, {len(train) - 1}], got {count}")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train.take(order[count:].sort().values), train.take(order[:count].sort().values)


def _find(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _load_idx(files: list[Path], _: int) -> Dataset:
    splits = []
    for images_file, labels_file in (files[:2], files[2:]):
        images, labels = read_idx(images_file, MAGIC_IMAGES), read_idx(labels_file, MAGIC_LABELS)
        if images.shape[1:] != (_SIDE, _SIDE):
            raise ValueError(
                f"load_dataset: {images_file}: images of {images.shape[1]}×{images.shape[2]} pixels, expected "
                f"{_SIDE}×{_SIDE}"
            )
        if len(images) != len(labels):
            raise ValueError(
                f"load_dataset: {images_file} has {len(images)} images, {labels_file} {len(labels)} labels"
            )
        if int(labels.max()) >= _CLASSES:
            index = int((labels >= _CLASSES).nonzero()[0, 0])
            raise ValueError(
                f"load_dataset: {labels_file}: label {int(labels[index])} of image {index} is outside 0 to 9; copy or "
                "download the file again"
            )
        splits.append(Split(images.unsqueeze(1), labels.long()))
    return Dataset("fashion-mnist", *splits)


def _cifar10_loader(read: Callable[[Path, int], tuple[Tensor, Tensor]]) -> Callable[[list[Path], int], Dataset]:
    def load(files: list[Path], images: int) -> Dataset:
        parts = [read(file, images) for file in files]
        train = Split(torch.cat([part[0] for part in parts[:-1]]), torch.cat([part[1] for part in parts[:-1]]))
        return Dataset("cifar-10", train, Split(*parts[-1]))

    return load


#: The files of each form, and what reads them.
_KINDS: tuple[tuple[tuple[str, ...], Callable[[list[Path], int], Dataset]], ...] = (
    (_IDX_FILES, _load_idx),
    (cifar10.BINARY_FILES, _cifar10_loader(cifar10.read_binary)),
    (cifar10.PYTHON_FILES, _cifar10_loader(cifar10.read_python)),
)
