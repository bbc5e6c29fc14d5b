"""Every operator passes torch.library.opcheck: schema, fake kernel, autograd registration, AOT dispatch."""

from typing import Any

import pytest
import torch

from fastcompress.ops import BlockCSR, SparseCanonical, W8Canonical, pack, schemas
from fastcompress.ops.chain import Window
from fastcompress.ops.chain_program import ChainStep, pack_chain
from fastcompress.ops.rounding import round_to_nearest
from tests.ops.cases import canonical_conv2d, canonical_linear, rng

OPS = torch.ops.fastcompress
GEOMETRY: tuple[Any, ...] = (6, [3, 3], [2, 1], [0, 1, 1, 2], [1, 1])


def _x(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    return torch.randn(shape, generator=rng(1)).to(dtype).requires_grad_(grad)


def _u8(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=rng(2), dtype=torch.uint8)


def _chain(residual: bool) -> tuple[Any, ...]:
    """Program, channels, windows and dtype of two convolutions of two channels."""
    first, second = pack(canonical_conv2d(2)), pack(canonical_conv2d(2, activation="relu", seed=1))
    program = pack_chain(
        [
            ChainStep(first, padding=(1, 1, 1, 1), out_dtype=torch.uint8, out_scale=0.1, out_zero_point=9),
            ChainStep(second, (2, 1), (0, 1, 1, 2), input=0),
            *([ChainStep(first, padding=(1, 1, 1, 1), input=1, residual=1)] if residual else []),
        ]
    )
    height, width = Window().then(3, 1, 1, 1, 1).then(3, 2, 0, 1, 1), Window().then(3, 1, 1, 1, 1).then(3, 1, 1, 2, 1)
    return program, 2, [height.offset, height.step], [width.offset, width.step], torch.float32


def _samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    static, dynamic = pack(canonical_linear()), pack(canonical_linear(input_mode="dynamic", activation="gelu"))
    conv = pack(canonical_conv2d(activation="hardswish"))
    image = _x(2, 2, 8, 9)
    w4 = pack(round_to_nearest(_x(20, 40), 16, activation="gelu"))
    w4_float = pack(round_to_nearest(_x(20, 40), 16, symmetric=False, input_mode="float"))
    w8 = pack(W8Canonical(_u8(20, 40).view(torch.int8), _x(20, 3).abs() + 0.1, None, 16, activation="silu"))
    bsr = pack(SparseCanonical(BlockCSR.from_dense(_x(16, 12).round(), (16, 1)), None, "gelu"))
    conv_bsr = pack(SparseCanonical(BlockCSR.from_dense(_x(16, 27).round(), (1, 1)), _x(16), "silu", (3, 3)))
    scales, zeros = torch.rand(3, generator=rng(3)) + 0.1, torch.full((3,), 4, dtype=torch.int32)
    out = {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 9}
    return [
        ("quantize_per_tensor", (_x(3, 5), 0.1, 3, torch.uint8), {}),
        ("quantize_per_tensor", (_x(5, 3).t(), 0.1, -3, torch.int8), {}),
        ("quantize_per_token", (_x(3, 5),), {}),
        ("quantize_per_token", (_x(2, 3, 5, dtype=torch.bfloat16), True), {}),
        ("linear_w8a8", (_x(3, 7), static, 5), {}),
        ("linear_w8a8", (_x(2, 3, 7, dtype=torch.float16), dynamic, 5), {}),
        ("linear_w8a8", (_x(7), dynamic, 5), {"residual": _x(5), "out_dtype": torch.bfloat16}),
        ("linear_w8a8", (_x(3, 7), static, 5), out),
        ("linear_w8a8", (_u8(3, 7), static, 5), {"out_dtype": torch.int32}),
        ("linear_w8a8", (_u8(3, 7), dynamic, 5), {"input_scale": scales, "input_zero_point": zeros}),
        ("linear_w8a8", (_x(3, 7, grad=True), dynamic, 5), {"residual": _x(3, 5, grad=True)}),
        ("linear_w8a8", (_x(3, 7, grad=True), static, 5), {}),
        ("linear_w8a8", (_x(0, 7), dynamic, 5), {}),
        ("conv2d_w8a8", (image, conv, *GEOMETRY), {}),
        ("conv2d_w8a8", (image.to(memory_format=torch.channels_last), conv, *GEOMETRY), {}),
        ("conv2d_w8a8", (image[0], conv, *GEOMETRY), {}),
        ("conv2d_w8a8", (_u8(2, 2, 8, 9), conv, *GEOMETRY), out),
        ("conv2d_w8a8", (_x(2, 2, 8, 9, grad=True), conv, *GEOMETRY), {"residual": _x(2, 6, 4, 10, grad=True)}),
        ("conv2d_chain", (image, *_chain(False)), {}),
        ("conv2d_chain", (image.to(memory_format=torch.channels_last), *_chain(True)), {}),
        ("conv2d_chain", (image[0].bfloat16(), *_chain(True)), {}),
        ("conv2d_chain", (_u8(2, 2, 8, 9), *_chain(False)), {}),
        ("linear_w4", (_x(3, 40), w4, 20), {}),
        ("linear_w4", (_x(40, dtype=torch.bfloat16), w4, 20), {"residual": _x(20), "out_dtype": torch.float32}),
        ("linear_w4", (_x(2, 3, 40), w4, 20), out),
        ("linear_w4", (_x(3, 40, grad=True), w4, 20), {"residual": _x(3, 20, grad=True)}),
        ("linear_w4", (_x(3, 40, dtype=torch.float16), w4_float, 20), {}),
        ("linear_w4", (_x(3, 40, grad=True), w4_float, 20), {"residual": _x(3, 20, grad=True)}),
        ("linear_w8", (_x(3, 40), w8, 20), {}),
        ("linear_w8", (_x(40, dtype=torch.bfloat16), w8, 20), {"residual": _x(20), "out_dtype": torch.float32}),
        ("linear_w8", (_x(2, 3, 40), w8, 20), out),
        ("linear_w8", (_x(3, 40, grad=True), w8, 20), {"residual": _x(3, 20, grad=True)}),
        ("embedding_packed", (torch.tensor([[3, 0], [19, 3]]), w8, 20, 40, torch.float32), {}),
        ("embedding_packed", (torch.tensor(7, dtype=torch.int32), w4, 20, 40, torch.bfloat16), {}),
        ("linear_bsr", (_x(3, 12), bsr, 16), {}),
        ("linear_bsr", (_x(12, dtype=torch.bfloat16), bsr, 16), {"residual": _x(16), "out_dtype": torch.float32}),
        ("linear_bsr", (_x(3, 12, grad=True), bsr, 16), {"residual": _x(3, 16, grad=True)}),
        ("linear_bsr", (_x(3, 12), bsr, 16), out),
        ("conv2d_bsr", (_x(2, 3, 8, 9), conv_bsr, 16, *GEOMETRY[1:]), {}),
        ("conv2d_bsr", (_x(3, 8, 9), conv_bsr, 16, *GEOMETRY[1:]), out),
        ("conv2d_bsr", (_x(2, 3, 8, 9, grad=True), conv_bsr, 16, *GEOMETRY[1:]), {}),
        ("linear_backward", (_x(3, 16), _x(3, 12), bsr), {}),
        ("conv2d_backward", (_x(2, 16, 4, 10), _x(2, 3, 8, 9), conv_bsr, *GEOMETRY[1:]), {}),
        ("dequantize", (bsr, "weight", [16, 12], torch.float32), {}),
        ("dequantize", (static, "weight", [5, 7], torch.bfloat16), {}),
        ("dequantize", (w8, "weight", [20, 40], torch.float32), {}),
        ("dequantize", (static, "bias", [5], torch.float32), {}),
        ("linear_backward", (_x(3, 5), _x(3, 7), dynamic), {"residual": _x(3, 5)}),
        ("conv2d_backward", (_x(2, 6, 4, 10), image, conv, *GEOMETRY[1:]), {}),
    ]


SAMPLES = _samples()


@pytest.mark.parametrize("index", range(len(SAMPLES)), ids=lambda i: f"{SAMPLES[i][0]}-{i}")
def test_opcheck(index: int) -> None:
    name, args, kwargs = SAMPLES[index]
    torch.library.opcheck(getattr(OPS, name).default, args, kwargs)


def test_every_operator_has_a_sample() -> None:
    assert {name for name, _, _ in SAMPLES} == {
        schema.split("(")[0] for schema in schemas.SCHEMAS + schemas.PYTHON_SCHEMAS
    }


@pytest.mark.parametrize("schema", schemas.SCHEMAS + schemas.PYTHON_SCHEMAS)
def test_registered_schema_is_the_documented_one(schema: str) -> None:
    registered = getattr(OPS, schema.split("(")[0]).default._schema
    assert registered == torch._C.parse_schema(f"fastcompress::{schema}")
