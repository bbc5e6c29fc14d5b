"""Copies, casts and state_dicts of layers with weights in groups."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.nn import GroupQuantLinear, QuantEmbedding
from fastcompress.ops import packing
from tests.ops.cases import rng

X = torch.randn(5, 24, generator=rng(0))
AT = torch.tensor([[0, 3], [9, 3]])


def asymmetric(seed: int = 0, **options: Any) -> GroupQuantLinear:
    torch.manual_seed(seed)
    return GroupQuantLinear.from_float(nn.Linear(24, 10), **{"group_size": 8, "symmetric": False, **options})


def eight(seed: int = 0) -> GroupQuantLinear:
    return asymmetric(seed, weight_bits=8, symmetric=True, scale_dtype=torch.float16)


def w4a8(seed: int = 0) -> GroupQuantLinear:
    return asymmetric(seed, symmetric=True, input_mode="dynamic_symmetric", activation="relu")


def reordered(seed: int = 0) -> GroupQuantLinear:
    return asymmetric(seed).reorder(torch.randperm(24, generator=rng(seed)), None)


def embedding(seed: int = 0, bits: int = 4) -> QuantEmbedding:
    torch.manual_seed(seed)
    return QuantEmbedding.from_float(nn.Embedding(10, 24, padding_idx=3), weight_bits=bits, group_size=8)


MAKERS: list[Callable[..., Any]] = [asymmetric, eight, w4a8, reordered, embedding]


def output(layer: nn.Module) -> Tensor:
    result: Tensor = layer(AT if isinstance(layer, QuantEmbedding) else X)
    return result


def keys(layer: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (t.dtype, tuple(t.shape)) for name, t in layer.state_dict().items()}


def test_keys_dtypes_and_shapes() -> None:
    bias = {"bias": (torch.float32, (10,))}
    packed = {"weight_packed": (torch.int32, (10, 3)), "weight_scale": (torch.bfloat16, (10, 3))}
    assert keys(asymmetric()) == {**packed, "weight_zero_point": (torch.uint8, (10, 3)), **bias}
    assert keys(w4a8()) == {**packed, **bias}
    assert keys(eight()) == {"weight": (torch.int8, (10, 24)), "weight_scale": (torch.float16, (10, 3)), **bias}
    assert keys(embedding()) == packed
    assert keys(reordered())["input_order"] == (torch.int64, (24,))


@pytest.mark.parametrize("make", MAKERS)
def test_state_dict_round_trip(make: Any) -> None:
    source, target = make(0), make(1)
    assert not torch.equal(output(source), output(target))
    assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(output(source), output(target))
    packing.check(target.packed)


@pytest.mark.parametrize("make", MAKERS)
def test_copies(make: Any) -> None:
    layer = nn.Sequential(make()).to(torch.bfloat16).eval()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
        nn.Sequential(copy.copy(layer[0])),
    ):
        assert repr(other) == repr(layer)
        assert torch.equal(output(other[0]), output(layer[0]))
        assert other[0].weight.dtype == torch.bfloat16
        assert other[0].packed.data_ptr() != layer[0].packed.data_ptr()
        assert not other[0].training


@pytest.mark.parametrize("make", [asymmetric, eight, w4a8, reordered])
def test_cast_changes_the_logical_dtype_only(make: Any) -> None:
    layer = make()
    packed, expected = layer.packed.clone(), output(layer)
    for cast, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)):
        assert getattr(layer, cast)() is layer
        assert torch.equal(layer.packed, packed)
        assert layer.weight.dtype == dtype
        assert torch.equal(output(layer), expected)


@pytest.mark.parametrize("make", MAKERS)
def test_devices(make: Any) -> None:
    layer = make()
    before = layer.packed
    with pytest.raises(ValueError, match=r"\.to: compressed layers run on cpu and cuda, got device meta"):
        layer.to("meta")
    assert layer.packed is before
    assert layer.to("cpu").packed is before


@pytest.mark.parametrize("make", MAKERS)
def test_partial_load_keeps_the_rest(make: Any) -> None:
    layer, other = make(0), make(1)
    layer.load_state_dict({"weight_scale": other.state_dict()["weight_scale"]}, strict=False)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, (other if name == "weight_scale" else make(0)).state_dict()[name]), name


def state(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in {**asymmetric(1).state_dict(), **changes}.items() if v is not None}


BAD_STATES: list[tuple[dict[str, Any], str]] = [
    (
        state(weight_packed=torch.zeros(10, 4, dtype=torch.int32)),
        "weight_packed: shape mismatch, the state dict has [10, 4], the layer holds [10, 3]",
    ),
    (
        state(weight_packed=torch.zeros(10, 3)),
        "weight_packed: dtype mismatch, the state dict has torch.float32, the layer holds torch.int32; load float "
        "weights into the float model, then quantize it",
    ),
    (
        state(weight_scale=torch.ones(10, 2).bfloat16()),
        "weight_scale: shape mismatch, the state dict has [10, 2], the layer holds [10, 3]",
    ),
    (
        state(weight_scale=torch.ones(10, 3)),
        "weight_scale: dtype mismatch, the state dict has torch.float32, the layer holds torch.bfloat16",
    ),
    (state(weight_scale=torch.full((10, 3), float("nan")).bfloat16()), "`weight_scale` holds NaN or infinity"),
    (state(weight_scale=torch.full((10, 3), -float("inf")).bfloat16()), "`weight_scale` holds NaN or infinity"),
    (state(weight_zero_point=torch.full((10, 3), 16, dtype=torch.uint8)), "`weight_zero_point` must lie in [0, 15]"),
    (state(weight_zero_point=torch.full((10, 3), 8)), "weight_zero_point: dtype mismatch"),
    (state(bias=torch.full((10,), float("nan"))), "`bias` holds NaN or infinity"),
    (state(bias=[0.0] * 10), "bias: expected a tensor, got list"),
    (state(input_order=torch.zeros(24, dtype=torch.int64)), "`input_order` must be an int64 tensor"),
    (state(input_order=torch.arange(23)), "`input_order` must be an int64 tensor"),
    (state(weight_packed=None), 'Missing key(s) in state_dict: "weight_packed"'),
    (state(weight_zero_point=None), 'Missing key(s) in state_dict: "weight_zero_point"'),
    (state(weight_min=torch.zeros(10, 3)), 'Unexpected key(s) in state_dict: "weight_min"'),
    (state(weight=torch.zeros(10, 24)), 'Unexpected key(s) in state_dict: "weight"'),
]


@pytest.mark.parametrize(("bad", "message"), BAD_STATES)
def test_bad_state_is_named_and_changes_nothing(bad: dict[str, Any], message: str) -> None:
    layer = asymmetric()
    before, expected = layer.packed.clone(), output(layer)
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict(bad)
    assert message in str(caught.value)
    if "key(s)" not in message:  # missing or unexpected keys alone load the rest, as in torch
        assert torch.equal(layer.packed, before)
        assert torch.equal(output(layer), expected)


def test_prefix_is_part_of_the_message() -> None:
    model = nn.Sequential(nn.Sequential(asymmetric()))
    broken = model.state_dict()
    broken["0.0.weight_packed"] = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"0\.0\.weight_packed: shape mismatch"):
        model.load_state_dict(broken)


def test_forms_do_not_load_each_other() -> None:
    for target, source in ((eight(), asymmetric()), (asymmetric(), w4a8()), (w4a8(), asymmetric())):
        with pytest.raises(RuntimeError, match="key"):
            target.load_state_dict(source.state_dict())


def test_inputs_in_another_order() -> None:
    """Act-order: stored input i is input ``input_order[i]``, and neither results nor ``weight`` show it."""
    order = torch.randperm(24, generator=rng(4))
    torch.manual_seed(0)
    plain = nn.Linear(24, 10)
    shuffled = nn.Linear(24, 10)
    with torch.no_grad():
        shuffled.weight.copy_(plain.weight[:, order])
        shuffled.bias.copy_(plain.bias)
    stored = GroupQuantLinear.from_float(shuffled, group_size=8)
    expected = stored(X[:, order])
    layer = GroupQuantLinear.from_float(shuffled, group_size=8).reorder(order, None)
    assert torch.equal(layer(X), expected)
    assert torch.equal(layer.weight[:, order], stored.weight)
    assert torch.equal(layer.dequantize(), layer.weight)
    target = GroupQuantLinear.from_float(plain, group_size=8)
    target.load_state_dict(layer.state_dict())
    assert torch.equal(target(X), expected)
    x = X.clone().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 24))
    before = layer.packed.clone()
    with pytest.raises(ValueError, match="`input_order` must be an int64 tensor that holds each number from 0 to 23"):
        layer.reorder(torch.tensor([0]), None)
    assert torch.equal(layer.packed, before)
    assert torch.equal(layer(X), expected)


def test_loading_reaches_the_compiled_model() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(asymmetric())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        before = compiled(X)
        net.load_state_dict(nn.Sequential(asymmetric(1)).state_dict())
        assert torch.equal(compiled(X), net(X))
        assert not torch.equal(compiled(X), before)
    torch._dynamo.reset()
