"""state_dict, deepcopy, pickle, dtype and device: what leaves a layer is canonical, what enters is checked."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.nn import QuantConv2d, QuantizedLayer, QuantLinear
from fastcompress.ops import packing, reference_layout
from tests.ops.cases import rng

X = {QuantLinear: torch.randn(5, 6, generator=rng(0)), QuantConv2d: torch.randn(2, 4, 6, 6, generator=rng(1))}


def linear(seed: int = 0, **kwargs: Any) -> QuantLinear:
    torch.manual_seed(seed)
    return QuantLinear.from_float(nn.Linear(6, 4), **{"input_mode": "dynamic", **kwargs})


def static(seed: int = 0) -> QuantLinear:
    return linear(seed, input_mode="static", input_scale=0.02 * (seed + 1), input_zero_point=100 + seed)


def conv2d(seed: int = 0) -> QuantConv2d:
    torch.manual_seed(seed)
    return QuantConv2d.from_float(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), input_scale=0.03, input_zero_point=12 + seed, activation="relu6"
    )


MAKERS = [linear, static, conv2d]


def output(layer: nn.Module) -> Tensor:
    result: Tensor = layer(X[type(layer)])  # type: ignore[index]
    return result


def test_keys_dtypes_and_shapes() -> None:
    expected = {"weight": (torch.int8, (4, 6)), "weight_scale": (torch.float32, (4,)), "bias": (torch.float32, (4,))}
    activations = {"input_scale": (torch.float32, ()), "input_zero_point": (torch.int32, ())}
    for layer, wanted in ((linear(), expected), (static(), {**expected, **activations})):
        assert {k: (v.dtype, tuple(v.shape)) for k, v in layer.state_dict().items()} == wanted
    assert list(QuantLinear.from_float(nn.Linear(3, 3, bias=False), input_mode="dynamic").state_dict()) == [
        "weight",
        "weight_scale",
    ]
    assert list(nn.Sequential(linear()).state_dict()) == ["0.weight", "0.weight_scale", "0.bias"]


@pytest.mark.parametrize("make", MAKERS)
def test_state_dict_round_trip(make: Any) -> None:
    source, target = make(0), make(1)
    assert not torch.equal(output(source), output(target))
    assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(output(source), output(target))
    assert target.input_scale == source.input_scale
    assert target.input_zero_point == source.input_zero_point
    packing.check(target.packed)


@pytest.mark.parametrize("make", MAKERS)
def test_copies(make: Any) -> None:
    layer = nn.Sequential(make()).to(torch.bfloat16).eval()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
        nn.Sequential(copy.copy(layer[0])),
    ]
    for other in copies:
        assert repr(other) == repr(layer)
        assert torch.equal(output(other[0]), output(layer[0]))
        assert other[0].weight.dtype == torch.bfloat16
        assert other[0].packed.data_ptr() != layer[0].packed.data_ptr()
        assert not other[0].training
        assert "packed" not in other.state_dict()


def test_deepcopy_keeps_sharing() -> None:
    shared = linear()
    model = copy.deepcopy(nn.ModuleList([shared, shared]))
    assert model[0] is model[1]


def test_pickle_holds_no_blob() -> None:
    layer = linear()
    reduced: Any = layer.__reduce_ex__(4)
    state = reduced[2]
    assert "packed" not in state["_buffers"]
    assert state["_canonical"].weight.dtype == torch.int8


def _state(**changes: Any) -> dict[str, Any]:
    state: dict[str, Any] = dict(static(1).state_dict())
    state.update(changes)
    return {k: v for k, v in state.items() if v is not None}


BAD_STATES: list[tuple[dict[str, Any], str]] = [
    (
        _state(weight=torch.zeros(4, 7, dtype=torch.int8)),
        "weight: shape mismatch, the state dict has [4, 7], the layer holds [4, 6]",
    ),
    (
        _state(weight=torch.zeros(4, 6)),
        "weight: dtype mismatch, the state dict has torch.float32, the layer holds "
        "torch.int8; load float weights into the float model, then quantize it",
    ),
    (
        _state(weight_scale=torch.ones(4).half()),
        "weight_scale: dtype mismatch, the state dict has torch.float16, the layer holds torch.float32",
    ),
    (
        _state(weight_scale=torch.tensor([1.0, -1.0, 1.0, 1.0])),
        "load_state_dict: `weight_scale` must be positive, normal and finite, got -1.0 at output channel 1",
    ),
    (_state(bias=torch.full((4,), float("nan"))), "load_state_dict: `bias` holds NaN or infinity"),
    (_state(bias=[0.0] * 4), "bias: expected a tensor, got list"),
    (_state(bias=None), 'Missing key(s) in state_dict: "bias"'),
    (_state(extra=torch.zeros(1)), 'Unexpected key(s) in state_dict: "extra"'),
    (
        _state(input_scale=torch.tensor(float("inf"))),
        "load_state_dict: `input_scale` must be positive, normal and finite in float32, got inf",
    ),
    (
        _state(input_zero_point=torch.tensor(256, dtype=torch.int32)),
        "load_state_dict: `input_zero_point` must lie in [0, 255], got 256",
    ),
    (
        _state(input_zero_point=torch.tensor(0)),
        "input_zero_point: dtype mismatch, the state dict has torch.int64, the layer holds torch.int32",
    ),
]


@pytest.mark.parametrize(("state", "message"), BAD_STATES)
def test_bad_state_is_named_and_changes_nothing(state: dict[str, Any], message: str) -> None:
    layer = static()
    before, scale = layer.packed.clone(), layer.input_scale
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict(state)
    assert message in str(caught.value)
    if "key(s)" not in message:  # missing or unexpected keys alone load the rest, as in torch
        assert torch.equal(layer.packed, before)
        assert layer.input_scale == scale


def test_dynamic_layer_does_not_expect_input_scale() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        linear().load_state_dict(static().state_dict())


def test_partial_load_keeps_the_rest() -> None:
    layer, other = static(), static(1)
    result = layer.load_state_dict({"bias": other.state_dict()["bias"]}, strict=False)
    assert result.unexpected_keys == []
    assert torch.equal(layer.state_dict()["bias"], other.state_dict()["bias"])
    assert torch.equal(layer.state_dict()["weight"], static().state_dict()["weight"])


def test_prefix_is_part_of_the_message() -> None:
    model = nn.Sequential(nn.Sequential(linear()))
    state = model.state_dict()
    state["0.0.weight"] = torch.zeros(1, 1, dtype=torch.int8)
    with pytest.raises(RuntimeError, match=r"0\.0\.weight: shape mismatch"):
        model.load_state_dict(state)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("cast", [lambda m: m.to(torch.float16), lambda m: m.half(), lambda m: m.type(torch.float16)])
def test_cast_changes_the_logical_dtype_only(make: Any, cast: Any) -> None:
    layer = make()
    packed, expected = layer.packed.clone(), output(layer)
    assert cast(layer) is layer
    assert torch.equal(layer.packed, packed)
    assert layer.packed.dtype == torch.uint8
    assert layer.weight.dtype == torch.float16
    assert torch.equal(output(layer), expected)
    assert layer.double().weight.dtype == torch.float64


def test_move_to_an_unsupported_device_changes_nothing() -> None:
    layer = linear()
    before = layer.packed
    with pytest.raises(ValueError, match=r"QuantLinear\.to: compressed layers run on cpu and cuda, got device meta"):
        layer.to("meta")
    assert layer.packed is before


def test_move_to_the_same_device_keeps_the_blob() -> None:
    layer = linear()
    before = layer.packed
    assert layer.to("cpu").packed is before
    layer.share_memory()
    assert layer.packed.is_shared()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", MAKERS)
def test_move_to_cuda_and_back(make: Any) -> None:
    layer = make()
    expected = output(layer)
    moved = copy.deepcopy(layer).cuda()
    assert moved.weight.is_cuda
    assert torch.equal(moved(X[type(layer)].cuda()).cpu(), expected)
    assert torch.equal(output(moved.cpu()), expected)


def test_repack_restores_this_machine_s_layout() -> None:
    layer = linear()
    expected = output(layer)
    layer.packed = reference_layout.encode(layer.canonical())
    assert torch.equal(output(layer.repack()), expected)
    assert isinstance(layer, QuantizedLayer)
