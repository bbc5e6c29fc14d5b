"""torch.ops.fastcompress.*: any shape, strides and memory format gives what the oracle says; opcheck on every op."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcompress.ops import W8A8Canonical, info, pack
from tests import oracles

ops = torch.ops.fastcompress
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
relaxed = settings(max_examples=120, deadline=None, derandomize=True)

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31)
#: How a tensor of the wanted shape lies in memory.
LAYOUTS = ("contiguous", "transposed", "sliced", "offset", "reversed_dims", "expanded")


def _lay(t: Tensor, layout: str) -> Tensor:
    """The same values (except for "expanded", whose rows repeat) with other strides."""
    if layout == "transposed" and t.dim() >= 2:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), 9, dtype=t.dtype)
        wide[..., 1::2] = t
        return wide[..., 1::2]
    if layout == "offset":
        flat = torch.zeros(t.numel() + 3, dtype=t.dtype)
        flat[3:] = t.reshape(-1)
        return flat[3:].view(t.shape)  # a start that is not aligned
    if layout == "reversed_dims":
        dims = tuple(reversed(range(t.dim())))
        return t.permute(dims).contiguous().permute(dims)
    if layout == "expanded" and t.dim() >= 2:
        return t[:1].expand(t.shape)
    return t


def _numpy(t: Tensor) -> np.ndarray:
    return t.detach().float().contiguous().numpy()


def _layer(seed: int, shape: tuple[int, ...], mode: str, groups: int = 1, activation: str = "relu") -> W8A8Canonical:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, shape, generator=g).to(torch.int8)
    scale = torch.rand(shape[0], generator=g) * 0.01 + 1e-4
    static = mode == "static"
    zero_point = 100 if static else 0
    bias = torch.randn(shape[0], generator=g)
    return W8A8Canonical(weight, scale, bias, mode, 0.03 if static else 1.0, zero_point, activation, groups)


def _expected(acc: np.ndarray, x_scale: Any, c: W8A8Canonical, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Epilogue by the oracle for ``acc [M,N]`` as a tensor of the output dtype."""
    assert c.bias is not None
    rows = None if residual is None else _numpy(residual).reshape(acc.shape)
    e = oracles.Epilogue(c.weight_scale.numpy(), c.bias.numpy(), rows, c.activation)
    v = oracles.activate32(oracles.pre_activation(acc, x_scale, e), c.activation)
    return torch.from_numpy(v).to(dtype)


@relaxed
@given(
    lead=st.lists(st.integers(0, 5), max_size=3),
    k=st.integers(1, 70),
    n=st.integers(1, 70),
    layout=st.sampled_from(LAYOUTS),
    residual_layout=st.sampled_from((None, *LAYOUTS)),
    dtype=st.sampled_from(FLOATS),
    mode=st.sampled_from(("static", "dynamic", "dynamic_symmetric")),
    seed=seeds,
)
def test_linear_takes_any_shape_and_strides(
    lead: list[int], k: int, n: int, layout: str, residual_layout: str | None, dtype: torch.dtype, mode: str, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = _lay(torch.randn(*lead, k, generator=g).to(dtype), layout)
    before = x.clone()
    residual = None if residual_layout is None else _lay(torch.randn(*lead, n, generator=g), residual_layout)
    c = _layer(seed, (n, k), mode)
    out = ops.linear_w8a8(x, pack(c), n, residual)
    assert out.shape == (*lead, n)
    assert out.dtype == dtype
    assert out.is_contiguous()
    rows = _numpy(x).reshape(-1, k)
    scale: Any
    zero_point: Any
    if mode == "static":
        q, scale, zero_point = oracles.quantize_per_tensor(rows, c.input_scale, c.input_zero_point), c.input_scale, 100
    else:
        q, scale, zero_point = oracles.quantize_per_token(rows, mode == "dynamic_symmetric")
    acc = oracles.linear_acc(q, zero_point, c.weight.numpy())
    assert torch.equal(out, _expected(acc, scale, c, residual, dtype).view(out.shape))
    assert torch.equal(x, before)


@relaxed
@given(
    batch=st.integers(0, 3),
    height=sizes,
    width=sizes,
    per_group=st.integers(1, 6),
    out_per_group=st.integers(1, 6),
    groups=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    layout=st.sampled_from((*LAYOUTS, "channels_last")),
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_conv2d_takes_any_geometry_and_strides(
    batch: int,
    height: int,
    width: int,
    per_group: int,
    out_per_group: int,
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    height = max(height, dilation[0] * (kernel[0] - 1) + 1 - padding[0] - padding[1], 1)
    width = max(width, dilation[1] * (kernel[1] - 1) + 1 - padding[2] - padding[3], 1)
    channels, out_channels = groups * per_group, groups * out_per_group
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=g).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else _lay(x, layout)
    c = _layer(seed, (out_channels, per_group, *kernel), "static", groups)
    out = ops.conv2d_w8a8(x, pack(c), out_channels, kernel, stride, padding, dilation)
    nhwc = np.ascontiguousarray(_numpy(x).transpose(0, 2, 3, 1))
    q = oracles.quantize_per_tensor(nhwc, c.input_scale, c.input_zero_point)
    acc = oracles.conv2d_acc(q, c.input_zero_point, c.weight.numpy(), stride, padding, dilation, groups)
    want = _expected(acc.reshape(-1, out_channels), c.input_scale, c, None, dtype).view(acc.shape).permute(0, 3, 1, 2)
    assert out.dtype == dtype
    assert torch.equal(out, want)
    if layout == "channels_last" and not x.is_contiguous():
        assert out.is_contiguous(memory_format=torch.channels_last)
    if x.is_contiguous():
        assert out.is_contiguous()
    if batch:
        single = ops.conv2d_w8a8(x[0], pack(c), out_channels, kernel, stride, padding, dilation)
        assert torch.equal(single, out[0])


@relaxed
@given(
    lead=st.lists(st.integers(0, 5), max_size=3),
    k=st.integers(1, 70),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(FLOATS),
    symmetric=st.booleans(),
    seed=seeds,
)
def test_quantizers_take_any_shape_and_strides(
    lead: list[int], k: int, layout: str, dtype: torch.dtype, symmetric: bool, seed: int
) -> None:
    x = _lay(torch.randn(*lead, k, generator=torch.Generator().manual_seed(seed)).to(dtype), layout)
    rows = _numpy(x).reshape(-1, k)
    q, scale, zero_point = ops.quantize_per_token(x, symmetric)
    assert (q.shape, scale.shape, zero_point.shape) == (x.shape, x.shape[:-1], x.shape[:-1])
    wanted: tuple[Any, ...] = oracles.quantize_per_token(rows, symmetric)
    for got, want in zip((q, scale, zero_point), wanted, strict=True):
        assert np.array_equal(got.numpy().reshape(want.shape), want)
    for out_dtype, low in ((torch.uint8, 0), (torch.int8, -128)):
        static = ops.quantize_per_tensor(x, 0.02, low + 90, out_dtype)
        assert static.dtype == out_dtype
        want = oracles.quantize_per_tensor(rows, 0.02, low + 90, signed=low < 0)
        assert np.array_equal(static.numpy().reshape(want.shape), want)


def test_blob_may_start_at_any_aligned_address() -> None:
    c = _layer(5, (33, 70), "dynamic")
    packed, x = pack(c), torch.randn(7, 70)
    want = ops.linear_w8a8(x, packed, 33)
    for shift in (8, 16, 56):
        wide = torch.zeros(len(packed) + shift, dtype=torch.uint8)
        wide[shift:] = packed
        assert torch.equal(ops.linear_w8a8(x, wide[shift:], 33), want)
    if info(packed)["isa"] == "reference":
        return
    for shift in (1, 12):
        wide = torch.zeros(len(packed) + shift, dtype=torch.uint8)
        wide[shift:] = packed
        with pytest.raises(RuntimeError, match="aligned to 8 bytes; clone the tensor"):
            ops.linear_w8a8(x, wide[shift:], 33)


def _samples() -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    x, image = torch.randn(3, 4, 20), torch.randn(2, 6, 7, 5)
    static, dynamic = _layer(1, (9, 20), "static"), _layer(2, (9, 20), "dynamic")
    conv = _layer(3, (8, 3, 3, 3), "static", groups=2, activation="silu")
    geometry = ((3, 3), (2, 1), (1, 0, 1, 2), (1, 1))
    conv_out = ops.conv2d_w8a8(image, pack(conv), 8, *geometry)
    q, scale, zero_point = ops.quantize_per_token(x)
    grad_x = x.clone().requires_grad_()
    return {
        "quantize_per_tensor": [((x, 0.1, 3, torch.uint8), {}), ((x.half(), 0.1, -3, torch.int8), {})],
        "quantize_per_token": [((x,), {}), ((x.bfloat16(), True), {})],
        "linear_w8a8": [
            ((x, pack(static), 9), {}),
            ((grad_x, pack(dynamic), 9), {}),
            ((grad_x, pack(dynamic), 9, torch.randn(3, 4, 9, requires_grad=True)), {}),
            ((x.half(), pack(dynamic), 9), {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 7}),
            ((q, pack(dynamic), 9), {"input_scale": scale, "input_zero_point": zero_point}),
            ((q, pack(static), 9), {"out_dtype": torch.int32}),
        ],
        "conv2d_w8a8": [
            ((image, pack(conv), 8, *geometry), {}),
            ((image.clone().requires_grad_(), pack(conv), 8, *geometry), {"residual": torch.randn_like(conv_out)}),
            (
                (image.contiguous(memory_format=torch.channels_last), pack(conv), 8, *geometry),
                {"out_dtype": torch.int8},
            ),
            ((image[0], pack(conv), 8, *geometry), {}),
        ],
        "linear_backward": [((torch.randn(3, 4, 9), x, pack(dynamic)), {})],
        "conv2d_backward": [((torch.randn_like(conv_out), image, pack(conv), *geometry), {})],
        "dequantize": [
            ((pack(static), "weight", [9, 20], torch.float32), {}),
            ((pack(static), "bias", [9], torch.half), {}),
        ],
    }


OPERATORS = (
    "quantize_per_tensor",
    "quantize_per_token",
    "linear_w8a8",
    "conv2d_w8a8",
    "linear_backward",
    "conv2d_backward",
    "dequantize",
)


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str) -> None:
    for arguments, keywords in _samples()[name]:
        torch.library.opcheck(getattr(ops, name).default, arguments, keywords)


def test_every_operator_has_an_opcheck() -> None:
    registered = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastcompress::")}
    assert registered == set(OPERATORS) == set(_samples())
