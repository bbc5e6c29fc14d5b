"""The files of the teacher cache: damaged, cut, unwritable, half written."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastcompress.distillation import TeacherCache
from tests.distillation.caching import Counting, distiller, equal, files, run
from tests.distillation.models import images


def damage_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def damage_value(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def damage_names(path: Path) -> None:
    tensors = safetensors.torch.load(path.read_bytes())
    tensors["extra"] = torch.zeros(1)
    path.write_bytes(safetensors.torch.save(tensors))


def damage_shape(path: Path) -> None:
    tensors = {k: v.flip(0).unsqueeze(0) for k, v in safetensors.torch.load(path.read_bytes()).items()}
    path.write_bytes(safetensors.torch.save(tensors))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        damage_header,
        damage_value,
        damage_names,
        damage_shape,
    ],
)
def test_damaged_files_are_computed_again_with_one_warning(tmp_path: Path, damage: Any) -> None:
    teacher, x = Counting(), images()
    expected = run(distiller(TeacherCache(tmp_path), teacher), x)
    for path in files(tmp_path)[:2]:
        damage(path)
    cache = TeacherCache(tmp_path)
    bound = distiller(cache, teacher)
    with pytest.warns(UserWarning, match=r"TeacherCache: .*cannot be used .*; it is computed again") as caught:
        assert equal(run(bound, x), expected)
    assert len(caught) == 1
    assert (cache.stats.hits, cache.stats.misses, cache.stats.corrupt) == (2, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(run(bound, x), expected)
    assert cache.stats.hits == 6
    assert cache.stats.total_bytes == sum(f.stat().st_size for f in files(tmp_path))


def test_any_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    teacher, x = Counting(), images(count=1)
    expected = run(distiller(TeacherCache(tmp_path), teacher, ["logits"]), x)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    bound = distiller(TeacherCache(tmp_path), teacher, ["logits"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for end in range(len(whole)):
            path.write_bytes(whole[:end])
            assert equal(run(bound, x), expected)
    assert bound[0].cache is not None
    assert bound[0].cache.stats.corrupt == len(whole)


def test_a_disk_that_cannot_be_written_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TeacherCache(tmp_path)
    bound = distiller(cache, Counting())

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="cannot write .*No space left on device.*; going on without"):
        run(bound, images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(bound, images())
    assert cache.stats.stored == 0
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


WRITER = """
import sys, torch
from fastcompress.distillation.cache_files import write_entry
from pathlib import Path
print("ready", flush=True)
for i in range(10**9):
    write_entry(Path(sys.argv[1]) / f"{i % 7:040x}.safetensors", {"a": torch.full((50_000,), float(i))}, None)
"""


def test_a_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    from fastcompress.distillation.cache_files import read_entry

    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while len(files(tmp_path)) < 7:
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    for path in files(tmp_path):
        entry = read_entry(path, frozenset({"a"}))
        assert entry is not None
        assert len(entry["a"].unique()) == 1
