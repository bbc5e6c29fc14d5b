"""Tens of thousands of seeded problems per kernel family, every ISA, 1 to 3 threads, against the numpy oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests import problems
from tests.conftest import MIN_CASES, cases_run
from tests.kernels import runner
from tests.oracles import ACTIVATIONS

FAMILIES: dict[str, tuple[Callable[[int], Any], Callable[[Any], runner.Case]]] = {
    "linear_w8a8": (problems.linear_problem, runner.build_linear),
    "linear_bsr_w8a8": (problems.sparse_problem, runner.build_linear),
    "conv2d_w8a8": (problems.conv_problem, runner.build_conv),
    "quantize": (problems.quantize_problem, runner.build_quantize),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_problems_match_oracle_on_every_isa(native: Any, family: str, problem_range: range) -> None:
    make, build = FAMILIES[family]
    cases = [build(make(index)) for index in problem_range]
    first: list[dict[str, Any]] = []
    for turn, isa in enumerate(native.isa_supported()):
        native.set_isa(isa)
        for number, case in enumerate(cases):
            threads = 1 + (number + turn) % 3
            out = case.run(native, threads)
            if turn == 0:
                first.append(out)
            for name, expected in case.expected.items():
                wrong = runner.check(expected, out[name])
                assert not wrong, f"{isa}, {threads} threads, {name}: {wrong}\n{case.label}"
                assert runner.same_bits(first[number][name], out[name], expected.dtype), (
                    f"{isa} with {threads} threads differs from {native.isa_supported()[0]} in {name}\n{case.label}"
                )
    assert len(first) == len(problem_range)
    cases_run[family] += len(problem_range)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_least_20000_problems_are_distinct(family: str, request: pytest.FixtureRequest) -> None:
    make, _ = FAMILIES[family]
    count = request.config.getoption("--cases")
    distinct = {make(index).key for index in range(count)}
    assert len(distinct) >= MIN_CASES
    assert len(distinct) >= 0.999 * count


def _covers(seen: set[Any], *sets: Any) -> bool:
    """Whether ``seen`` is the full product of the sets."""
    size = 1
    for s in sets:
        size *= len(s)
    return len(seen) == size


def test_linear_problems_cover_every_remainder_and_field() -> None:
    ps = [problems.linear_problem(i) for i in range(MIN_CASES)]
    for tile in (6, 12, 16, 32):
        assert _covers({(p.m % tile, p.activation) for p in ps}, range(tile), ACTIVATIONS)
        assert _covers(
            {(p.m % tile, p.out_dtype, p.residual) for p in ps}, range(tile), problems.OUT_DTYPES, problems.RESIDUALS
        )
        assert _covers(
            {(p.m % tile, p.in_dtype, p.mode, p.per_token_given) for p in ps}, range(tile), problems.INPUT_KINDS
        )
        assert _covers({(p.m % tile, p.n % 16) for p in ps}, range(tile), range(16))
    assert _covers({(p.n % 64, p.activation) for p in ps}, range(64), ACTIVATIONS)
    assert _covers({(p.n % 64, p.out_dtype) for p in ps}, range(64), problems.OUT_DTYPES)
    assert _covers({(p.n % 16, p.activation, p.out_dtype) for p in ps}, range(16), ACTIVATIONS, problems.OUT_DTYPES)
    assert _covers({(p.n % 64, p.residual, p.has_bias) for p in ps}, range(64), problems.RESIDUALS, (0, 1))
    assert _covers({(p.n % 64, p.k % 64) for p in ps}, range(64), range(64))
    assert _covers({(p.k % 64, p.in_dtype, p.mode, p.per_token_given) for p in ps}, range(64), problems.INPUT_KINDS)
    assert _covers({(p.m % 32, p.n % 16, p.k % 4) for p in ps}, range(32), range(16), range(4))
    fields = {(p.activation, p.has_bias, p.residual, p.out_dtype, p.in_dtype, p.mode, p.per_token_given) for p in ps}
    epilogues = len(ACTIVATIONS) * 2 * len(problems.RESIDUALS) * len(problems.OUT_DTYPES)
    assert len(fields) > 0.9 * epilogues * len(problems.INPUT_KINDS)


def test_sparse_problems_cover_every_remainder_and_field() -> None:
    ps = [problems.sparse_problem(i) for i in range(MIN_CASES)]
    for tile in (4, 16, 32):
        assert _covers({(p.m % tile, p.activation) for p in ps}, range(tile), ACTIVATIONS)
        assert _covers({(p.m % tile, p.blocks) for p in ps}, range(tile), set(problems.BLOCKS))
        assert _covers(
            {(p.m % tile, p.in_dtype, p.mode, p.per_token_given) for p in ps}, range(tile), problems.INPUT_KINDS
        )
    assert _covers({(p.m, p.n) for p in ps}, range(71), range(9))
    assert _covers(
        {(p.n // 16 % 4, p.out_dtype, p.residual) for p in ps}, range(4), problems.OUT_DTYPES, problems.RESIDUALS
    )
    assert _covers({(p.k // 4 % 16, p.blocks) for p in ps}, range(16), set(problems.BLOCKS))


def test_conv_problems_cover_every_remainder_and_field() -> None:
    ps = [problems.conv_problem(i) for i in range(MIN_CASES)]
    for tile in (6, 12, 16, 32):
        assert _covers({(p.pixels % tile, p.activation) for p in ps}, range(tile), ACTIVATIONS)
        assert _covers({(p.pixels % tile, p.out_dtype) for p in ps}, range(tile), problems.OUT_DTYPES)
    dense = [p for p in ps if p.groups == 1]
    depthwise = [p for p in ps if p.groups == p.channels > 1]
    for some in (dense, depthwise):
        assert _covers({p.out_channels % 64 for p in some}, range(64))
        assert _covers({(p.out_channels % 16, p.out_dtype) for p in some}, range(16), problems.OUT_DTYPES)
    assert _covers({p.k % 64 for p in dense}, range(64))
    assert _covers(
        {(p.layout, p.in_dtype, p.residual, p.activation) for p in ps}, (0, 1), range(4), range(4), ACTIVATIONS
    )
    assert {p.stride for p in depthwise} == {p.stride for p in ps}
    assert len({p.padding for p in ps if len(set(p.padding)) == 4}) == 24
    assert any(p.groups > 1 and p.groups < p.channels for p in ps)
