"""Saving replaces the old checkpoint at one moment or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.errors import CheckpointError
from fastcompress.formats import load, save
from fastcompress.nn import QuantLinear
from tests.formats.models import MANIFEST, make_float, make_input, make_quantized, tensor_path


def outputs(directory: Path) -> torch.Tensor:
    return load(directory, make_float(9))(make_input())


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_overwriting_leaves_exactly_the_new_pair(tmp_path: Path) -> None:
    save(make_quantized(0), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model-mine.safetensors").write_text("mine too")
    save(make_quantized(1), tmp_path)
    assert torch.equal(outputs(tmp_path), make_quantized(1)(make_input()))
    assert len([name for name in files(tmp_path) if name not in ("notes.txt", "model-mine.safetensors")]) == 2


def test_finished_files_have_the_users_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(make_float(), tmp_path)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def _fail_at(count: int, real: Callable[..., Any], act: Callable[[], Any]) -> Callable[..., Any]:
    calls = iter(range(1_000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            act()
        return real(*args, **kwargs)

    return wrapped


def _no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


STEPS = [("replace", 0), ("replace", 1), ("fsync", 0), ("fsync", 1), ("fsync", 2)]


@pytest.mark.parametrize(("function", "count"), STEPS)
def test_disk_error_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, count: int
) -> None:
    save(make_quantized(0), tmp_path)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, _fail_at(count, getattr(os, function), _no_space))
        with pytest.raises(CheckpointError, match=r"save: .*No space left on device"):
            save(make_quantized(1), tmp_path)
    assert files(tmp_path) == before


def test_disk_error_in_a_new_place_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", _fail_at(1, os.replace, _no_space))
    with pytest.raises(CheckpointError):
        save(make_quantized(), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill a process in the middle of a save")
@pytest.mark.parametrize(("function", "count"), [*STEPS, ("fsync", 3)])
def test_process_killed_in_the_middle(tmp_path: Path, function: str, count: int) -> None:
    save(make_quantized(0), tmp_path)
    old, new = outputs(tmp_path), make_quantized(1)
    child = os.fork()
    if child == 0:
        setattr(os, function, _fail_at(count, getattr(os, function), lambda: os._exit(7)))
        save(new, tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    committed = (function, count) == ("fsync", 3)  # the directory's fsync after the JSON was renamed
    assert torch.equal(outputs(tmp_path), new(make_input()) if committed else old)
    save(new, tmp_path)  # and what the dead process left behind is cleared away
    assert torch.equal(outputs(tmp_path), new(make_input()))
    assert len(files(tmp_path)) == 2


def test_reader_between_two_saves_gets_the_new_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcompress.formats import reading

    save(make_quantized(0), tmp_path)
    old = reading.read_manifest(tmp_path)
    save(make_quantized(1), tmp_path)
    answers = iter([old, reading.read_manifest(tmp_path)])
    monkeypatch.setattr(reading, "read_manifest", lambda directory: next(answers))
    assert torch.equal(outputs(tmp_path), make_quantized(1)(make_input()))


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


class Derived(QuantLinear):
    """A subclass may compute anything, so it is not on the allow-list."""


def _renaming() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))

    def rename(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state["other"] = state.pop("0.weight")

    model._register_state_dict_hook(rename)
    return model


class Elsewhere(nn.Module):
    """Stands for a layer of the library that the format does not know yet."""


Elsewhere.__module__ = "fastcompress.nn.future"

UNSAVEABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "extra state": (lambda: nn.Sequential(Extra(2, 2)), "module '0': extra state of Extra"),
    "renaming hook": (_renaming, "a hook changes names"),
    "meta tensors": (lambda: nn.Linear(2, 2, device="meta"), "tensor 'weight': .* on meta cannot be saved"),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), "tensor 'weight': .*complex64"),
    "subclass": (
        lambda: nn.Sequential(Derived.from_float(nn.Linear(2, 2), input_mode="dynamic")),
        "tensor '0.bias': the model's state dict",
    ),
    "unknown layer": (lambda: nn.Sequential(Elsewhere()), "module '0': Elsewhere has no place in the file format"),
}


@pytest.mark.parametrize(("make", "match"), UNSAVEABLE.values(), ids=UNSAVEABLE)
def test_what_cannot_be_saved_is_an_error(tmp_path: Path, make: Callable[[], nn.Module], match: str) -> None:
    save(make_quantized(0), tmp_path)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=match):
        save(make(), tmp_path)
    assert files(tmp_path) == before


def test_path_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="is a file; give the name of a directory"):
        save(make_float(), path)
    assert path.read_text() == "mine"


def test_saving_does_not_change_the_model(tmp_path: Path) -> None:
    from tests.formats.models import Snapshot

    model = make_quantized()
    before = Snapshot(model)
    save(model, tmp_path)
    before.assert_unchanged(model)


def test_manifest_names_the_tensor_file(tmp_path: Path) -> None:
    save(make_float(), tmp_path)
    assert tensor_path(tmp_path).name in (tmp_path / MANIFEST).read_text()
