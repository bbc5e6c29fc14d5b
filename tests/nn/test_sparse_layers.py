"""Every block-sparse layer: results, copies, state, moves, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcompress.nn import (
    PackedLayer,
    QuantConv2d,
    QuantizedLayer,
    QuantLinear,
    SparseConv2d,
    SparseLinear,
    SparseQuantConv2d,
    SparseQuantLinear,
)
from fastcompress.ops import native, packing, reference_layout
from fastcompress.pruning import apply_mask
from tests import tolerances
from tests.nn.sparse_cases import CASES, Case, prune_blocks, pruned_conv2d, pruned_linear

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each
def test_facts(case: Case) -> None:
    layer: Any = case.make(0)
    assert layer.block_size == case.block
    blocks = layer.canonical().blocks
    assert (blocks.block_size, blocks.dtype) == (case.block, case.dtype)
    assert layer.density == blocks.density
    assert 0 < layer.density < 0.9
    assert isinstance(layer, QuantizedLayer) == (case.dtype == torch.int8)
    if native.module is not None:
        name = f"{case.family}_bsr" if case.dtype == torch.int8 else case.family
        assert layer.kernel_name() == f"{name}{case.block[0]}x{case.block[1]}_{native.module.isa()}"
    assert f"block_size={case.block[0]}x{case.block[1]}, density={layer.density:.3g}" in repr(layer)


@each
def test_copies_pickles_and_compilation_keep_the_bits(case: Case) -> None:
    layer = case.make(0)
    want = layer(case.x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
    ):
        assert torch.equal(other(case.x), want)
    assert repr(pickle.loads(pickle.dumps(layer))) == repr(layer)
    state: Any = layer.__reduce_ex__(4)[2]
    assert "packed" not in state["_buffers"]


@each
def test_state_dict_holds_blocks_and_comes_back(case: Case) -> None:
    source, target = case.make(0), case.make(1)
    state = source.state_dict()
    assert {"crow", "col", "values", "bias"} <= state.keys()
    assert ("weight_scale" in state) == (case.dtype == torch.int8)
    assert (state["crow"].dtype, state["col"].dtype, state["values"].dtype) == (torch.int32, torch.int32, case.dtype)
    assert state["values"].shape[1:] == case.block
    assert not torch.equal(source(case.x), target(case.x))
    target.load_state_dict(state)  # another number of blocks is another value
    assert torch.equal(source(case.x), target(case.x))
    packing.check(target.packed)


@each
@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("col", lambda t: t * 0, "repeats|duplicate|unsorted"),
        ("col", lambda t: t + 10_000, "allowed: 0 to"),
        ("crow", lambda t: t.flip(0), "crow"),
        ("crow", lambda t: t[:-1], "shape mismatch"),
        ("values", lambda t: t.to(torch.float64), "values: dtype mismatch"),
        ("values", lambda t: t[:-1], "blocks|values"),
        ("bias", lambda t: t * float("nan"), "`bias` holds NaN or infinity"),
    ],
)
def test_a_hostile_state_dict_changes_nothing(case: Case, key: str, change: Any, message: str) -> None:
    layer = case.make(0)
    before = layer.packed.clone()
    state = layer.state_dict()
    state[key] = change(state[key])
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert torch.equal(layer.packed, before)


@each
def test_casts_change_what_the_weight_reads_as_and_nothing_else(case: Case) -> None:
    layer = case.make(0)
    want, blob = layer(case.x), layer.packed.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        layer.to(dtype)
        assert layer.weight.dtype == dtype
        assert torch.equal(layer.packed, blob)
        assert torch.equal(layer.weight + 0, layer.dequantize())
        assert layer(case.x.to(dtype)).dtype == dtype
    assert torch.equal(layer(case.x), want)
    with pytest.raises(ValueError, match=r"\.to: compressed layers run on cpu and cuda, got device meta; keep nn\."):
        layer.to("meta")


@each
def test_weights_cannot_be_written_or_trained(case: Case) -> None:
    layer = case.make(0)
    for attempt in (
        lambda: layer.requires_grad_(),
        lambda: layer.weight.mul_(2),
        lambda: layer.weight.requires_grad_(),
        lambda: setattr(layer, "weight", nn.Parameter(torch.zeros(1))),
        lambda: layer.bias.detach().zero_(),  # type: ignore[union-attr]
    ):
        with pytest.raises(RuntimeError, match=r"packed for the kernels, read-only and not trainable; train the"):
            attempt()
    if case.dtype != torch.int8:
        with pytest.raises(RuntimeError, match=r"fastcompress\.prune returns and convert it again"):
            layer.requires_grad_()


@each
def test_gradients_reach_the_input(case: Case) -> None:
    layer = case.make(0)
    x = case.x.clone().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@each
def test_other_layouts_and_empty_batches(case: Case) -> None:
    layer = case.make(0)
    want = layer(case.x)
    layer.packed = reference_layout.encode(layer.canonical())
    assert layer.kernel_name().endswith("_reference")
    assert torch.equal(layer.repack()(case.x), want)
    assert layer(case.x[:0]).shape == (0, *want.shape[1:])


@each
def test_foreign_input_is_refused_by_name(case: Case) -> None:
    layer = case.make(0)
    name = type(layer).__name__
    with pytest.raises(TypeError, match=f"{name}: `input` must be a torch.Tensor, got list"):
        layer([1.0])
    with pytest.raises(TypeError, match=f"{case.family}: `input` has dtype float64, allowed: float32, bfloat16"):
        layer(case.x.double())
    dim = 1 if case.x.dim() == 4 else -1
    wrong = torch.cat([case.x, case.x], dim)
    with pytest.raises(ValueError, match=f"{name}: `input` has {wrong.shape[dim]} (channels|features)"):
        layer(wrong)
    if case.dtype != torch.int8:
        with pytest.raises(TypeError, match=f"{case.family}: `input` has dtype uint8, allowed: float32, bfloat16"):
            layer(torch.zeros_like(case.x, dtype=torch.uint8))


@pytest.mark.parametrize("block", [(16, 4), (4, 4), (1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_layers_equal_the_dense_int8_layer_bit_for_bit(block: tuple[int, int], dtype: torch.dtype) -> None:
    linear, conv = pruned_linear(48, 40, 0.2, block), pruned_conv2d(block, 0.2)
    x, image = torch.randn(3, 7, 40).to(dtype), torch.randn(2, 8, 9, 6).to(dtype)
    options = {"input_scale": 0.03, "input_zero_point": 90, "activation": "silu"}
    for mode in ("static", "dynamic"):
        chosen = {"input_mode": mode, **(options if mode == "static" else {"activation": "silu"})}
        sparse = SparseQuantLinear.from_float(linear, block_size=block, **chosen)
        assert torch.equal(sparse(x), QuantLinear.from_float(linear, **chosen)(x))
    sparse_conv, full = SparseQuantConv2d.from_float(conv, block_size=block, **options), None
    full = QuantConv2d.from_float(conv, **options)
    assert torch.equal(sparse_conv(image), full(image))
    assert torch.equal(sparse_conv.dequantize(), full.dequantize())
    last = image.contiguous(memory_format=torch.channels_last)
    assert torch.equal(sparse_conv(last), full(last))
    assert sparse_conv(last).is_contiguous(memory_format=torch.channels_last)
    same = {"padding": 0, "same_padding": True}
    assert torch.equal(
        SparseQuantConv2d.from_float(conv, block_size=block, **options, **same)(image),
        QuantConv2d.from_float(conv, **options, **same)(image),
    )


def _exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[Any, Any]:
    """The float64 result and its allowed error; the bias counts as one more product."""
    a = torch.cat([x, torch.ones(len(x), 1)], 1).double().numpy()
    w = torch.cat([weight, bias.unsqueeze(1)], 1).detach().double().numpy()
    return a @ w.T, tolerances.dot_bound(np.abs(a), np.abs(w), a @ w.T)


@pytest.mark.parametrize(("dtype", "block"), [(c.dtype, c.block) for c in CASES if c.family == "linear_bsr"])
def test_float_linear_is_the_exact_sum_within_the_bound(dtype: torch.dtype, block: tuple[int, int]) -> None:
    dense = pruned_linear(48, 40, 0.3, block, dtype=dtype)
    layer = SparseLinear.from_float(dense)
    assert layer.block_size == block
    assert torch.equal(layer.dequantize(), dense.weight)
    x = torch.randn(7, 40)
    exact, bound = _exact(x, dense.weight, dense.bias)
    assert (np.abs(layer(x).double().numpy() - exact) <= bound).all()


@pytest.mark.parametrize(("dtype", "block"), [(c.dtype, c.block) for c in CASES if c.family == "conv2d_bsr"])
def test_float_convolution_is_the_exact_sum_within_the_bound(dtype: torch.dtype, block: tuple[int, int]) -> None:
    dense = pruned_conv2d(block, dtype=dtype)
    layer = SparseConv2d.from_float(dense, activation="relu")
    assert layer.block_size == block
    x = torch.randn(2, 8, 6, 7)
    columns = F.unfold(x, dense.kernel_size, padding=dense.padding, stride=dense.stride).transpose(1, 2)
    exact, bound = _exact(columns.flatten(0, 1), dense.weight.flatten(1), dense.bias)
    found = layer(x).flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
    assert (np.abs(found - np.maximum(exact, 0.0)) <= bound).all()
    padded = SparseConv2d.from_float(dense, activation="relu", padding=(1, 1, 2, 2))
    assert torch.equal(padded(x), layer(x))
    assert layer.padding == (1, 2)


def test_masked_layers_are_taken_as_they_read() -> None:
    layer = nn.Linear(16, 32)
    mask = torch.zeros(32, 16, dtype=torch.bool)
    mask[:16, 3] = True
    apply_mask(layer, mask)
    sparse = SparseLinear.from_float(layer)
    assert (sparse.block_size, sparse.density) == ((16, 1), 1 / 32)
    assert torch.equal(sparse.dequantize(), layer.weight)
    quant = SparseQuantLinear.from_float(layer, input_mode="dynamic", block_size=(4, 4))
    assert quant.density == 4 / 32
    conv = nn.Conv2d(4, 16, 3)
    apply_mask(conv, torch.rand(16, 4, 3, 3) < 0.1)
    assert torch.equal(SparseConv2d.from_float(conv).dequantize(), conv.weight)


def test_an_all_zero_weight_stores_nothing_and_gives_the_bias() -> None:
    layer = nn.Linear(16, 32)
    nn.init.zeros_(layer.weight)
    sparse = SparseLinear.from_float(layer)
    assert sparse.density == 0.0
    assert torch.equal(sparse(torch.randn(3, 16)), layer.bias.expand(3, 32))


def _dense_canonical() -> Any:
    return QuantLinear.from_float(nn.Linear(8, 16), input_mode="dynamic").canonical()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SparseLinear.from_float(nn.Linear(8, 16).half()), TypeError, r"weight is torch\.float16; block"),
        (lambda: SparseLinear.from_float(nn.Linear(8, 16).double()), TypeError, r"float64; .*; use nn\.Linear"),
        (lambda: SparseLinear.from_float(nn.Linear(8, 20), block_size=(16, 1)), ValueError, r"16x1 \(but of 4x1 or"),
        (lambda: SparseLinear.from_float(nn.Linear(8, 16), block_size=(8, 8)), ValueError, "no kernel for 8x8 blocks"),
        (lambda: SparseLinear.from_float(nn.Linear(7, 16).bfloat16()), ValueError, "blocks of 16x2; use nn.Linear"),
        (lambda: SparseLinear.from_float(nn.Conv2d(1, 1, 1)), TypeError, r"SparseLinear\.from_float: `module` must be"),
        (lambda: SparseConv2d.from_float(nn.Conv2d(8, 16, 3, groups=2)), ValueError, "2 groups; block-sparse"),
        (lambda: SparseConv2d.from_float(nn.Linear(8, 16)), TypeError, r"SparseConv2d\.from_float: `module` must"),
        (
            lambda: SparseConv2d.from_float(nn.Conv2d(8, 16, 3, padding=1, padding_mode="circular")),
            ValueError,
            r"SparseConv2d\.from_float: `module.padding_mode` must be 'zeros'",
        ),
        (
            lambda: SparseQuantConv2d.from_float(nn.Conv2d(3, 16, 3), input_scale=0.1),
            ValueError,
            "16x3x3x3 weight cannot be cut into blocks of 16x4; use QuantConv2d",
        ),
        (
            lambda: SparseQuantLinear.from_float(nn.Linear(8, 20), input_mode="dynamic"),
            ValueError,
            r"20x8 weight cannot be cut into blocks of 16x4 \(but of 4x4 or 1x4\); use QuantLinear",
        ),
        (
            lambda: SparseLinear.from_canonical(_dense_canonical()),
            TypeError,
            r"SparseLinear: expected a SparseCanonical, got W8A8Canonical; SparseLinear\.from_float",
        ),
        (
            lambda: SparseConv2d.from_canonical(SparseLinear.from_float(nn.Linear(8, 16)).canonical()),
            ValueError,
            r"SparseConv2d: `weight` must be \[out, in/groups, kh, kw\], got shape \[16, 8\]",
        ),
        (lambda: SparseLinear.from_float(nn.Linear(8, 16), activation="swish"), ValueError, "`activation` must be one"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_with_the_remedy(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_problem_says_whether_blocks_fit() -> None:
    assert SparseLinear.problem(nn.Linear(7, 5)) is None
    assert "16x2" in str(SparseLinear.problem(nn.Linear(7, 5).bfloat16()))
    assert SparseQuantLinear.problem(nn.Linear(8, 5)) is None
    assert "16x4 (but of 1x4)" in str(SparseQuantLinear.problem(nn.Linear(8, 5), (16, 4)))
    assert "groups" in str(SparseQuantConv2d.problem(nn.Conv2d(8, 16, 3, groups=8)))


def test_nan_is_refused() -> None:
    layer = pruned_linear(16, 8)
    layer.weight.data[3, 3] = float("inf")
    with pytest.raises(ValueError, match="SparseLinear: `weight` holds NaN or infinity; repair the model"):
        SparseLinear.from_float(layer)


def test_logical_dtype_follows_the_module_and_training_mode_is_kept() -> None:
    layer = SparseLinear.from_float(prune_blocks(nn.Linear(8, 16, dtype=torch.bfloat16), (16, 2), 0.5).train())
    assert layer.training
    assert layer.weight.dtype == torch.bfloat16
    again = SparseLinear.from_canonical(layer.canonical())
    assert again.weight.dtype == torch.bfloat16
    assert isinstance(again, PackedLayer)
    assert torch.equal(layer(torch.ones(1, 8)), again(torch.ones(1, 8)))
