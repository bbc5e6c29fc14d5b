"""Which convolutions of a frozen model become one call; the bits stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcompress as fc
from tests.graph.chain_models import Convs, as_same_padded, chains_of, frozen_pair
from tests.graph.models import Net, images, int8
from tests.graph.test_freeze import same_bits

pytestmark = pytest.mark.usefixtures("native")


def _cases() -> dict[str, tuple[Callable[[Any, Tensor], Any], list[list[str]]]]:
    """What a model does, and the chains that it has."""

    def block(m: Any, x: Tensor) -> Any:
        y = F.relu(m.a(x))
        z = F.relu(m.c(F.relu(m.b(y))) + y)
        return F.relu(m.e(F.relu(m.d(z))) + z)

    def skip(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return m.d(m.c(m.b(y)) + y)

    def outside(m: Any, x: Tensor) -> Any:
        y = m.b(m.a(x))
        return m.d(m.c(y)) * torch.sin(y)

    def first_outside(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return m.c(m.b(y)) * torch.sin(y)

    def returned(m: Any, x: Tensor) -> Any:
        y = m.b(m.a(x))
        return y, m.d(m.c(y))

    def entry_outside(m: Any, x: Tensor) -> Any:
        y = torch.sin(m.a(x))
        return m.c(m.b(y)) * y

    def entry_added(m: Any, x: Tensor) -> Any:
        y = torch.sin(m.a(x))
        return m.d(m.c(m.b(y) + y)) + y

    def first_adds_entry(m: Any, x: Tensor) -> Any:
        y = torch.sin(m.a(x))
        return m.c(F.relu(m.b(y) + y))

    def other_added(m: Any, x: Tensor) -> Any:
        y, z = torch.sin(m.a(x)), torch.cos(m.a(x))
        return m.f(m.e(m.d(m.c(m.b(y)) + z)))

    def branches(m: Any, x: Tensor) -> Any:
        y = F.relu(m.a(x))
        return F.relu(m.b(y) + m.c(y))

    def both_outside(m: Any, x: Tensor) -> Any:
        y = F.relu(m.a(x))
        return torch.cat([m.b(y), m.c(y)], 1)

    def unread(m: Any, x: Tensor) -> Any:
        m.d(m.a(x))
        y = m.a(x)
        m.e(y)
        return m.b(y)

    def value_and_residual(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        z = m.b(y) + y
        return m.c(z) + z

    return {
        "two": (lambda m, x: m.b(m.a(x)), [["a", "b"]]),
        "one": (lambda m, x: m.a(x), []),
        "six": (lambda m, x: m.f(m.e(m.d(m.c(m.b(m.a(x)))))), [["a", "b", "c", "d", "e", "f"]]),
        "residual net": (block, [["a", "b", "c", "d", "e"]]),
        "residual from the middle": (skip, [["a", "b", "c", "d"]]),
        "value and residual": (value_and_residual, [["a", "b", "c"]]),
        "read outside": (outside, [["a", "b"], ["c", "d"]]),
        "returned": (returned, [["a", "b"], ["c", "d"]]),
        "called again outside": (lambda m, x: m.c(m.b(m.a(x))) * torch.sin(m.a(x)), [["a", "b", "c"]]),
        "first is read outside": (first_outside, [["b", "c"]]),
        "entry is read outside": (entry_outside, [["b", "c"]]),
        "entry is a residual": (entry_added, [["b", "c", "d"]]),
        "first adds entry": (first_adds_entry, [["b", "c"]]),
        "residual from elsewhere": (other_added, [["d", "e", "f"]]),
        "branches that meet": (branches, [["a", "b", "c"]]),
        "branches that do not": (both_outside, []),
        "calls that nobody reads": (unread, [["a", "d", "a", "e", "b"]]),
        "pool between": (lambda m, x: m.d(m.c(F.max_pool2d(m.b(m.a(x)), 2))), [["a", "b"], ["c", "d"]]),
        "pool next to one": (lambda m, x: m.c(m.b(F.max_pool2d(m.a(x), 2))), [["b", "c"]]),
        "pools around one": (lambda m, x: m.c(F.max_pool2d(m.b(F.max_pool2d(m.a(x), 2)), 2)), []),
        "GELU between": (lambda m, x: m.c(m.b(F.gelu(m.a(x)))), [["b", "c"]]),
        "shared": (lambda m, x: m.c(m.b(m.b(m.a(x)))), [["a", "b", "b", "c"]]),
        "shared by two chains": (
            lambda m, x: m.b(m.c(torch.sin(m.b(m.a(x))))),
            [["a", "b"], ["c", "b"]],
        ),
        "shared with a call outside": (lambda m, x: torch.sin(m.b(torch.sin(m.b(m.a(x))))), [["a", "b"]]),
    }


CASES = _cases()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_who_is_in_a_chain(name: str, form: torch.memory_format) -> None:
    forward, expected = CASES[name]
    model, frozen = frozen_pair(forward, example=images().contiguous(memory_format=form))
    assert chains_of(frozen) == expected
    for x in (images(1, seed=2), images(7, seed=3), images(2, size=9, seed=4), images(3, size=16, seed=5) * 9):
        x = x.contiguous(memory_format=form)
        with torch.no_grad():
            for found, wanted in zip(_all(frozen(x)), _all(model(x)), strict=True):
                assert torch.equal(found, wanted)
                assert found.stride() == wanted.stride()


def _all(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def test_a_residual_net_is_one_chain() -> None:
    torch.manual_seed(0)
    model = int8(Net(), images())
    frozen = fc.freeze(model, images())
    assert chains_of(frozen) == [
        ["stem", "blocks.0.first", "blocks_0_second", "blocks.1.first", "blocks.1.second", "blocks_1_shortcut"]
    ]
    assert "chains=1" in repr(frozen)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            same_bits(model, frozen, *(images(count, seed=count) for count in (1, 2, 3, 5, 17)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pattern", ["16x4", "4x4", "unstructured"])
def test_sparse_layers_chain(pattern: str) -> None:
    torch.manual_seed(2)
    pruned = fc.prune(Net().eval(), 0.5, pattern, ignore=["stem", "head"])
    model = int8(pruned, images())
    frozen = fc.freeze(model, images())
    assert [len(chain) for chain in chains_of(frozen)] == [6]
    same_bits(model, frozen, images(seed=5), images(1, seed=6))


def test_float_layers_break_a_chain() -> None:
    model, frozen = frozen_pair(lambda m, x: m.e(m.d(m.c(m.b(m.a(x))))), ignore=["c"])
    assert chains_of(frozen) == [["a", "b"], ["d", "e"]]
    same_bits(model, frozen, images(3, seed=1))
    model, frozen = frozen_pair(lambda m, x: m.c(m.b(m.a(x))), ignore=["b"])
    assert chains_of(frozen) == []
    same_bits(model, frozen, images(3, seed=1))


def test_float_block_sparse_layers_break_a_chain() -> None:
    torch.manual_seed(1)
    net = Convs(lambda m, x: m.e(m.d(m.c(m.b(m.a(x)))))).eval()
    pruned = fc.prune(net, 0.5, "4x4", ignore=["a", "b", "d", "e", "f"])
    model = int8(fc.convert(pruned, example_inputs=images(), only_if_faster=False), images(8))
    assert type(model.c).__name__ == "SparseConv2d"
    frozen = fc.freeze(model, images())
    assert chains_of(frozen) == [["a", "b"], ["d", "e"]]
    same_bits(model, frozen, images(3, seed=1))


def test_same_padding_breaks_a_chain() -> None:
    """Its padding depends on the size of the images."""
    model = int8(Convs(lambda m, x: m.e(m.d(m.c(m.b(m.a(x)))))), images(8))
    model.c = as_same_padded(model.c)  # type: ignore[arg-type]
    frozen = fc.freeze(model, images())
    assert chains_of(frozen) == [["a", "b"], ["d", "e"]]
    same_bits(model, frozen, images(3, seed=1), images(2, size=9))


def test_linear_layers_are_in_no_chain() -> None:
    torch.manual_seed(3)
    model = int8(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)), torch.randn(32, 16))
    assert fc.freeze(model, torch.randn(2, 16)).chains == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    model = int8(Convs(lambda m, x: m.d(F.relu(m.c(m.b(F.relu(m.a(x))))))), images(8)).to(dtype)
    frozen = fc.freeze(model, images().to(dtype))
    assert chains_of(frozen) == [["b", "c"]]  # torch rounds before it applies ReLU
    same_bits(model, frozen, images(5, seed=1).to(dtype), images(2, size=9).to(dtype))


def test_images_of_bytes() -> None:
    model = int8(Convs(lambda m, x: m.b(m.a(x))), images(8))
    x = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    frozen = fc.freeze(model, x)
    assert chains_of(frozen) == [["a", "b"]]
    same_bits(model, frozen, x.flip(0), x[:1])


def test_strides_dilation_and_groups() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, (3, 5), stride=(2, 1), padding=(0, 3)),
                nn.ReLU6(),
                nn.Conv2d(16, 16, 3, groups=16, padding=2, dilation=2),
                nn.Hardswish(),
                nn.Conv2d(16, 24, 3, groups=4, padding="same", bias=False),
                nn.ReLU(),
                nn.Conv2d(24, 1, (1, 2), stride=3),
            )

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layers(x)
            return y

    model = int8(Mixed(), images(8))
    frozen = fc.freeze(model, images())
    assert frozen.chains >= 1
    for form in (torch.contiguous_format, torch.channels_last):
        xs = [images(n, size=size, seed=n).contiguous(memory_format=form) for n, size in ((1, 9), (3, 12), (5, 17))]
        same_bits(model, frozen, *xs)


def test_single_images_after_batches() -> None:
    model, frozen = frozen_pair(lambda m, x: m.c(m.b(m.a(x)) + m.a(x)))
    same_bits(model, frozen, images()[0], images(), images(2)[1], images(0))


def test_frozen_for_a_single_image() -> None:
    model, frozen = frozen_pair(lambda m, x: m.c(m.b(m.a(x))), example=images()[0])
    assert chains_of(frozen) == [["a", "b", "c"]]
    same_bits(model, frozen, images()[1], images(), images(2).contiguous(memory_format=torch.channels_last))


def test_residual_of_the_models_own_input() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.c(F.relu(self.b(F.relu(self.a(x))) + x))
            return y

    model = int8(Adds(), images(8, channels=8))
    for form in (torch.contiguous_format, torch.channels_last):
        frozen = fc.freeze(model, images(4, channels=8).contiguous(memory_format=form))
        same_bits(
            model, frozen, images(3, channels=8, size=9), images(2, channels=8, size=7).contiguous(memory_format=form)
        )


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_one_value_an_image_between_two_convolutions(form: torch.memory_format) -> None:
    """It has no order of its own: torch and the layers answer contiguous behind it, whatever the images were."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 1, 3), nn.Conv2d(1, 4, 3, padding=2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.a(x))
            return y.view(y.shape[0], -1)

    model = int8(Narrow(), images(4, size=3))
    frozen = fc.freeze(model, images(4, size=3))
    with torch.no_grad():
        for count in (1, 2, 5):
            x = images(count, size=3, seed=count).contiguous(memory_format=form)
            assert torch.equal(frozen(x), model(x))
