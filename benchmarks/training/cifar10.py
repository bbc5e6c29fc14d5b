"""Reading CIFAR-10's two published forms: the binary version and the Python version.

Both hold five training files and one of test images, 10,000 images each; an image is 3,072 bytes, red, green and blue
planes of 32 rows. Source: Krizhevsky, "The CIFAR-10 dataset", www.cs.toronto.edu/~kriz/cifar.html, "Dataset layout".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.training.safe_pickle import load_plain

__all__ = ["BINARY_FILES", "IMAGES_PER_FILE", "PYTHON_FILES", "read_binary", "read_python"]

BINARY_FILES: tuple[str, ...] = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
PYTHON_FILES: tuple[str, ...] = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
IMAGES_PER_FILE = 10_000

_SHAPE = (3, 32, 32)
_IMAGE_BYTES = 3 * 32 * 32
_CLASSES = 10
_AGAIN = "copy or download the file again"


def read_binary(path: Path, images: int = IMAGES_PER_FILE) -> tuple[Tensor, Tensor]:
    """Read one file of the binary version: a label byte and 3,072 pixel bytes for each image.

    Args:
        path: the file.
        images: how many images it has to hold.

    Returns:
        uint8 images ``[images, 3, 32, 32]`` and int64 labels ``[images]``.

    Raises:
        OSError: the file cannot be read.
        ValueError: the wrong number of bytes, or a label above 9; the message names the file.

    Example:
        >>> images, labels = read_binary(Path("cifar-10-batches-bin/test_batch.bin"))
    """
    expected = images * (1 + _IMAGE_BYTES)
    size = path.stat().st_size
    if size != expected:
        raise ValueError(
            f"read_binary: {path}: {size} bytes, expected {expected}: {images} images of a label byte and "
            f"{_IMAGE_BYTES} pixel bytes; {_AGAIN}"
        )
    rows = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).view(images, 1 + _IMAGE_BYTES)
    labels = rows[:, 0].long()
    _check_labels("read_binary", path, labels)
    return rows[:, 1:].reshape(images, *_SHAPE), labels


def read_python(path: Path, images: int = IMAGES_PER_FILE) -> tuple[Tensor, Tensor]:
    """Read one file of the Python version: a pickled dictionary, of which ``data`` and ``labels`` are used.

    Nothing in the file is run, see `benchmarks.training.safe_pickle`.

    Args:
        path: the file.
        images: how many images it has to hold.

    Returns:
        uint8 images ``[images, 3, 32, 32]`` and int64 labels ``[images]``.

    Raises:
        OSError: the file cannot be read.
        ValueError: not such a dictionary, wrong sizes, or a label outside 0 to 9; the message names the file.

    Example:
        >>> images, labels = read_python(Path("cifar-10-batches-py/test_batch"))
    """
    try:
        content = load_plain(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"read_python: {path}: {error}; {_AGAIN}") from error
    for key in ("data", "labels"):
        if key not in content:
            raise ValueError(f"read_python: {path}: no {key!r} in it, only {sorted(content)!r:.120}; {_AGAIN}")
    data, labels = content["data"], content["labels"]
    if not isinstance(data, np.ndarray) or data.shape != (images, _IMAGE_BYTES):
        seen = f"shape {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise ValueError(
            f"read_python: {path}: data must be an array of bytes of shape {(images, _IMAGE_BYTES)}, is {seen}; "
            f"{_AGAIN}"
        )
    if not isinstance(labels, list) or len(labels) != images or not all(type(label) is int for label in labels):
        raise ValueError(f"read_python: {path}: labels must be a list of {images} integers; {_AGAIN}")
    # The range is checked on Python's integers: a pickled one may be too large for any tensor.
    wrong = next((index for index, label in enumerate(labels) if not 0 <= label < _CLASSES), None)
    if wrong is not None:
        raise ValueError(
            f"read_python: {path}: label {labels[wrong]!r:.30} of image {wrong} is outside 0 to 9; {_AGAIN}"
        )
    return torch.from_numpy(np.ascontiguousarray(data).copy()).view(images, *_SHAPE), torch.tensor(labels)


def _check_labels(function: str, path: Path, labels: Tensor) -> None:
    wrong = (labels >= _CLASSES).nonzero()
    if wrong.numel():
        index = int(wrong[0, 0])
        raise ValueError(f"{function}: {path}: label {int(labels[index])} of image {index} is outside 0 to 9; {_AGAIN}")
