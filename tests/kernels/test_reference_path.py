"""The plain-torch reference path obeys the same oracle and has the kernels' bits, also behind exp and erf.

Sums of float weights are not the same bits: they have the oracle's bound on both sides.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcompress.ops import pack, reference, reference_groups, reference_layout
from tests.block_problems import FORMS, S8_FORMS
from tests.kernels import runner
from tests.kernels.blocks import layer
from tests.kernels.families import FAMILIES
from tests.kernels.group_runner import GroupCase, group_canonical
from tests.kernels.torch_bridge import TORCH, array, block_canonical, canonical, tensor
from tests.problems import ConvProblem, LinearProblem, QuantizeProblem
from tests.tolerances import REFERENCE_AGREEMENT

FIRST, COUNT = 60_000, 300
ROOT = Path(__file__).resolve().parents[2]


def _encoded(case: runner.Case) -> torch.Tensor:
    assert case.pack is not None
    if isinstance(case, GroupCase):
        return reference_groups.encode(group_canonical(case.pack))
    return reference_layout.encode((canonical if case.packer == "pack_w8a8" else block_canonical)(case.pack))


def _linear(p: LinearProblem, case: runner.Case) -> dict[str, Any]:
    a = case.arguments
    given = p.per_token_given
    out = getattr(reference, case.function)(
        tensor(case.inputs[0], p.in_dtype),
        _encoded(case),
        p.n,
        None if p.residual is None else tensor(a["residual"], p.residual),
        TORCH[p.out_dtype],
        a["out_scale"],
        a["out_zero_point"],
        *((torch.from_numpy(a["input_scale"]), torch.from_numpy(a["input_zero_point"])) if given else ()),
    )
    return {"out": array(out, p.out_dtype)}


def _conv(p: ConvProblem, case: runner.Case) -> dict[str, Any]:
    a = case.arguments

    def nchw(x: Any, dtype: str) -> torch.Tensor:
        t = tensor(x, dtype)
        return t if p.layout == "nchw" else t.permute(0, 3, 1, 2)

    out = getattr(reference, case.function)(
        nchw(case.inputs[0], p.in_dtype),
        _encoded(case),
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


def _runs(family: str) -> Any:
    return _quantize if family == "quantize" else _linear if family.startswith("linear") else _conv


def _allowed(p: Any) -> bool:
    """The operators refuse a residual on the raw accumulator; the raw-buffer kernels just do not read it.

    And the reference layout is dense: there, NaN meets the zeros of blocks that are not stored.
    """
    dense_nan = p.hostile and getattr(p, "form", S8_FORMS[0]) not in S8_FORMS
    return not dense_nan and not (getattr(p, "out_dtype", "") == "i32" and p.residual is not None)


@cache
def _answers(family: str) -> list[tuple[runner.Case, dict[str, Any]]]:
    """Cases and what the reference path makes of them."""
    make, build = FAMILIES[family]
    run = _runs(family)
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


@pytest.mark.parametrize("family", [f for f in FAMILIES if "float" not in f and "f32" not in f and "bf16" not in f])
def test_kernels_and_reference_path_agree_to_the_last_bit(native: Any, isa: str, family: str) -> None:
    for case, want in _answers(family):
        got = case.run(native, 1)
        for name, expected in case.expected.items():
            assert runner.same_bits(want[name], got[name], expected.dtype), f"{name}\n{case.label}"


#: What a process without native kernels makes of a layer of each kind, in the order of `FORMS`.
_WITHOUT_KERNELS = """
import sys, torch
from fastcompress.ops import native, pack
from fastcompress.ops.reference_layout import is_reference
layers = torch.load(sys.argv[1], weights_only=False)
assert not native.available
results = []
for name, c, x, geometry in layers:
    packed = pack(c)
    assert is_reference(packed)
    results.append(getattr(torch.ops.fastcompress, name)(x, packed, c.weight_shape[0], *geometry))
torch.save(results, sys.argv[2])
"""


@pytest.mark.parametrize("kernel", [None, (3, 2)])
def test_a_process_without_native_kernels_gives_the_same_answers(
    native: Any, tmp_path: Path, kernel: tuple[int, int] | None
) -> None:
    rng = np.random.default_rng(7)
    geometry: tuple[Any, ...] = () if kernel is None else (kernel, (2, 1), (1, 0, 2, 1), (1, 1))
    layers, wanted = [], []
    for form in FORMS:
        b = layer(form, rng.random((3, 18)) < 0.5, kernel, activation=2)
        c = block_canonical((*b.blocks, b.shape, *b.parameters))
        x = torch.randn(*((5, b.shape[1]) if kernel is None else (2, b.shape[1], 7, 6)))
        layers.append((c.family, c, x, geometry))
        wanted.append(getattr(torch.ops.fastcompress, c.family)(x, pack(c), b.shape[0], *geometry))
    torch.save(layers, tmp_path / "layers.pt")
    command = [sys.executable, "-c", _WITHOUT_KERNELS, str(tmp_path / "layers.pt"), str(tmp_path / "results.pt")]
    environment = {**os.environ, "FASTCOMPRESS_DISABLE_NATIVE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for form, want, got in zip(FORMS, wanted, torch.load(tmp_path / "results.pt", weights_only=True), strict=True):
        assert got.shape == want.shape
        if form.value == "s8":
            assert torch.equal(got, want), form
        else:  # two orders of summation
            assert torch.allclose(got, want, rtol=0, atol=REFERENCE_AGREEMENT), form
