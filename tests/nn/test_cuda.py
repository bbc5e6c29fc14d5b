"""Every layer on a CUDA device: plain torch computes there, and integers come out as the CPU's kernels give them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import GroupQuantLinear, QuantConv2d, QuantEmbedding, QuantLinear
from tests import tolerances
from tests.nn.sparse_cases import CASES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(inputs, outputs)


def conv() -> nn.Conv2d:
    torch.manual_seed(2)
    return nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2)


IMAGE = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(3))
STATIC: dict[str, Any] = {"input_scale": 0.03, "input_zero_point": 120}

#: Name → a layer, and an input for it.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "W8A8 dynamic": (lambda: QuantLinear.from_float(linear(70, 33), input_mode="dynamic"), rows(9, 70)),
    "W8A8 static": (lambda: QuantLinear.from_float(linear(70, 33), input_mode="static", **STATIC), rows(9, 70)),
    "conv2d": (lambda: QuantConv2d.from_float(conv(), activation="relu6", **STATIC), IMAGE),
    "conv2d, four bits": (lambda: QuantConv2d.from_float(conv(), weight_bits=4, **STATIC), IMAGE),
    **{
        f"groups: {bits} bits, {mode}, size {size}, {'symmetric' if symmetric else 'zero points'}": (
            lambda bits=bits, mode=mode, size=size, symmetric=symmetric: GroupQuantLinear.from_float(
                linear(70, 33), weight_bits=bits, input_mode=mode, group_size=size, symmetric=symmetric
            ),
            rows(9, 70),
        )
        for bits, mode in ((4, "dynamic_symmetric"), (4, "dynamic_16bit"), (8, "dynamic_16bit"))
        for size in (32, None)
        for symmetric in ((True, False) if bits == 4 else (True,))
    },
    **{case.name: (lambda case=case: case.make(0), case.x) for case in CASES if case.dtype == torch.int8},
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_integers_are_the_cpu_s(name: str, dtype: torch.dtype) -> None:
    make, x = LAYERS[name]
    layer = make().to(dtype).eval()
    x = x.to(dtype)
    expected = layer(x)
    moved = copy.deepcopy(layer).cuda()
    found = moved(x.cuda())
    assert found.is_cuda
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0)
    torch.testing.assert_close(moved.cpu()(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case.dtype != torch.int8], ids=lambda case: case.name)
def test_real_weights_are_near(case: Any) -> None:
    """Sums of floats come in another order."""
    layer = case.make(0).eval()
    x = case.x.to(case.dtype)
    found = copy.deepcopy(layer).cuda()(x.cuda()).cpu()
    torch.testing.assert_close(found, layer(x), rtol=tolerances.DEVICE_AGREEMENT[case.dtype], atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_embedding(bits: int) -> None:
    torch.manual_seed(0)
    layer = QuantEmbedding.from_float(nn.Embedding(50, 40), weight_bits=bits, group_size=32)
    at = torch.tensor([[0, 49, 7], [7, 1, 0]])
    expected = layer(at)
    assert torch.equal(copy.deepcopy(layer).cuda()(at.cuda()).cpu(), expected)


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8-dynamic", "W4A8", "W4A16", "W8A16"])
def test_a_quantized_model_moves_to_the_device(scheme: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48)).eval()
    data = [rows(16, 64, seed) for seed in range(4)]
    options: dict[str, Any] = {"only_if_faster": False} if scheme in ("W8A8", "W8A8-dynamic", "W4A8") else {}
    compressed = fc.quantize(model, scheme, data, **options)
    x = rows(5, 64, 9)
    expected = compressed(x)
    assert torch.equal(compressed.cuda()(x.cuda()).cpu(), expected)


def test_quantizing_on_the_device_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """Kernels are chosen, and packed, for the CPU: a layer on a device is left as it is."""
    model = nn.Sequential(nn.Linear(64, 96)).cuda().eval()
    same = fc.quantize(model, "W4A16")
    assert type(same[0]) is nn.Linear
    assert "call model.cpu() first" in str(fc.explain(same)) + caplog.text


def test_gradients_reach_the_input() -> None:
    layer = GroupQuantLinear.from_float(linear(64, 32), group_size=32)
    x = rows(3, 64).requires_grad_()
    layer(x).sum().backward()
    y = x.detach().cuda().requires_grad_()
    copy.deepcopy(layer).cuda()(y).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(y.grad.cpu(), x.grad, rtol=tolerances.DEVICE_AGREEMENT[torch.float32], atol=1e-5)
