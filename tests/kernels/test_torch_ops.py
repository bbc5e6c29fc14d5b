"""torch.ops.fastcompress.*: any shape, strides and memory format gives what the oracle says; opcheck on every op."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcompress.ops import BlockCSR, SparseCanonical, W8A8Canonical, info, pack
from tests import oracles, tolerances
from tests.block_problems import REAL_FORMS, Form
from tests.ops.test_opcheck import SAMPLES

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


def _block_layer(
    seed: int, form: Form, rows: int, columns: int, kernel: tuple[int, int] | None = None, activation: str = "relu"
) -> SparseCanonical:
    g = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if form.value == "bf16" else torch.float32
    blocks = torch.randn(rows, form.height, columns, form.width, generator=g).to(dtype)
    blocks *= torch.rand(rows, 1, columns, 1, generator=g) < 0.4
    matrix = blocks.view(rows * form.height, columns * form.width)
    bias = torch.randn(matrix.shape[0], generator=g)
    return SparseCanonical(BlockCSR.from_dense(matrix, (form.height, form.width)), bias, activation, kernel)


def _assert_real(got: Tensor, rows: np.ndarray, c: SparseCanonical, residual: Tensor | None) -> None:
    """``got`` is relu(rows · weight + bias + residual) within the bound of float32 sums."""
    weight = c.blocks.to_dense().double().numpy()
    terms = c.blocks.to_dense().ne(0).sum(1).numpy()
    assert c.bias is not None
    acc, absolute = oracles.block_sums(rows.astype(np.float64), weight, weight != 0)
    y, error = acc + c.bias.numpy(), tolerances.block_bound(terms, absolute)
    error = tolerances.added_bound(error, y)
    if residual is not None:
        y = y + _numpy(residual).reshape(y.shape)
        error = tolerances.added_bound(error, y)
    y = np.maximum(y, 0)
    name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[got.dtype]
    distance = np.abs(got.double().numpy().reshape(y.shape) - y)
    assert (distance <= tolerances.rounded_bound(name, error, y)).all()


@relaxed
@given(
    lead=st.lists(st.integers(0, 5), max_size=3),
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    form=st.sampled_from(REAL_FORMS),
    layout=st.sampled_from(LAYOUTS),
    residual_layout=st.sampled_from((None, *LAYOUTS)),
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_linear_bsr_takes_any_shape_and_strides(
    lead: list[int],
    rows: int,
    columns: int,
    form: Form,
    layout: str,
    residual_layout: str | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    c = _block_layer(seed, form, rows, columns)
    n, k = c.weight_shape
    g = torch.Generator().manual_seed(seed)
    x = _lay(torch.randn(*lead, k, generator=g).to(dtype), layout)
    before = x.clone()
    residual = None if residual_layout is None else _lay(torch.randn(*lead, n, generator=g), residual_layout)
    out = ops.linear_bsr(x, pack(c), n, residual)
    assert (out.shape, out.dtype) == ((*lead, n), dtype)
    assert out.is_contiguous()
    _assert_real(out, _numpy(x).reshape(-1, k), c, residual)
    assert torch.equal(x, before)


@relaxed
@given(
    batch=st.integers(0, 3),
    size=st.tuples(sizes, sizes),
    rows=st.integers(1, 4),
    channel_blocks=st.integers(1, 6),
    form=st.sampled_from(REAL_FORMS),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    layout=st.sampled_from((*LAYOUTS, "channels_last")),
    dtype=st.sampled_from(FLOATS),
    seed=seeds,
)
def test_conv2d_bsr_takes_any_geometry_and_strides(
    batch: int,
    size: tuple[int, int],
    rows: int,
    channel_blocks: int,
    form: Form,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    height = max(size[0], dilation[0] * (kernel[0] - 1) + 1 - padding[0] - padding[1], 1)
    width = max(size[1], dilation[1] * (kernel[1] - 1) + 1 - padding[2] - padding[3], 1)
    c = _block_layer(seed, form, rows, channel_blocks * kernel[0] * kernel[1], kernel)
    out_channels, channels = c.weight_shape[:2]
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else _lay(x, layout)
    out = ops.conv2d_bsr(x, pack(c), out_channels, kernel, stride, padding, dilation)
    nhwc = np.ascontiguousarray(_numpy(x).transpose(0, 2, 3, 1)).astype(np.float64)
    patches = oracles.conv2d_patches(nhwc, kernel, stride, padding, dilation)
    assert (out.permute(0, 2, 3, 1).shape, out.dtype) == ((*patches.shape[:3], out_channels), dtype)
    _assert_real(out.permute(0, 2, 3, 1), patches.reshape(-1, c.blocks.shape[1]), c, None)
    if batch:
        assert torch.equal(ops.conv2d_bsr(x[0], pack(c), out_channels, kernel, stride, padding, dilation), out[0])


def _samples() -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    x, image = torch.randn(3, 4, 20), torch.randn(2, 6, 7, 5)
    static, dynamic = _layer(1, (9, 20), "static"), _layer(2, (9, 20), "dynamic")
    conv = _layer(3, (8, 3, 3, 3), "static", groups=2, activation="silu")
    geometry = ((3, 3), (2, 1), (1, 0, 1, 2), (1, 1))
    conv_out = ops.conv2d_w8a8(image, pack(conv), 8, *geometry)
    q, scale, zero_point = ops.quantize_per_token(x)
    grad_x = x.clone().requires_grad_()
    bsr = [_block_layer(4, form, 2, 20 // form.width, None, "silu") for form in REAL_FORMS]
    conv_bsr = [_block_layer(5, form, 2, 9 * 6 // form.width, (3, 3), "gelu") for form in REAL_FORMS]
    n = [c.weight_shape[0] for c in bsr]
    added = torch.randn(2, n[0], *conv_out.shape[2:])
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
        "linear_bsr": [
            *(((x, pack(c), c.weight_shape[0]), {}) for c in bsr),
            ((grad_x, pack(bsr[0]), n[0], torch.randn(3, 4, n[0], requires_grad=True)), {}),
            ((x.bfloat16(), pack(bsr[3]), n[3]), {"out_dtype": torch.float32}),
            ((x.half(), pack(bsr[1]), n[1]), {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 7}),
            ((x[:0], pack(bsr[2]), n[2]), {}),
        ],
        "conv2d_bsr": [
            *(((image, pack(c), c.weight_shape[0], *geometry), {}) for c in conv_bsr),
            ((image.clone().requires_grad_(), pack(conv_bsr[0]), n[0], *geometry), {"residual": added}),
            (
                (image.contiguous(memory_format=torch.channels_last), pack(conv_bsr[1]), n[1], *geometry),
                {"out_dtype": torch.int8},
            ),
            ((image[0], pack(conv_bsr[3]), n[3], *geometry), {}),
        ],
        "linear_backward": [
            ((torch.randn(3, 4, 9), x, pack(dynamic)), {}),
            ((torch.randn(3, 4, n[0]), x, pack(bsr[0])), {}),
        ],
        "conv2d_backward": [
            ((torch.randn_like(conv_out), image, pack(conv), *geometry), {}),
            ((added, image, pack(conv_bsr[0]), *geometry), {}),
        ],
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
    "linear_bsr",
    "conv2d_bsr",
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
    assert set(OPERATORS) == set(_samples())
    assert registered == {name for name, _, _ in SAMPLES} >= set(OPERATORS)
