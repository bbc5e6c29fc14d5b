"""Rows of packed weights as floats: exactly those of the dequantized weight, on every path; every index is checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcompress.ops import W4Canonical, embedding, pack, reference_groups
from tests.ops.cases import rng
from tests.ops.test_weight_only import FORMS, Layer, layer

OP = torch.ops.fastcompress.embedding_packed


def rows(c: Layer) -> Tensor:
    """The weight in NumPy, one float32 operation at a time."""
    f32, groups = np.float32, np.arange(c.in_features) // c.group_size
    scale = c.weight_scale.float().numpy()[:, groups]
    if not isinstance(c, W4Canonical):
        return torch.from_numpy(c.weight.numpy().astype(f32) * scale)
    values = c.values().numpy().astype(f32)
    if c.weight_min is not None:
        return torch.from_numpy(values * scale + c.weight_min.numpy()[:, groups])
    zero = f32(8) if c.weight_zero_point is None else c.weight_zero_point.numpy().astype(f32)[:, groups]
    return torch.from_numpy((values - zero) * scale)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("out", "inputs", "group"), [(1, 1, 1), (17, 31, 31), (33, 100, 32), (70, 264, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_the_weight(form: str, out: int, inputs: int, group: int, dtype: torch.dtype) -> None:
    c = layer(out, inputs, group, form, 1)
    want = rows(c)
    for kind in (torch.int64, torch.int32):
        for shape in ((), (5,), (2, 0), (3, 4)):
            at = torch.randint(0, out, shape, generator=rng(2)).to(kind)
            for found in (
                OP(at, pack(c), out, inputs, dtype),
                embedding.embedding_packed(at, reference_groups.encode(c), out, inputs, dtype),
            ):
                assert found.dtype == dtype
                assert torch.equal(found, want[at.long()].to(dtype))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_strides_do_not_matter(threads: int) -> None:
    c = layer(300, 512, 64, "eight bits", 1)
    at = torch.randint(0, 300, (40, 7), generator=rng(2)).t()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(OP(at, pack(c), 300, 512, torch.bfloat16), rows(c)[at].to(torch.bfloat16))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [-1, 20, 1 << 40, -(1 << 40)])
def test_an_index_out_of_range_is_named(bad: int) -> None:
    c = layer(20, 40, 16, "eight")
    at = torch.tensor([[3, 4], [bad, 5]])
    for call in (
        lambda: OP(at, pack(c), 20, 40, torch.float32),
        lambda: embedding.embedding_packed(at, reference_groups.encode(c), 20, 40, torch.float32),
    ):
        with pytest.raises(ValueError, match=f"{bad} at place 2, allowed: 0 to num_embeddings - 1 = 19"):
            call()


def test_what_it_refuses() -> None:
    c = layer(20, 40, 16, "eight")
    packed, at = pack(c), torch.tensor([1, 2])
    for call, says in (
        (lambda: OP(at, packed, 21, 40, torch.float32), "num_embeddings"),
        (lambda: OP(at, packed, 20, 41, torch.float32), "embedding_dim"),
        (lambda: OP(at.float(), packed, 20, 40, torch.float32), "float32"),
        (lambda: OP(at, packed, 20, 40, torch.int8), "out_dtype"),
        (lambda: OP(at, packed[:-1], 20, 40, torch.float32), "truncated"),
        (lambda: OP(at, packed.float(), 20, 40, torch.float32), "packed"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=says):
            call()
