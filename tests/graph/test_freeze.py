"""Frozen models give the same bits, with fewer steps; and say what they cannot do."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from tests.graph.models import Net, images, int8


def same_bits(model: nn.Module, frozen: nn.Module, *inputs: Tensor) -> None:
    """NaN is NaN, zeros have signs, and what `view` can do is the same too."""
    with torch.no_grad():
        for x in inputs:
            expected, found = model(x.clone()), frozen(x.clone())
            assert found.dtype == expected.dtype
            assert found.shape == expected.shape
            assert [s for s, n in zip(found.stride(), found.shape, strict=True) if n > 1] == [
                s for s, n in zip(expected.stride(), expected.shape, strict=True) if n > 1
            ]
            same = (found == expected) & (found.signbit() == expected.signbit()) | found.isnan() & expected.isnan()
            assert bool(same.all())


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return int8(Net(), images())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_for_other_batches_and_formats(channels: int, channels_last: bool) -> None:
    torch.manual_seed(1)
    model = int8(Net(channels), images(channels=channels))
    form = torch.channels_last if channels_last else torch.contiguous_format
    frozen = fc.freeze(model, images(channels=channels).contiguous(memory_format=form))
    others = (images(count, channels, size, seed) for count, size, seed in ((1, 12, 1), (7, 12, 2), (2, 17, 3)))
    same_bits(model, frozen, *(x.contiguous(memory_format=form) for x in others))
    assert (frozen.additions, frozen.activations, frozen.links) == (2, 2, 3)


@pytest.mark.parametrize("pattern", ["16x4", "4x4", "unstructured"])
def test_sparse_layers(pattern: str) -> None:
    torch.manual_seed(2)
    pruned = fc.prune(Net().eval(), 0.5, pattern, ignore=["stem", "head"])
    model = int8(pruned, images())
    same_bits(model, fc.freeze(model, images()), images(seed=5), images(1, seed=6))
    floats = fc.convert(pruned, example_inputs=images(), only_if_faster=False)
    frozen = fc.freeze(floats, images())
    same_bits(floats, frozen, images(seed=7))
    assert frozen.links == 0


def test_layers_of_a_chain_hand_on_bytes(net: nn.Module) -> None:
    frozen = fc.freeze(net, images())
    given = {str(node.target): node.kwargs.get("out_dtype") for node in frozen.body.graph.nodes}
    assert given["stem"] == torch.float32  # a residual as well
    assert given["blocks.0.first"] == given["blocks.1.first"] == given["blocks_0_second_relu"] == torch.uint8
    assert given["blocks.1.second"] == torch.float32  # is added
    same_bits(net, frozen, images(seed=3))


def test_linear_layers_hand_on_bytes() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 32), nn.GELU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8))
    x = torch.randn(6, 20)
    static = int8(model, x)
    frozen = fc.freeze(static, x)
    assert frozen.links == 2
    same_bits(static, frozen, torch.randn(3, 20), torch.randn(2, 5, 20))
    dynamic = int8(model, x, scheme="W8A8-dynamic")
    assert fc.freeze(dynamic, x).links == 0
    same_bits(dynamic, fc.freeze(dynamic, x), x)


class _Readers(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.first, self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        if self.mode == "two":
            return self.a(y) + self.b(y)
        if self.mode == "two scales":
            return self.a(y) + self.b(y * 1.0)
        if self.mode == "returned":
            return {"scores": self.a(y), "hidden": y}
        if self.mode == "broadcast":
            return torch.relu(self.a(y) + x[:1])
        if self.mode == "scaled":
            return torch.add(self.a(y), x, alpha=2)
        if self.mode == "twice":
            z = self.a(y)
            return z + z
        assert self.mode == "later"
        z = self.a(y)
        return torch.relu(z + torch.sin(x))  # made after the layer that shall add it


@pytest.mark.parametrize(
    ("mode", "counts"),
    [
        ("two", (1, 0, 1)),
        ("two scales", (1, 0, 0)),
        ("returned", (0, 0, 0)),
        ("broadcast", (0, 0, 1)),
        ("scaled", (0, 0, 1)),
        ("twice", (0, 0, 1)),
        ("later", (1, 1, 1)),
    ],
)
def test_who_else_reads_a_value(mode: str, counts: tuple[int, int, int]) -> None:
    torch.manual_seed(4)
    x = torch.randn(5, 16)
    model = int8(_Readers(mode), x)
    frozen = fc.freeze(model, x)
    with torch.no_grad():
        expected, found = model(x.flip(0)), frozen(x.flip(0))
    if mode == "returned":
        assert torch.equal(found["hidden"], expected["hidden"])
        found, expected = found["scores"], expected["scores"]
    assert torch.equal(found, expected)
    assert (frozen.additions, frozen.activations, frozen.links) == counts


def test_bfloat16_keeps_its_roundings() -> None:
    torch.manual_seed(5)
    model = int8(Net(), images()).bfloat16()
    x = images().bfloat16()
    frozen = fc.freeze(model, x)
    same_bits(model, frozen, images(seed=9).bfloat16())
    assert frozen.additions == 0  # torch rounds before it adds
    with pytest.raises(ValueError, match=r"an input is torch\.float32, the model was frozen for torch\.bfloat16"):
        frozen(images())


def test_activations_other_than_relu_stay() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.gelu(self.layer(x))

    x = torch.randn(4, 16)
    model = int8(Late(), x)
    frozen = fc.freeze(model, x)
    assert frozen.activations == 0
    same_bits(model, frozen, x * 0.5)


def test_model_stays_as_it_is_and_shares_nothing(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    frozen = fc.freeze(net, images())
    assert net.training
    net.eval()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    ours = {t.data_ptr() for t in net.buffers()} & {t.data_ptr() for t in frozen.buffers()}
    assert not ours
    assert not any(module.training for module in frozen.modules())
    assert not any(module.training for module in frozen.train().modules())


def test_copies_and_files(net: nn.Module) -> None:
    frozen = fc.freeze(net, images())
    twin = copy.deepcopy(frozen)
    assert (twin.additions, twin.activations, twin.links) == (frozen.additions, frozen.activations, frozen.links)
    same_bits(net, twin, images(seed=4))
    same_bits(net, fc.freeze(frozen, images()), images(seed=4))
    with pytest.raises(TypeError, match="save the model it was frozen from"):
        pickle.dumps(frozen)


def test_keyword_inputs(net: nn.Module) -> None:
    frozen = fc.freeze(net, {"image": images()})
    with torch.no_grad():
        assert torch.equal(frozen(image=images(seed=2)), net(images(seed=2)))
        with pytest.raises(ValueError, match=r"frozen for torch\.float32"):
            frozen(image=images().double())


def test_compiles(net: nn.Module) -> None:
    frozen = fc.freeze(net, images())
    compiled = torch.compile(frozen, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(images(seed=8)), net(images(seed=8)))


def test_explain_and_benchmark_take_it(net: nn.Module) -> None:
    frozen = fc.freeze(net, images())
    seen = fc.benchmark(frozen, Net().eval(), images(), min_time_s=0.01, bf16=False)
    assert seen.compressed.seconds is not None
    assert len(fc.explain(frozen).rows) == 7
    with pytest.raises(ValueError, match="explain the model that it was"):
        fc.explain(frozen, images())


def test_errors(net: nn.Module) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(ValueError, match="Branches cannot be captured as one graph"):
        fc.freeze(Branches(), images())
    with pytest.raises(RuntimeError, match="output 0 of the program differs"):
        fc.freeze(Random(), images())
    with pytest.raises(TypeError, match=r"freeze: model must be a torch\.nn\.Module, got str"):
        fc.freeze("model", images())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="example_inputs is a int"):
        fc.freeze(net, 3)
    with pytest.raises(ValueError, match="empty tuple"):
        fc.freeze(net, ())
    with pytest.raises(ValueError, match="unknown: pixels; missing: image"):
        fc.freeze(net, {"pixels": images()})
    frozen = fc.freeze(net, images())
    with pytest.raises(RuntimeError, match="there are none here"):
        frozen(images().requires_grad_())
    with pytest.raises(TypeError, match="an input is list"):
        frozen([1.0])
    with pytest.raises(ValueError, match="4 channels") as caught:
        frozen(images(channels=4))
    assert "in_channels=3" in str(caught.value) or "takes 3" in str(caught.value)
