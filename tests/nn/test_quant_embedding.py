"""QuantEmbedding as a replacement of nn.Embedding, and the output head tied to it."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import GroupQuantLinear, QuantEmbedding
from tests.nn.group_cases import bits_of, product, quantized
from tests.ops.cases import rng

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AT = torch.tensor([[0, 3, 9], [9, 3, 3]])


def table(rows: int = 10, width: int = 40, **options: Any) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(rows, width, **options)


def make(bits: int = 8, group_size: int | None = 16, **options: Any) -> QuantEmbedding:
    return QuantEmbedding.from_float(table(**options), weight_bits=bits, group_size=group_size)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [None, 8, 32])
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_numpy_s(bits: int, group_size: int | None, scale_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """40 values: the last group of 32 is short. Rows are rounded to the layer's dtype once."""
    float_layer = table().to(dtype)
    layer = QuantEmbedding.from_float(float_layer, weight_bits=bits, group_size=group_size, scale_dtype=scale_dtype)
    expected = bits_of(quantized(float_layer.weight, bits, group_size, True, scale_dtype).floats, dtype)
    np.testing.assert_array_equal(layer.weight.float().numpy(), expected)
    for at in (AT, AT.int(), AT[0, 1], AT.t(), AT[:, ::2], AT[:, :0], AT[:0]):
        y = layer(at)
        assert y.dtype == dtype
        assert y.shape == (*at.shape, 40)
        np.testing.assert_array_equal(y.float().numpy(), expected[at.numpy()])


def test_attributes_and_repr() -> None:
    layer = make(4, padding_idx=3)
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (10, 40, 3)
    assert (layer.weight_bits, layer.group_size, layer.weight.shape) == (4, 16, (10, 40))
    assert list(dict(layer.named_buffers())) == ["packed"]
    assert list(layer.parameters()) == []
    assert layer.bias is None
    assert make().padding_idx is None
    assert repr(layer) == (
        "QuantEmbedding(num_embeddings=10, embedding_dim=40, padding_idx=3, weight_bits=4, group_size=16, "
        "dtype=torch.float32)"
    )
    assert layer.training
    assert not QuantEmbedding.from_float(table().eval()).training


def test_no_gradient_reaches_the_table() -> None:
    assert not make()(AT).requires_grad


@pytest.mark.parametrize("cast", DTYPES)
def test_cast_changes_the_output_s_dtype(cast: torch.dtype) -> None:
    layer = make()
    expected = layer(AT)
    packed = layer.packed.clone()
    assert torch.equal(layer.to(cast)(AT), expected.to(cast))
    assert torch.equal(layer.packed, packed)


INPUTS: list[tuple[Any, type[Exception], str]] = [
    (torch.tensor([1, 10]), ValueError, "QuantEmbedding: index 10 is out of range, the layer has 10 rows"),
    (torch.tensor([[3], [-1]]), ValueError, "QuantEmbedding: index -1 is out of range, the layer has 10 rows"),
    (torch.tensor([2**40]), ValueError, f"QuantEmbedding: index {2**40} is out of range, the layer has 10 rows"),
    (
        torch.tensor([1.0]),
        TypeError,
        "QuantEmbedding: `input` must be an int32 or int64 tensor of indices, got torch.float32",
    ),
    (
        torch.tensor([True]),
        TypeError,
        "QuantEmbedding: `input` must be an int32 or int64 tensor of indices, got torch.bool",
    ),
    ([1], TypeError, "QuantEmbedding: `input` must be an int32 or int64 tensor of indices, got list"),
    (None, TypeError, "QuantEmbedding: `input` must be an int32 or int64 tensor of indices, got NoneType"),
    (
        torch.zeros(2, dtype=torch.long, device="meta"),
        ValueError,
        "QuantEmbedding: `input` is on device meta, the layer on cpu; move one of them",
    ),
]


@pytest.mark.parametrize(("at", "error", "message"), INPUTS)
def test_forward_refuses(at: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()(at)
    assert type(caught.value) is error
    assert str(caught.value) == message


class _OwnForward(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_from_float_refuses() -> None:
    make_from: Any = QuantEmbedding.from_float
    for module in (_OwnForward(4, 8), nn.Linear(4, 4), nn.EmbeddingBag(4, 8)):
        with pytest.raises(TypeError, match=r"must be an nn\.Embedding with nn\.Embedding's forward, got"):
            make_from(module)
    with pytest.raises(ValueError, match=r"max_norm.* keep the nn\.Embedding"):
        make_from(table(max_norm=1.0))
    broken = table()
    broken.weight.data[3, 5] = float("nan")
    with pytest.raises(ValueError, match="`weight` holds NaN or infinity; repair the model"):
        make_from(broken)
    for options, error, message in (
        ({"weight_bits": 2}, ValueError, "weight_bits.* must be 4 or 8, got 2"),
        ({"group_size": 12}, ValueError, "`group_size` must be a multiple of 8"),
        ({"group_size": "8"}, TypeError, "`group_size` must be an integer or None"),
        ({"scale_dtype": torch.int8}, TypeError, "`scale_dtype` must be one of"),
    ):
        with pytest.raises(error, match=message):
            make_from(table(), **options)


def test_from_canonical_refuses_what_rows_do_not_have() -> None:
    linear = GroupQuantLinear.from_float
    with pytest.raises(ValueError, match=r"`bias`.*leave it out"):
        QuantEmbedding.from_canonical(linear(nn.Linear(8, 4)).canonical())
    bare = nn.Linear(8, 4, bias=False)
    with pytest.raises(ValueError, match=r"`activation`.* 'relu'"):
        QuantEmbedding.from_canonical(linear(bare, activation="relu").canonical())
    for row in (4, -5):
        with pytest.raises(ValueError, match=rf"`padding_idx` must be a row, -4 to 3, got {row}"):
            QuantEmbedding.from_canonical(linear(bare).canonical(), padding_idx=row)
    last = QuantEmbedding.from_canonical(linear(bare).canonical(), padding_idx=-1)
    assert last.padding_idx == nn.Embedding(4, 8, padding_idx=-1).padding_idx == 3
    layer = make()
    with pytest.raises(ValueError, match="`activation`"):
        layer.with_activation("relu")


def test_bad_states_change_nothing() -> None:
    layer = make()
    expected = layer(AT)
    good = layer.state_dict()
    for changes, message in (
        ({"weight": torch.zeros(11, 40, dtype=torch.int8)}, r"weight: shape mismatch, .* \[11, 40\]"),
        ({"weight_scale": torch.full((10, 3), float("nan")).bfloat16()}, "`weight_scale` holds NaN"),
        ({"weight": table().weight.detach()}, "load float weights into the float model"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**good, **changes})
        assert torch.equal(layer(AT), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_head_shares_the_rows(bits: int) -> None:
    layer = make(bits).eval()
    head = layer.head()
    assert isinstance(head, GroupQuantLinear)
    assert head.packed.data_ptr() == layer.packed.data_ptr()
    assert (head.in_features, head.out_features, head.bias, head.training) == (40, 10, None, False)
    x = torch.randn(6, 40, generator=rng(2))
    np.testing.assert_array_equal(head(x).numpy(), product(x, quantized(table().weight, bits, 16), "dynamic_16bit"))


def test_a_head_stays_shared() -> None:
    layer = make()
    model: Any = nn.ModuleDict({"embed": layer, "head": layer.head()})
    same = lambda m: m["embed"].packed.data_ptr() == m["head"].packed.data_ptr()  # noqa: E731
    assert same(copy.deepcopy(model))
    assert copy.deepcopy(model)["head"].packed.data_ptr() != layer.packed.data_ptr()
    assert same(model.bfloat16())
    assert same(model.to("cpu"))


def test_compile_and_export() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = make(4).eval()
            self.head = self.embed.head()

        def forward(self, at: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.embed(at)))
            return out

    net = Net().eval()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for at in (AT, AT[:, :2], torch.arange(10).view(5, 2)):
            assert torch.equal(compiled(at), net(at))
    torch._dynamo.reset()
    for strict in (False, True):
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(net, (AT,), dynamic_shapes=shapes, strict=strict)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        for at in (AT, torch.arange(9).view(3, 3)):
            assert torch.equal(loaded(at), net(at))


def test_repack_for_another_isa(native: Any) -> None:
    layer = make(4)
    expected = layer(AT)
    for name in native.isa_supported():
        native.set_isa(name)
        assert torch.equal(layer.repack()(AT), expected)


def test_frozen_models_leave_rows_without_an_epilogue_alone() -> None:
    """An addition and a ReLU behind rows must not move into a layer that has neither."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places, self.act = make(4), make(8), nn.ReLU()
            self.head = self.embed.head()

        def forward(self, at: Tensor) -> Tensor:
            out: Tensor = self.head(self.act(self.embed(at) + self.places(at)) + torch.relu(self.places(at)))
            return out

    net = Net().eval()
    frozen = fc.freeze(net, AT)
    with torch.no_grad():
        for at in (AT, torch.arange(10).view(5, 2)):
            assert torch.equal(frozen(at), net(at))
    with pytest.raises(NotImplementedError, match="rows have no epilogue; call the layer"):
        net.embed.run(AT)
