"""Interrupted runs go on to the same bits; files of other runs and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.errors import CheckpointError
from fastcompress.quantization.groupwise import GroupGrid, GroupwiseOptions, LayerResult, quantize_weights, stream

from .problems import Stack, linears, tiny_llama, tokens, vectors

GRID = GroupGrid(4, 16)


class Interrupter:
    """Stands in for `quantize_stage` and stops the run like Ctrl-C at one of its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None) -> None:
        self.calls, self.at, self.real = 0, at, stream.quantize_stage
        monkeypatch.setattr(stream, "quantize_stage", self)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        result = self.real(*args)
        if self.calls - 1 == self.at:
            raise KeyboardInterrupt
        return result


def same(a: dict[str, LayerResult], b: dict[str, LayerResult]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert dict(a[name].report) == dict(b[name].report)
        x, y = a[name].canonical, b[name].canonical
        assert type(x) is type(y)
        for part in vars(x):
            left, right = getattr(x, part), getattr(y, part)
            assert torch.equal(left, right) if isinstance(left, Tensor) else left == right, (name, part)


def made(kind: str) -> tuple[nn.Module, list[Any], int]:
    """A model, its data, and how many stages it has."""
    return (Stack(), vectors(), 5) if kind == "stack" else (tiny_llama(), tokens(), 4)


@pytest.mark.parametrize("kind", ["stack", "llama"])
@pytest.mark.parametrize(
    ("algorithm", "bits", "options"),
    [
        ("gptq", 4, GroupwiseOptions()),
        ("gptq", 8, GroupwiseOptions(sequential=True)),
        ("awq", 4, GroupwiseOptions()),
    ],
)
def test_resumes_to_the_same_bits_from_every_block(
    kind: str, algorithm: str, bits: int, options: GroupwiseOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GroupGrid(bits, 16)
    whole, batches, stages = made(kind)

    def run(model: nn.Module, directory: Path | None) -> dict[str, LayerResult]:
        return quantize_weights(
            model, linears(model), grid, algorithm, batches, options=options, checkpoint_dir=directory
        )

    expected = run(whole, None)
    for at in range(stages):
        with monkeypatch.context() as patch:
            broken, _, _ = made(kind)
            Interrupter(patch, at)
            with pytest.raises(KeyboardInterrupt):
                run(broken, tmp_path / str(at))
        assert len(list((tmp_path / str(at)).iterdir())) == at
        with monkeypatch.context() as patch:
            model, _, _ = made(kind)
            rest = Interrupter(patch, None)
            found = run(model, tmp_path / str(at))
            assert rest.calls == stages - at
        same(found, expected)
        for (name, a), b in zip(model.named_parameters(), whole.parameters(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("algorithm", ["rtn", "hqq"])
def test_without_data_too(algorithm: str, tmp_path: Path) -> None:
    model, again = Stack(), Stack()
    first = quantize_weights(model, linears(model), GroupGrid(4, 8, False), algorithm, checkpoint_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(first)
    same(quantize_weights(again, linears(again), GroupGrid(4, 8, False), algorithm, checkpoint_dir=tmp_path), first)


def test_an_interrupted_run_leaves_other_copies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    original, batches, _ = made("llama")
    before = {name: value.clone() for name, value in original.state_dict().items()}
    Interrupter(monkeypatch, 2)
    working = copy.deepcopy(original)
    with pytest.raises(KeyboardInterrupt):
        quantize_weights(working, linears(working), GRID, "awq", batches)
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in working.modules())


def test_another_runs_directory_is_refused(tmp_path: Path) -> None:
    def run(**changed: Any) -> None:
        model = changed.pop("model", Stack())
        arguments: dict[str, Any] = {"grid": GRID, "algorithm": "gptq", "batches": vectors(), **changed}
        quantize_weights(model, linears(model), checkpoint_dir=tmp_path, **arguments)

    run()
    run()
    other = Stack()
    with torch.no_grad():
        other.blocks[0].norm.weight[3] += 1.0
    for changed in (
        {"grid": GroupGrid(4, 32)},
        {"algorithm": "awq"},
        {"batches": vectors(2)},
        {"options": GroupwiseOptions(search="mse")},
        {"model": other},
    ):
        with pytest.raises(ValueError, match="holds another run"):
            run(**changed)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    def run() -> None:
        model = Stack()
        quantize_weights(model, linears(model), GRID, "awq", vectors(), checkpoint_dir=tmp_path)

    run()
    path = sorted(tmp_path.iterdir())[1]
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, len(whole), (60,), generator=generator).tolist()
    damaged = [whole[:n] for n in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1)]
    damaged += [whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :] for at in places]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises((CheckpointError, ValueError), match=r"groupwise-0001|holds another run"):
            run()
    path.write_bytes(whole)
    run()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="checkpoint_dir"):
        quantize_weights(Stack(), {}, GRID, "rtn", checkpoint_dir=tmp_path / "file" / "below")
