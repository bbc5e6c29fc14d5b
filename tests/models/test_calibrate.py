"""The batch protocol, the model's state around calibration, and the recorded flow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcompress.models import calibrate
from fastcompress.models.calibrate import as_batches, evaluating, replayable, run_batch, run_batches, track
from fastcompress.models.flow import Flow, FlowTracer, InputKind


class Doubler(nn.Module):
    def forward(self, x: Tensor, times: int = 2) -> Tensor:
        return x * times


def record(model: nn.Module, *inputs: Tensor) -> Flow:
    leaves = {n: m for n, m in model.named_modules() if n and next(m.children(), None) is None}
    tracer = FlowTracer(leaves, model)
    with evaluating(model), tracer.recording():
        run_batches(model, inputs, around=tracer.run)
    return tracer.flow


@pytest.mark.parametrize(
    "batch", [torch.ones(2), {"x": torch.ones(2)}, (torch.ones(2), "label"), [{"x": torch.ones(2)}, 3]]
)
def test_batch_protocol(batch: Any) -> None:
    assert run_batch(Doubler(), batch).tolist() == [2.0, 2.0]


def test_forward_fn_overrides() -> None:
    assert run_batch(Doubler(), 3, lambda model, batch: model(torch.ones(1), batch)).tolist() == [3.0]


def test_wrong_batches() -> None:
    with pytest.raises(TypeError, match=r"a calibration batch is a int; allowed are a tensor .* pass forward_fn="):
        run_batch(Doubler(), 3)
    with pytest.raises(ValueError, match=r"a calibration batch is an empty tuple or list"):
        run_batch(Doubler(), ())
    with pytest.raises(TypeError, match=r"calibration_data must be an iterable of batches .* got int"):
        as_batches(3)


def test_a_single_tensor_or_dict_is_one_batch() -> None:
    assert len(list(as_batches(torch.ones(5, 2)))) == 1
    assert len(list(as_batches({"x": torch.ones(5), "times": 2}))) == 1


def test_no_batches() -> None:
    with pytest.raises(ValueError, match="calibration_data yielded no batches"):
        run_batches(Doubler(), [])


def test_iterators_become_replayable() -> None:
    batches = replayable(iter([1, 2]))
    assert list(batches) == list(batches) == [1, 2]


def test_failure_names_the_batch() -> None:
    with pytest.raises(TypeError) as caught:
        run_batches(Doubler(), [torch.ones(1), "no"])
    assert caught.value.__notes__ == ["raised while calibrating, on batch 1"]


def test_training_flags_are_put_back_one_by_one() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    model[1].eval()
    seen = []

    def fail() -> None:
        seen.append((any(m.training for m in model.modules()), torch.is_grad_enabled()))
        raise KeyError

    with pytest.raises(KeyError), evaluating(model):
        fail()
    assert seen == [(False, False)]
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.is_grad_enabled()


def test_progress_bar_shows_and_items_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(calibrate, "_BAR_AFTER_SECONDS", -1.0)
    bars = []
    start = calibrate._start_bar
    monkeypatch.setattr(calibrate, "_start_bar", lambda *arguments: bars.append(start(*arguments)) or bars[-1])
    assert list(track([1, 2, 3], "quiet")) == [1, 2, 3]  # stderr is no terminal here
    assert not bars
    assert list(track([1, 2, 3], "measuring layers", enabled=True)) == [1, 2, 3]
    (task,) = bars[0].tasks
    assert (task.description, task.total, task.completed) == ("measuring layers", 3, 3)
    assert not bars[0].live.is_started


def test_flow_follows_modules() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Identity(), nn.Conv2d(4, 2, 1)
    )
    flow = record(model, torch.ones(1, 3, 4, 4), torch.ones(2, 3, 4, 4))
    assert [flow.sole_next(str(i)) for i in range(5)] == ["1", "2", "4", None, None]  # an Identity is transparent
    assert flow.sole_source("4") == "2"
    assert flow.calls["0"] == 2
    assert flow.inputs["0"] == {InputKind((1, 3, 4, 4)): 1, InputKind((2, 3, 4, 4)): 1}


class Consumer(nn.Module):
    """linear → relu, with one more use of the linear's output, chosen by ``mode``."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode, self.linear, self.relu = mode, nn.Linear(4, 4), nn.ReLU()
        self.stash: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        if self.mode == "add_before":
            y += 1.0
        z = self.relu(y)
        if self.mode == "functional":
            return z + F.softmax(y, -1)
        if self.mode == "view":
            return z, y[:, :1]
        if self.mode == "returned":
            return z, y
        if self.mode == "stashed":
            self.stash.append(y)
        if self.mode == "again":
            return z + self.relu(y)
        return z


@pytest.mark.parametrize("mode", ["add_before", "functional", "view", "returned", "stashed", "again"])
def test_any_other_consumer_is_seen(mode: str) -> None:
    assert record(Consumer(mode), torch.ones(2, 4)).sole_next("linear") is None


def test_no_other_consumer() -> None:
    assert record(Consumer("none"), torch.ones(2, 4)).sole_next("linear") == "relu"


def test_what_the_model_returns_counts_even_if_forward_fn_drops_it() -> None:
    model = Consumer("returned")
    tracer = FlowTracer({"linear": model.linear, "relu": model.relu}, model)

    def forward_fn(model: nn.Module, batch: Tensor) -> None:
        model(batch)

    with tracer.recording():
        run_batches(model, [torch.ones(2, 4)], forward_fn, around=tracer.run)
    assert tracer.flow.sole_next("linear") is None


def test_recording_leaves_no_trace() -> None:
    model = Consumer("none")
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    tracer = FlowTracer({"linear": model.linear}, model)
    with pytest.raises(RuntimeError), tracer.recording():
        run_batches(model, [torch.ones(2, 5)], around=tracer.run)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


def test_input_kind_makes_tensors_like_the_one_seen() -> None:
    x = torch.ones(2, 3, 4, 5, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    kind = InputKind.of(x)
    made = kind.make()
    assert InputKind.of(made) == kind
    assert made.stride() == x.stride()
