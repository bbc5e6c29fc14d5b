"""Weights in groups: one, two and three threads, and every ISA, give the oracle's bits where calls are shared out.

The operator starts threads only for calls that are worth it, which few of the seeded problems are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.group_problems import GROUP_FAMILIES, group_problems
from tests.kernels import runner
from tests.kernels.group_runner import build_group_linear
from tests.problems import MAX_K

#: Rows, outputs, inputs, group size. Threads share panels; in the last two, with few panels, rows as well. In the
#: second a task has up to 20 panels, with one thread, and a block of panels 6 or 3 (of four and eight bits).
SHAPES = [
    (1, 4100, 1024, 128),
    (9, 4100, 4160, 128),
    (7, 2061, 900, 32),
    (26, 1031, 520, 64),
    (130, 300, 520, 24),
    (257, 65, 1030, 1030),
]

CASES = [(family, kind) for family, scheme in GROUP_FAMILIES.items() for kind in scheme.zero_kinds]


@pytest.mark.parametrize("out_dtype", ["f32", "u8"])
@pytest.mark.parametrize(("family", "kind"), CASES)
@pytest.mark.parametrize(("m", "n", "k", "size"), SHAPES)
def test_bits_do_not_depend_on_threads_or_isa(
    native: Any, family: str, kind: str, m: int, n: int, k: int, size: int, out_dtype: str
) -> None:
    problem = group_problems(family)(m)
    p = replace(
        problem,
        m=m,
        n=n,
        k=k,
        group_size=size,
        zero_kind=kind,
        activation="relu",
        residual="bf16",
        has_bias=True,
        out_dtype=out_dtype,
        extreme=False,
        hostile=m > 1,
        magnitude=1.0,
    )
    case = build_group_linear(p)
    for isa in native.isa_supported():
        native.set_isa(isa)
        packed = case.packed(native)
        for threads in (1, 2, 3):
            out = case.new_outputs()
            case.call(native, packed, out, threads)
            wrong = runner.check(case.expected["out"], out["out"])
            assert not wrong, f"{isa}, {threads} threads: {wrong}\n{case.label}"


@pytest.mark.parametrize(("family", "kind"), CASES)
@pytest.mark.parametrize(("m", "k"), [(3, 4099), (13, 4099), (2, MAX_K)])
def test_sums_that_float32_has_to_round(native: Any, isa: str, family: str, kind: str, m: int, k: int) -> None:
    """Whole rows of the largest integers: exact sums up to 2^30, each rounded where the document says."""
    for seed in range(6):
        problem = group_problems(family)(seed)
        changes: dict[str, Any] = {"zero_kind": kind, "extreme": True, "hostile": False, "magnitude": 1.0}
        p = replace(problem, m=m, n=17, k=k, group_size=k, activation="none", out_dtype="f32", **changes)
        case = build_group_linear(p)
        wrong = runner.check(case.expected["out"], case.run(native, 1)["out"])
        assert not wrong, f"{wrong}\n{case.label}"
