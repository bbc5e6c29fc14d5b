"""Models in which a careless fusion would change bits: shared layers, in-place steps, memory formats, lookalikes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcompress as fc
from tests.graph.models import Net, images, int8
from tests.graph.test_freeze import same_bits

Forward = Callable[[nn.Module, Tensor], Tensor]


class Made(nn.Module):
    """Linear layers ``a`` and ``b`` of 16 and a forward that the test gives."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.position = nn.Parameter(torch.randn(1, 16))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


class Image(Made):
    """The same with 3×3 convolutions, 3 to 16 to 8 channels."""

    def __init__(self, forward: Forward) -> None:
        super().__init__(forward)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)  # type: ignore[assignment]


def _clamped_residual(m: nn.Module, x: Tensor) -> Tensor:
    kept = x * 1
    y = m.a(x)
    kept.clamp_(-1, 1)
    return y + kept


def _clamped_input(m: nn.Module, x: Tensor) -> Tensor:
    h = x * 1
    y = m.a(h)
    h.clamp_(-1, 1)
    return y + torch.sin(h)


def _alias(m: nn.Module, x: Tensor) -> Tensor:
    kept = x * 1
    y = m.a(x)
    skip = kept
    kept += y
    return torch.cat([kept, skip])


def _own_output(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y += x
    return F.relu(y, inplace=True)


def _input_changed(m: nn.Module, x: Tensor) -> Tensor:
    x += m.a(x)
    return x


@pytest.mark.parametrize(
    ("forward", "additions"),
    [
        (_clamped_residual, 0),
        (_clamped_input, 0),
        (_alias, 0),
        (_own_output, 1),
        (_input_changed, 0),
        (lambda m, x: m.a(F.relu(m.a(x))), 0),  # one call with an activation, one without
        (lambda m, x: F.relu(m.a(x) + m.a(x * 0.5)), 1),
        (lambda m, x: m.a(x) + m.position, 0),  # a batch of one has the shape of the parameter
        (lambda m, x: m.a(x) + x[:1], 0),
        (lambda m, x: m.a(x[:1]) + torch.sin(x), 0),
        (lambda m, x: m.b(input=m.a(input=x)), 0),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_steps_that_must_not_move(forward: Forward, additions: int, batch: int) -> None:
    example = torch.randn(batch, 16, generator=torch.Generator().manual_seed(batch))
    before = example.clone()
    model = int8(Made(forward), torch.randn(64, 16, generator=torch.Generator().manual_seed(1)))
    frozen = fc.freeze(model, example)
    assert torch.equal(example, before)
    assert frozen.additions == additions
    same_bits(model, frozen, torch.randn(7, 16) * 3, torch.randn(1, 16) * 3, example)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.a(x)),
        lambda m, x: m.a(x).sigmoid(),
        lambda m, x: m.a(x).mean((2, 3)),
        lambda m, x: F.adaptive_avg_pool2d(m.a(x), 1),
        lambda m, x: F.group_norm(F.relu(m.a(x)), 4),
        lambda m, x: F.max_pool2d(F.relu(m.a(x)), 2),
        lambda m, x: F.gelu(m.a(x)) + m.a(x),
        lambda m, x: torch.cat([m.a(x), x], 1),
    ],
)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_other_steps_read_images_in_their_own_order(forward: Forward, form: torch.memory_format) -> None:
    def made(count: int, size: int) -> Tensor:
        return images(count, size=size, seed=size).contiguous(memory_format=form)

    model = int8(Image(forward), made(2, 14), ignore=["b"])
    frozen = fc.freeze(model, made(2, 14))
    same_bits(model, frozen, made(1, 14), made(3, 9))
    if form is torch.channels_last:  # whatever the example was
        same_bits(model, frozen, images(2, size=11))


def test_views_of_images() -> None:
    model = int8(Image(lambda m, x: m.a(x).view(x.shape[0], -1)), images())
    same_bits(model, fc.freeze(model, images()), images(3, size=9))
    same_bits(model, fc.freeze(model, images(2, size=1)), images(3, size=9))  # of one pixel every order is one


def test_a_float_head_behind_the_mean() -> None:
    torch.manual_seed(0)
    model = int8(Net(), images(), ignore=["head"])
    same_bits(model, fc.freeze(model, images()), images(2, size=20), images(1))


def test_single_images_after_batches() -> None:
    model = int8(Image(lambda m, x: m.b(m.a(x))), images())
    frozen = fc.freeze(model, images())
    same_bits(model, frozen, images()[0])


@pytest.mark.parametrize(
    "module", [nn.Hardtanh(0, 6.00001), nn.LeakyReLU(1e-10), nn.Threshold(1e-6, 0.0), nn.ELU(1e-6)]
)
def test_lookalikes_stay(module: nn.Module) -> None:
    model = int8(nn.Sequential(nn.Linear(16, 16), nn.Tanh()), torch.randn(64, 16))
    model[1] = module  # type: ignore[operator]
    frozen = fc.freeze(model, torch.randn(4, 16))
    assert frozen.activations == 0
    same_bits(model, frozen, torch.randn(512, 16) * 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_signs_of_zero(dtype: torch.dtype) -> None:
    linear = nn.Linear(16, 40)
    with torch.no_grad():
        linear.weight.zero_()
        assert linear.bias is not None
        linear.bias.copy_(torch.linspace(-1e-9, 1e-9, 40))
    model = int8(nn.Sequential(linear, nn.Tanh()), torch.randn(5, 16))
    model[1] = nn.ReLU()  # type: ignore[operator]
    model.to(dtype)
    x = torch.randn(5, 16).to(dtype)
    same_bits(model, fc.freeze(model, x), x)


def test_not_finite_values() -> None:
    model = int8(Made(lambda m, x: F.relu(m.b(F.relu(m.a(x))) + x)), torch.randn(64, 16))
    frozen = fc.freeze(model, torch.randn(2, 16))
    x = torch.randn(6, 16)
    for row, value in enumerate((float("nan"), float("inf"), -float("inf"), -0.0, 1e38)):
        x[row, row] = value
    same_bits(model, frozen, x)


def test_a_module_named_add_is_no_addition() -> None:
    model = Made(lambda m, x: m.add(m.a(x), x))
    model.add = nn.Bilinear(16, 16, 16)
    finished = int8(model, torch.randn(64, 16))
    same_bits(finished, fc.freeze(finished, torch.randn(2, 16)), torch.randn(3, 16))


def test_what_cannot_change_says_so() -> None:
    model = int8(Made(lambda m, x: m.b(m.a(x))), torch.randn(64, 16))
    x = torch.randn(4, 16)
    frozen = fc.freeze(model, x)
    with pytest.raises(RuntimeError, match="load into the model it was frozen from"):
        frozen.load_state_dict(frozen.state_dict())
    with pytest.raises(RuntimeError, match="cast the model it was frozen from"):
        frozen.bfloat16()
    for inplace in (False, True):
        with pytest.raises(TypeError, match="the model is frozen"):
            fc.quantize(frozen, "W8A8", calibration_data=[x], inplace=inplace)
    with pytest.raises(RuntimeError, match="autocast"), torch.autocast("cpu", torch.bfloat16):
        frozen(x)
    same_bits(model, frozen.to(memory_format=torch.channels_last), x)  # type: ignore[call-overload]


def test_a_frozen_part_of_a_model() -> None:
    outer = nn.Sequential(
        nn.Linear(16, 16), int8(Made(lambda m, x: m.b(m.a(x))), torch.randn(64, 16)), nn.Linear(16, 2)
    )
    x = torch.randn(4, 16)
    outer.eval()
    with torch.no_grad():
        expected = outer(x)
        outer[1] = fc.freeze(outer[1], torch.randn(4, 16))
        outer.train()
        assert [module.training for module in outer] == [True, False, True]
        outer.eval()
        assert torch.equal(outer(x), expected)
    same_bits(outer, fc.freeze(outer, x), x)
    with pytest.raises(TypeError, match=r"fc\.freeze"):
        fc.prune(outer, 0.5)


def test_optional_inputs_that_decide_are_refused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y = self.layer(x)
            return y if mask is None else y * mask

    with pytest.raises(ValueError, match="Masked cannot be captured as one graph"):
        fc.freeze(Masked(), torch.randn(2, 16))
