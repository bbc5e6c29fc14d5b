"""Writers of the image sets' files, by their published layouts and independent of the readers."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np

IDX_NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
CIFAR_NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion(folder: Path, *, train: int = 24, test: int = 12, compressed: bool = False) -> dict[str, np.ndarray]:
    """Write the four IDX files with random images and return what they hold."""
    random = np.random.default_rng(0)
    arrays = {
        "train_images": random.integers(0, 256, (train, 28, 28), np.uint8),
        "train_labels": random.integers(0, 10, train, np.uint8),
        "test_images": random.integers(0, 256, (test, 28, 28), np.uint8),
        "test_labels": random.integers(0, 10, test, np.uint8),
    }
    for key, array in arrays.items():
        content = idx_bytes(array)
        if compressed:
            (folder / f"{IDX_NAMES[key]}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / IDX_NAMES[key]).write_bytes(content)
    return arrays


def cifar_arrays(images: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random bytes ``[images, 3072]`` and labels for each of the six files."""
    random = np.random.default_rng(1)
    return [
        (random.integers(0, 256, (images, 3072), np.uint8), random.integers(0, 10, images, np.uint8))
        for _ in CIFAR_NAMES
    ]


def write_cifar_binary(folder: Path, images: int = 7) -> list[tuple[np.ndarray, np.ndarray]]:
    arrays = cifar_arrays(images)
    for name, (data, labels) in zip(CIFAR_NAMES, arrays, strict=True):
        rows = b"".join(bytes([label]) + image.tobytes() for image, label in zip(data, labels, strict=True))
        (folder / f"{name}.bin").write_bytes(rows)
    return arrays


def write_cifar_python(folder: Path, images: int = 7, protocol: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """What Python 3 and the installed numpy write."""
    arrays = cifar_arrays(images)
    for name, (data, labels) in zip(CIFAR_NAMES, arrays, strict=True):
        content = {
            "batch_label": b"a batch",
            "data": data,
            "labels": [int(label) for label in labels],
            "filenames": [b"image.png"] * images,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return arrays


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 wrote, as in the published files: keys, bytes and array contents are 8-bit strings."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    rows, columns = data.shape
    element = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
    element += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R"
    )
    array += (
        b"("
        + integer(1)
        + integer(rows)
        + integer(columns)
        + b"\x86"
        + element
        + b"\x89"
        + text(data.tobytes())
        + b"tb"
    )
    listed = b"](" + b"".join(integer(label) for label in labels) + b"e"
    entries = text(b"data") + array + text(b"labels") + listed + text(b"batch_label") + text(b"testing batch 1 of 1")
    return b"\x80\x02}(" + entries + b"u."
