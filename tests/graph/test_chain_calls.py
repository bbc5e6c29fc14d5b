"""Chains as part of a frozen model: whose memory they hold, what they say, and who may call them."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.errors import PackedBlobError
from fastcompress.graph.frozen import FrozenModel
from fastcompress.nn import QuantConv2d
from fastcompress.ops.chain_program import unpack_chain
from tests.graph.chain_models import frozen_pair, layers_of
from tests.graph.models import Net, images, int8
from tests.graph.test_freeze import same_bits

pytestmark = pytest.mark.usefixtures("native")


def _two_chains(m: Any, x: Tensor) -> Any:
    y = F.max_pool2d(m.c(F.relu(m.b(m.a(x)))), 2)
    return m.f(F.relu(m.e(m.d(y)) + y))


@pytest.fixture
def pair() -> tuple[nn.Module, FrozenModel]:
    """A model with two chains of three, and the same frozen."""
    model, frozen = frozen_pair(_two_chains)
    assert frozen.chains == 2
    return model, frozen


def _storage(layer: QuantConv2d) -> int:
    return layer.packed.untyped_storage().data_ptr()


def test_weights_are_held_once(pair: tuple[nn.Module, FrozenModel]) -> None:
    model, frozen = pair
    layers = layers_of(frozen)
    groups: dict[int, list[QuantConv2d]] = {}
    for layer in layers.values():
        groups.setdefault(_storage(layer), []).append(layer)
    assert sorted(map(len, groups.values())) == [3, 3]
    for place, group in groups.items():
        storage = group[0].packed.untyped_storage()
        program = torch.empty(0, dtype=torch.uint8).set_(storage)
        steps = unpack_chain(program)
        assert {step.packed.data_ptr() for step in steps} == {layer.packed.data_ptr() for layer in group}
        assert all(place < step.packed.data_ptr() < place + storage.nbytes() for step in steps)
        # Nothing but header, steps and weights.
        assert storage.nbytes() <= 64 + 128 * 3 + 64 + sum(layer.packed.numel() + 63 for layer in group)
    for name, layer in layers.items():
        original: Any = model.get_submodule(name.removesuffix("_relu"))
        assert torch.equal(layer.dequantize(), original.dequantize())


def test_the_chain_runs_from_the_memory_of_its_layers(pair: tuple[nn.Module, FrozenModel]) -> None:
    _, frozen = pair
    packed = layers_of(frozen)["e_relu"].packed
    packed[40] ^= 1
    with pytest.raises(PackedBlobError, match=r"packed weights: the header is corrupt \(checksum mismatch\)") as caught:
        frozen(images())
    assert "chain of convolutions d, " in _notes(caught.value)
    packed[40] ^= 1
    frozen(images())


def _notes(error: BaseException | None) -> str:
    """The notes of an error and of those that it came from."""
    return "" if error is None else "\n".join([*getattr(error, "__notes__", []), _notes(error.__cause__)])


def test_the_model_keeps_its_memory(pair: tuple[nn.Module, FrozenModel]) -> None:
    model, frozen = pair
    ours = {_storage(layer) for layer in model.modules() if isinstance(layer, QuantConv2d)}
    assert len(ours) == 6
    assert not ours & {_storage(layer) for layer in layers_of(frozen).values()}


def test_copies_share_nothing(pair: tuple[nn.Module, FrozenModel]) -> None:
    model, frozen = pair
    twins = [copy.deepcopy(frozen), fc.freeze(frozen, images())]
    twins += [copy.deepcopy(nn.Sequential(frozen))[0]]  # type: ignore[list-item]
    for twin in twins:
        assert twin.chains == 2
        places = {_storage(layer) for layer in layers_of(twin).values()}
        assert len(places) == 2
        assert not places & {_storage(layer) for layer in layers_of(frozen).values()}
        same_bits(model, twin, images(seed=4), images(3, size=9))
    for layer in layers_of(frozen).values():
        layer.packed.zero_()
    with pytest.raises(PackedBlobError):
        frozen(images())
    for twin in twins:
        same_bits(model, twin, images(seed=4), images(3, size=9))


def test_shared_layers_are_copied_with_their_chains() -> None:
    model, frozen = frozen_pair(lambda m, x: m.b(m.c(torch.sin(m.b(m.b(m.a(x)))))))
    assert frozen.chains == 2
    for twin in (frozen, copy.deepcopy(frozen), copy.deepcopy(copy.deepcopy(frozen))):
        same_bits(model, twin, images(seed=4))
        places = {name: _storage(layer) for name, layer in layers_of(twin).items()}
        assert places["b"] == places["c"] != places["a"]  # the last chain's program


def test_explain_sees_the_layers_of_a_chain(pair: tuple[nn.Module, FrozenModel]) -> None:
    _, frozen = pair
    assert len(fc.explain(frozen).rows) == 6


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles(pair: tuple[nn.Module, FrozenModel], dynamic: bool) -> None:
    model, frozen = pair
    compiled: Any = torch.compile(frozen, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    sizes = ((4, 12), (2, 12), (3, 16)) if dynamic else ((4, 12), (2, 12))
    for form in (torch.contiguous_format, torch.channels_last):
        same_bits(model, compiled, *(images(n, size=size, seed=n).contiguous(memory_format=form) for n, size in sizes))


@pytest.mark.filterwarnings("ignore:Error detected in GeneratedBackward")
def test_no_gradients(pair: tuple[nn.Module, FrozenModel]) -> None:
    _, frozen = pair
    x = images().requires_grad_()
    with pytest.raises(RuntimeError, match="there are none here"):
        frozen(x)
    with torch.no_grad():
        frozen(x)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="conv2d_chain has no gradient; use the model that was frozen"):
        compiled(x).sum().backward()
    assert x.grad is None
    eager = torch.compile(frozen, fullgraph=True, backend="eager")
    y = eager(x)
    assert y.requires_grad
    with pytest.raises(RuntimeError, match="conv2d_chain has no gradient; use the model that was frozen"):
        y.sum().backward()
    assert x.grad is None


def test_errors_name_the_first_layer(pair: tuple[nn.Module, FrozenModel]) -> None:
    _, frozen = pair
    with pytest.raises(ValueError, match=r"QuantConv2d: `input` has 4 channels .*in_channels=3"):
        frozen(images(channels=4))
    with pytest.raises(ValueError, match=r"must be \[N, C, H, W\] or \[C, H, W\]"):
        frozen(torch.ones(3, 12))
    model, small = frozen_pair(lambda m, x: m.d(m.c(F.max_pool2d(m.b(m.a(x)), 2))), example=images())
    for layer in (model.c, model.d):
        assert isinstance(layer, QuantConv2d)
        layer.padding4 = (0, 0, 0, 0)
    small = fc.freeze(model, images())
    assert small.chains == 2
    with pytest.raises(
        ValueError, match="conv2d_chain: convolution 1 has a kernel that is larger than its padded input"
    ) as caught:
        small(images(size=6))
    assert "chain of convolutions c, d" in _notes(caught.value)


def test_another_isa_after_freezing(native: Any, pair: tuple[nn.Module, FrozenModel]) -> None:
    model, frozen = pair
    made_for, x = native.isa(), images(seed=3)
    with torch.no_grad():
        expected = model(x)
    others = [isa for isa in native.isa_supported() if isa != made_for]
    for isa in others:
        native.set_isa(isa)
        with pytest.raises(PackedBlobError, match=f"packed weights: made for ISA '{made_for}'.*'{isa}'") as caught:
            frozen(x)
        assert "chain of convolutions a, " in _notes(caught.value)
        again = copy.deepcopy(model)
        for layer in again.modules():
            if isinstance(layer, QuantConv2d):
                layer.repack()
        assert torch.equal(fc.freeze(again, images())(x), expected)
    native.set_isa(made_for)
    assert torch.equal(frozen(x), expected)


def test_calls_from_several_python_threads() -> None:
    torch.manual_seed(0)
    model = int8(Net(), images())
    frozen = fc.freeze(model, images())
    assert frozen.chains == 1
    inputs = [images(count, size=size, seed=count) for count, size in ((1, 12), (5, 16), (17, 12), (2, 24))]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    wrong: list[object] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        torch.set_num_threads(1 + number % 2)
        start.wait()
        try:
            for turn in range(40):
                place = (number + turn) % len(inputs)
                if not torch.equal(frozen(inputs[place]), expected[place]):
                    wrong.append((number, turn))
        except Exception as error:  # an assertion here would be lost
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inference_mode(pair: tuple[nn.Module, FrozenModel]) -> None:
    model, frozen = pair
    with torch.no_grad():
        expected = model(images(seed=3))
    with torch.inference_mode():
        assert torch.equal(frozen(images(seed=3)), expected)
        made_there = fc.freeze(model, images())
        twin = copy.deepcopy(frozen)
        assert torch.equal(made_there(images(seed=3)), expected)
    assert made_there.chains == twin.chains == 2
    for found in (frozen, made_there, twin):
        assert torch.equal(found(images(seed=3)), expected)


def test_empty_batches(pair: tuple[nn.Module, FrozenModel]) -> None:
    model, frozen = pair
    same_bits(model, frozen, images(0), images(0, size=9).contiguous(memory_format=torch.channels_last))


def test_images_in_any_memory(pair: tuple[nn.Module, FrozenModel]) -> None:
    model, frozen = pair
    wide = images(6, size=25, seed=1)
    same_bits(model, frozen, wide[::2, :, 1::2, ::2], wide.transpose(2, 3), wide[:1].expand(4, 3, 25, 25))
    with torch.no_grad():
        for x in (wide[::2, :, 1::2, ::2], wide.transpose(2, 3), wide[:1].expand(4, 3, 25, 25)):
            assert torch.equal(frozen(x), model(x))  # same_bits makes copies
