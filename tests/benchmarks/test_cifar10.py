"""CIFAR-10's files in both versions, and pickles that ask for more than data."""

from __future__ import annotations

import datetime
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.training.cifar10 import read_binary, read_python
from benchmarks.training.data import load_dataset
from benchmarks.training.safe_pickle import load_plain
from tests.benchmarks.image_files import (
    cifar_arrays,
    python2_batch,
    write_cifar_binary,
    write_cifar_python,
)


def check_dataset(folder: Path, arrays: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = load_dataset(folder, images_per_file=7)
    assert found.name == "cifar-10"
    pixels = np.concatenate([data for data, _ in arrays[:5]]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(found.train.images.numpy(), pixels)
    np.testing.assert_array_equal(found.train.labels.numpy(), np.concatenate([labels for _, labels in arrays[:5]]))
    np.testing.assert_array_equal(found.test.images.numpy(), arrays[5][0].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(found.test.labels.numpy(), arrays[5][1])
    assert found.train.images.dtype == torch.uint8
    assert found.train.labels.dtype == torch.int64


def test_binary_version(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-bin").mkdir()
    arrays = write_cifar_binary(tmp_path / "cifar-10-batches-bin")
    check_dataset(tmp_path, arrays)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_python_version_of_python_3(tmp_path: Path, protocol: int) -> None:
    check_dataset(tmp_path, write_cifar_python(tmp_path, protocol=protocol))


def test_python_version_of_python_2(tmp_path: Path) -> None:
    arrays = cifar_arrays(7)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name, (data, labels) in zip(names, arrays, strict=True):
        content = python2_batch(data, [int(label) for label in labels])
        (tmp_path / name).write_bytes(content)
        # The generated file is what the real unpickler also understands.
        np.testing.assert_array_equal(pickle.loads(content, encoding="bytes")[b"data"], data)
    check_dataset(tmp_path, arrays)


def test_column_order_is_honoured() -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    np.testing.assert_array_equal(load_plain(pickle.dumps({"a": array}, protocol=2))["a"], array)


def test_published_size_is_the_default(tmp_path: Path) -> None:
    write_cifar_binary(tmp_path)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin: 21511 bytes, expected 30730000: 10000 images"):
        load_dataset(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    write_cifar_python(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_3 \("):
        load_dataset(tmp_path)


def test_binary_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test_batch.bin"
    row = bytes([3]) + bytes(3072)
    for content in (b"", row[:-1], row * 2, row + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{len(content)} bytes, expected 3073"):
            read_binary(path, 1)
    path.write_bytes(row + bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match="label 10 of image 1 is outside 0 to 9"):
        read_binary(path, 2)


GOOD = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 9]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"data": GOOD["data"]}, "no 'labels' in it"),
        ({**GOOD, "data": np.zeros((2, 3071), np.uint8)}, r"data must be .* \(2, 3072\), is shape \(2, 3071\)"),
        ({**GOOD, "data": bytes(6144)}, "is a bytes"),
        ({**GOOD, "labels": [1]}, "labels must be a list of 2 integers"),
        ({**GOOD, "labels": [1, "9"]}, "labels must be a list of 2 integers"),
        ({**GOOD, "labels": [1, -1]}, "label -1 of image 1 is outside 0 to 9"),
        ({**GOOD, "labels": [1, 10**40]}, "of image 1 is outside 0 to 9"),
        ({**GOOD, "data": np.zeros((2, 3072), np.float32)}, r"elements 'f4', allowed: unsigned bytes"),
        ({**GOOD, "data": np.array([[None]])}, r"elements 'O8', allowed: unsigned bytes"),
        ([1, 2], "holds a list, expected a dictionary"),
        ({1: 2}, "has the key 1, expected text"),
    ],
)
def test_python_damage_is_named(tmp_path: Path, content: Any, problem: str) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=f"read_python: .*{problem}"):
        read_python(path, 2)


def test_every_truncation_is_refused() -> None:
    content = python2_batch(np.arange(12, dtype=np.uint8).reshape(2, 6), [1, 2])
    assert load_plain(content)["labels"] == [1, 2]
    for length in range(len(content)):
        with pytest.raises(ValueError, match="not a plain pickle"):
            load_plain(content[:length])


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_commands_are_not_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.system, which no CIFAR-10 file needs"):
        load_plain(pickle.dumps({"data": Command(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [datetime.date(2020, 1, 1), print, np.float64(1), np.random.default_rng, complex(1)])
def test_other_names_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a plain pickle: asks for"):
        load_plain(pickle.dumps({"x": value}))


CALL_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n)R"
ELEMENT = b"cnumpy\ndtype\nU\x02u1\x85R"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        # A billion elements announced, four bytes there.
        (
            CALL_RECONSTRUCT + b"(K\x01J" + struct.pack("<i", 10**9) + b"\x85" + ELEMENT + b"\x89U\x041234tb",
            "with 4 bytes",
        ),
        (
            CALL_RECONSTRUCT + b"(K\x01J" + struct.pack("<i", -4) + b"\x85" + ELEMENT + b"\x89U\x041234tb",
            "array of shape",
        ),
        (CALL_RECONSTRUCT + b"(K\x01K\x04\x85K\x07\x89U\x041234tb", "not of unsigned bytes"),
        (CALL_RECONSTRUCT + b"K\x01b", "array whose state is not"),
        (b"cnumpy\nndarray\n)R", r"calls numpy\.ndarray"),
        (b"cnumpy\ndtype\n}U\x05_makeK\x01sb", r"changes numpy\.dtype"),
        (b"cnumpy\ndtype\nN}U\x05_makeK\x01s\x86b", r"changes numpy\.dtype"),
        (b"cnumpy\ndtype\n)\x81", "not a plain pickle"),
        (b"c_codecs\nencode\nU\x01aU\x06latin1\x86R", "not latin1 text"),
        (b"cnumpy\ndtype\nq\x00h\x01", "not a plain pickle"),
        (b"Pname\n", "not a plain pickle"),
    ],
)
def test_tricks_with_the_allowed_names(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_plain(b"\x80\x02" + content + b".")
