"""Fashion-MNIST's files: what is written is read, and every kind of damage is named."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.training.data import load_dataset
from benchmarks.training.idx import MAGIC_IMAGES, MAGIC_LABELS, read_idx
from tests.benchmarks.image_files import IDX_NAMES, idx_bytes, write_fashion


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_was_written(tmp_path: Path, compressed: bool) -> None:
    arrays = write_fashion(tmp_path, compressed=compressed)
    found = load_dataset(tmp_path)
    assert found.name == "fashion-mnist"
    for split, name in ((found.train, "train"), (found.test, "test")):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.shape[1:] == (1, 28, 28)
        np.testing.assert_array_equal(split.images[:, 0].numpy(), arrays[f"{name}_images"])
        np.testing.assert_array_equal(split.labels.numpy(), arrays[f"{name}_labels"])


def test_finds_the_folder_below(tmp_path: Path) -> None:
    (tmp_path / "fashion-mnist").mkdir()
    write_fashion(tmp_path / "fashion-mnist")
    assert len(load_dataset(tmp_path).train) == 24


def test_digest_depends_on_every_part(tmp_path: Path) -> None:
    arrays = write_fashion(tmp_path)
    before = load_dataset(tmp_path).digest()
    assert load_dataset(tmp_path).digest() == before
    for key, array in arrays.items():
        other = array.copy()
        other.flat[-1] = (other.flat[-1] + 1) % 10
        (tmp_path / IDX_NAMES[key]).write_bytes(idx_bytes(other))
        assert load_dataset(tmp_path).digest() != before, key
        (tmp_path / IDX_NAMES[key]).write_bytes(idx_bytes(array))


def test_missing_files_are_listed(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / IDX_NAMES["test_labels"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-labels-idx1-ubyte .*dataset-fashion-mnist"):
        load_dataset(tmp_path)


def test_empty_and_absent_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds none of: train-images.*data_batch_1\.bin.*apt-get install"):
        load_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder; get Fashion-MNIST"):
        load_dataset(tmp_path / "absent")


IMAGES = idx_bytes(np.zeros((3, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "0 bytes, shorter than its header of 16"),
        (IMAGES[:9], "9 bytes, shorter than its header of 16"),
        (IMAGES[:-1], r"truncated, 2351 bytes after the header, expected 2352 for shape \[3, 28, 28\]"),
        (IMAGES + b"\0", "more bytes than the 2352"),
        (b"\x01" + IMAGES[1:], "the magic number is 0x01000803, expected 0x00000803"),
        (idx_bytes(np.zeros(9, np.uint8)), "the magic number is 0x00000801, expected 0x00000803"),
        (IMAGES[:4] + struct.pack(">3I", 0, 28, 28), r"shape \[0, 28, 28\], which cannot be"),
        (IMAGES[:4] + struct.pack(">3I", *[2**32 - 1] * 3), "which cannot be"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damage_is_named(tmp_path: Path, content: bytes, problem: str, suffix: str) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=f"read_idx: {re.escape(str(path))}: .*{problem}"):
        read_idx(path, MAGIC_IMAGES)


@pytest.mark.parametrize("damage", ["cut", "not gzip", "bits"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "labels.gz"
    content = gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8)), mtime=0)
    if damage == "cut":
        content = content[:-20]
    elif damage == "not gzip":
        content = content[4:]
    else:
        content = content[:40] + bytes(byte ^ 0xFF for byte in content[40:80]) + content[80:]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_idx(path, MAGIC_LABELS)


@pytest.mark.parametrize(
    ("key", "array", "problem"),
    [
        ("train_labels", np.full(24, 10, np.uint8), "label 10 of image 0 is outside 0 to 9"),
        ("train_labels", np.zeros(23, np.uint8), "has 24 images, .* 23 labels"),
        ("test_images", np.zeros((12, 32, 32), np.uint8), "images of 32×32 pixels, expected 28×28"),
    ],
)
def test_parts_must_fit(tmp_path: Path, key: str, array: np.ndarray, problem: str) -> None:
    write_fashion(tmp_path)
    (tmp_path / IDX_NAMES[key]).write_bytes(idx_bytes(array))
    with pytest.raises(ValueError, match=problem):
        load_dataset(tmp_path)
