"""Taps read what modules return and leave no trace; outputs of all common kinds give their logits."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.distillation import Taps, logits_of
from tests.distillation.models import ConvNet, images, same, snapshot


class Attention(nn.Module):
    """Returns a tuple (hidden, probabilities), as attention modules do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x.softmax(-1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.twice = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        hidden, _ = self.attention(x)
        return self.last({"last_hidden_state": self.twice(self.twice(hidden))})


def test_values_are_those_of_the_modules() -> None:
    model, x = ConvNet(4, 0).eval(), images()
    with Taps(model, ["bn1", "conv2", ""]) as taps:
        output = model(x)
    normed = model.bn1(model.conv1(x))
    assert torch.equal(taps["bn1"], normed)  # before the in-place ReLU that follows overwrites it
    assert torch.equal(taps["conv2"], model.conv2(torch.relu(normed)))
    assert torch.equal(taps[""], output)


def test_the_output_and_the_gradients_do_not_change() -> None:
    model = ConvNet(4, 0)
    other = copy.deepcopy(model)
    x = images()
    torch.manual_seed(3)
    with Taps(model, ["relu", "conv2"]) as taps:
        output = model(x)
    torch.manual_seed(3)
    expected = other(x)
    assert torch.equal(output, expected)
    (output.sum() + taps["conv2"].sum()).backward()
    expected.sum().backward()
    assert model.fc.weight.grad is not None
    assert torch.equal(model.fc.weight.grad, other.fc.weight.grad)
    # d(sum of conv2's outputs)/d(bias) = the number of positions, on top of what the output gives.
    assert model.conv2.bias is not None
    assert model.conv2.bias.grad is not None
    assert torch.allclose(model.conv2.bias.grad, other.conv2.bias.grad + 4 * 8 * 8)


def test_no_trace_remains() -> None:
    model = ConvNet(4, 0).eval()
    before = snapshot(model)
    with Taps(model, ["relu", "fc"]), torch.no_grad():
        model(images())
        assert not same(model, before)  # the hooks are there
    assert same(model, before)
    with pytest.raises(ZeroDivisionError), Taps(model, "fc"):
        raise ZeroDivisionError
    assert same(model, before)


def test_tuples_dicts_and_repeated_calls() -> None:
    model, x = Model(), torch.randn(2, 4)
    with Taps(model, ["attention", "attention[1]", "twice", "last", "last[0]"]) as taps:
        output = model(x)
    assert torch.equal(taps["attention"], x + 1)
    assert torch.equal(taps["attention[1]"], x.softmax(-1))
    assert torch.equal(taps["twice"], output["last_hidden_state"])  # the last of its two calls
    assert torch.equal(taps["last"], output["last_hidden_state"])
    assert torch.equal(taps["last[0]"], output["last_hidden_state"])


def test_entering_again_forgets_the_last_forward() -> None:
    model = Model()
    taps = Taps(model, "twice")
    with taps:
        model(torch.randn(2, 4))
    assert list(taps.values) == ["twice"]
    with taps, pytest.raises(RuntimeError, match="already recording"), taps:
        pass
    with taps:
        pass
    with pytest.raises(RuntimeError, match="model module 'twice' did not run in the last forward"):
        taps["twice"]


def test_names_inside_wrappers() -> None:
    model = ConvNet(4, 0).eval()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    with Taps(wrapped, "conv2") as taps:
        model(images())
    assert taps["conv2"].shape == (4, 4, 8, 8)
    parts = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(3, 2)), backend="eager"))  # type: ignore[arg-type]
    assert Taps(parts, "0.0").names == ("0.0",)


def test_wrong_names() -> None:
    model = ConvNet(4, 0)
    with pytest.raises(ValueError, match=r"Taps: the model has no module 'conv3'; did you mean 'conv2' or 'conv1'\?"):
        Taps(model, ["conv1", "conv3"])
    with pytest.raises(ValueError, match=r"no module 'zzz'; its modules are 'conv1', .*named_modules\(\) lists them"):
        Taps(model, "zzz")
    with pytest.raises(ValueError, match=r"no module 'fc'; it has no modules inside"):
        Taps(nn.ReLU(), "fc")
    with pytest.raises(TypeError, match=r"Taps: names must be module names, got 3"):
        Taps(model, [3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"Taps: model must be a torch.nn.Module, got int"):
        Taps(3, "fc")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match=r"'fc' is not tapped; tapped are 'conv1'"):
        Taps(model, "conv1")["fc"]


def test_modules_that_do_not_run_or_return_no_tensor() -> None:
    model = Model()
    with Taps(model, "unused") as taps:
        model(torch.randn(2, 4))
    with pytest.raises(RuntimeError, match=r"module 'unused' did not run .* tap a module that its forward calls"):
        taps["unused"]
    for name in ("attention[2]", "twice[1]"):
        with (
            pytest.raises(TypeError, match=r"returned (tuple|Tensor), with no tensor there; .*'name\[1\]'"),
            Taps(model, name),
        ):
            model(torch.randn(2, 4))
    assert not model.attention._forward_hooks


LOGITS = torch.randn(3, 5)
HIDDEN = torch.randn(3, 7, 4)
Named = namedtuple("Named", ["logits", "aux"])


class Output:
    logits = LOGITS


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, HIDDEN),
        (torch.tensor(0.5), LOGITS, HIDDEN),
        {"loss": torch.tensor(0.5), "logits": LOGITS, "hidden_states": (HIDDEN,)},
        {"out": LOGITS, "aux": HIDDEN},
        {"score": LOGITS},
        Named(LOGITS, HIDDEN),
        Output(),
    ],
)
def test_logits_of(output: Any) -> None:
    assert logits_of(output) is LOGITS


def test_logits_of_a_hugging_face_output() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    assert logits_of(outputs.SequenceClassifierOutput(loss=torch.tensor(0.5), logits=LOGITS)) is LOGITS


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ({"a": HIDDEN, "b": HIDDEN}, "a dict with keys 'a', 'b'"),
        ((torch.tensor(0.5), "x"), "a tuple of Tensor, str"),
        (3, "a int"),
        ((), "a tuple of nothing"),
    ],
)
def test_outputs_without_logits(output: Any, shown: str) -> None:
    with pytest.raises(TypeError, match=f"no logits in the teacher's output, {shown}; allowed are a tensor"):
        logits_of(output, "teacher")
