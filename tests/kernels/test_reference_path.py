"""The plain-torch reference path obeys the same oracle and has the kernels' bits, also behind exp and erf."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from fastcompress.ops import reference, reference_layout
from tests import problems
from tests.kernels import runner
from tests.kernels.torch_bridge import TORCH, array, canonical, tensor
from tests.problems import ConvProblem, LinearProblem, QuantizeProblem

FIRST, COUNT = 60_000, 300


def _linear(p: LinearProblem, case: runner.Case) -> dict[str, Any]:
    a = case.arguments
    out = reference.linear_w8a8(
        tensor(case.inputs[0], p.in_dtype),
        reference_layout.encode(canonical(case.pack)),  # type: ignore[arg-type]
        p.n,
        None if p.residual is None else tensor(a["residual"], p.residual),
        TORCH[p.out_dtype],
        a["out_scale"],
        a["out_zero_point"],
        torch.from_numpy(a["input_scale"]) if p.per_token_given else None,
        torch.from_numpy(a["input_zero_point"]) if p.per_token_given else None,
    )
    return {"out": array(out, p.out_dtype)}


def _conv(p: ConvProblem, case: runner.Case) -> dict[str, Any]:
    a = case.arguments

    def nchw(x: Any, dtype: str) -> torch.Tensor:
        t = tensor(x, dtype)
        return t if p.layout == "nchw" else t.permute(0, 3, 1, 2)

    out = reference.conv2d_w8a8(
        nchw(case.inputs[0], p.in_dtype),
        reference_layout.encode(canonical(case.pack)),  # type: ignore[arg-type]
        p.out_channels,
        p.kernel,
        p.stride,
        p.padding,
        p.dilation,
        None if p.residual is None else nchw(a["residual"], p.residual),
        TORCH[p.out_dtype],
        a["out_scale"],
        a["out_zero_point"],
    )
    return {"out": array(out if p.layout == "nchw" else out.permute(0, 2, 3, 1), p.out_dtype)}


def _quantize(p: QuantizeProblem, case: runner.Case) -> dict[str, Any]:
    x = tensor(case.inputs[0], p.dtype)
    if p.symmetric is None:
        dtype = torch.int8 if p.signed else torch.uint8
        return {"out": reference.quantize_per_tensor(x, p.scale, p.zero_point, dtype).numpy()}
    q, scale, zero_point = reference.quantize_per_token(x, p.symmetric)
    return {"out_q": q.numpy(), "out_scale": scale.numpy(), "out_zero_point": zero_point.numpy()}


FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "linear_w8a8": (problems.linear_problem, runner.build_linear, _linear),
    "conv2d_w8a8": (problems.conv_problem, runner.build_conv, _conv),
    "quantize": (problems.quantize_problem, runner.build_quantize, _quantize),
}


def _allowed(p: Any) -> bool:
    """The operators refuse a residual on the raw accumulator; the raw-buffer kernels just do not read it."""
    return not (getattr(p, "out_dtype", "") == "i32" and p.residual is not None)


@cache
def _answers(family: str) -> list[tuple[runner.Case, dict[str, Any]]]:
    """Cases and what the reference path makes of them."""
    make, build, run = FAMILIES[family]
    answers = []
    for p in filter(_allowed, map(make, range(FIRST, FIRST + COUNT))):
        case = build(p)
        answers.append((case, run(p, case)))
    return answers


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_path_matches_the_oracle(family: str) -> None:
    assert len(_answers(family)) > COUNT // 2
    for case, got in _answers(family):
        for name, expected in case.expected.items():
            wrong = runner.check(expected, got[name])
            assert not wrong, f"{name}: {wrong}\n{case.label}"


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_and_reference_path_agree_to_the_last_bit(native: Any, isa: str, family: str) -> None:
    for case, want in _answers(family):
        got = case.run(native, 1)
        for name, expected in case.expected.items():
            assert runner.same_bits(want[name], got[name], expected.dtype), f"{name}\n{case.label}"
