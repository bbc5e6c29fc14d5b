"""Tens of thousands of seeded problems per kernel family, every ISA, 1 to 3 threads, against the numpy oracle."""

from __future__ import annotations

from typing import Any

import pytest

from tests import block_problems, group_problems, problems
from tests.conftest import MIN_CASES, cases_run
from tests.kernels import runner
from tests.kernels.families import FAMILIES
from tests.oracles import ACTIVATIONS


def _agree(expected: runner.Expected, out: Any, first: Any) -> str:
    """Empty when ``out`` is right: as the oracle allows, and the bits of the first ISA where there is one."""
    if first is not None:
        return "" if runner.same_bits(first, out, expected.dtype) else "differs from the first ISA"
    return runner.check(expected, out)


@pytest.mark.parametrize("family", FAMILIES)
def test_problems_match_oracle_on_every_isa(native: Any, family: str, problem_range: range) -> None:
    """Exact problems run on every ISA, float ones on two: their bits may differ, and each ISA gets two in five."""
    make, build = FAMILIES[family]
    cases = [build(make(index)) for index in problem_range]
    isas = native.isa_supported()
    first: dict[int, dict[str, Any]] = {}
    for turn, isa in enumerate(isas):
        native.set_isa(isa)
        for number, case in enumerate(cases):
            if not case.exact and (turn - number) % len(isas) not in (0, 2 % len(isas)):
                continue
            # Starting threads takes longer than a small problem: one in four may have several.
            threads = 1 + (number // 4 + turn) % 3 if number % 4 == 0 else 1
            out = case.run(native, threads)
            for name, expected in case.expected.items():
                wrong = _agree(expected, out[name], first[number][name] if number in first else None)
                assert not wrong, f"{isa}, {threads} threads, {name}: {wrong}\n{case.label}"
            if case.exact:
                first.setdefault(number, out)
    cases_run[family] += len(cases)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_least_20000_problems_are_distinct(family: str, request: pytest.FixtureRequest) -> None:
    make, _ = FAMILIES[family]
    count = request.config.getoption("--cases")
    distinct = {make(index).key for index in range(count)}
    assert len(distinct) >= MIN_CASES
    assert len(distinct) >= 0.999 * count


#: Every way that the blocks of a problem can lie.
ALL_BLOCKS = frozenset(block_problems.BLOCKS) | {"steps", "ends", "sparse"}


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


@pytest.mark.parametrize("form", block_problems.FORMS, ids=str)
def test_block_sparse_linear_problems_cover_every_remainder_and_field(form: block_problems.Form) -> None:
    ps = [block_problems.linear_problems(form)(i) for i in range(MIN_CASES)]
    for tile in (4, 16, 32):
        assert _covers({(p.m % tile, p.activation) for p in ps}, range(tile), ACTIVATIONS)
    assert {p.m for p in ps} == set(range(1, 140))
    kinds = problems.INPUT_KINDS if form.value == "s8" else problems.FLOAT_DTYPES
    outs = problems.OUT_DTYPES if form.value == "s8" else problems.OUT_DTYPES[:-1]
    for tile in (4, 16, 32):
        assert _covers({(p.m % tile, p.blocks) for p in ps}, range(tile), ALL_BLOCKS)
        assert _covers({(p.m % tile, p.in_dtype, p.mode, p.per_token_given) for p in ps}, range(tile), kinds)
    panels = {-(-p.n // 16) for p in ps}
    assert panels == set(range(1, 6))
    assert _covers({(p.m, p.n) for p in ps if p.m <= 41}, range(41), {p.n for p in ps})
    assert _covers({(p.n % 64, p.out_dtype, p.residual) for p in ps}, {p.n % 64 for p in ps}, outs, problems.RESIDUALS)
    assert _covers({(p.k // form.width % 16, p.blocks) for p in ps}, range(16), ALL_BLOCKS)
    assert any(p.k // form.width > 3 * 255 for p in ps)


@pytest.mark.parametrize("family", group_problems.GROUP_FAMILIES)
def test_group_problems_cover_every_remainder_and_field(family: str) -> None:
    ps = [group_problems.group_problems(family)(i) for i in range(MIN_CASES)]
    kinds, outs = group_problems.GROUP_FAMILIES[family].zero_kinds, problems.OUT_DTYPES[:-1]
    for tile in (4, 6, 8, 12):
        assert _covers({(p.m % tile, p.activation) for p in ps}, range(tile), ACTIVATIONS)
        assert _covers({(p.m % tile, p.zero_kind, p.in_dtype) for p in ps}, range(tile), kinds, range(3))
        assert _covers({(p.m % tile, p.n % 16) for p in ps}, range(tile), range(16))
    assert _covers({(p.m, p.n) for p in ps}, range(61), range(71))
    assert _covers({(p.n, p.k % 137) for p in ps}, range(71), range(137))
    assert _covers({(p.n % 64, p.out_dtype) for p in ps}, range(64), outs)
    assert _covers({(p.n % 16, p.residual, p.has_bias) for p in ps}, range(16), problems.RESIDUALS, (0, 1))
    assert _covers({(p.n % 16, p.scale_dtype, p.zero_kind) for p in ps}, range(16), range(3), kinds)
    assert _covers({(p.activation, p.out_dtype, p.residual) for p in ps}, ACTIVATIONS, outs, problems.RESIDUALS)
    parts = [p for p in ps if p.group_size < p.k]
    assert _covers({(p.group_size, p.zero_kind, p.scale_dtype) for p in parts}, range(6), kinds, range(3))
    for size in group_problems.GROUP_SIZES:  # inputs in the last group: every number that it can have
        assert {p.k % size for p in parts if p.group_size == size} == set(range(size))
        assert {p.groups % 2 for p in parts if p.group_size == size} == {0, 1}
    whole = [p for p in ps if p.group_size == p.k]
    assert {p.k for p in whole} >= set(range(1, 138))
    # Tiles of few rows take four panels, others two.
    panels = {(min(p.m, 3), -(-p.n // 16) % 4) for p in ps}
    assert _covers(panels, range(1, 4), range(4))
    assert {p.m % 12 for p in whole if p.k > 256 and p.m >= 12} == set(range(12))
    for some in (parts, whole):
        assert _covers({(p.extreme, p.signed_scales, p.zero_kind) for p in some}, (0, 1), (0, 1), kinds)
        assert _covers({(p.hostile, p.in_dtype) for p in some}, (0, 1), range(3))
        assert any(p.magnitude < 2.0**-100 for p in some)
        assert any(p.k > 1000 and p.extreme for p in some)


@pytest.mark.parametrize("forms", [block_problems.S8_FORMS, block_problems.REAL_FORMS], ids=["s8", "float"])
def test_block_sparse_conv_problems_cover_every_remainder_and_field(forms: tuple[block_problems.Form, ...]) -> None:
    everything = [block_problems.conv_problems(forms)(i) for i in range(MIN_CASES)]
    for form in forms:
        ps = [p for p in everything if p.form == form]
        assert _covers({(p.pixels % 16, p.activation) for p in ps}, range(16), ACTIVATIONS)
        assert {p.pixels % 32 for p in ps} == set(range(32))
        assert _covers({(p.stride, p.kernel, p.layout) for p in ps if p.kernel != (3, 3)}, range(6), range(5), range(2))
        assert _covers({(p.stride, p.dilation, p.layout) for p in ps}, range(6), range(3), range(2))
        assert _covers({(p.blocks, p.layout, p.in_dtype) for p in ps}, ALL_BLOCKS, range(2), {p.in_dtype for p in ps})
        assert _covers(
            {(p.out_dtype, p.residual, p.layout) for p in ps},
            {p.out_dtype for p in ps},
            problems.RESIDUALS,
            range(2),
        )
        assert len({p.padding for p in ps if len(set(p.padding)) == 4}) == 24
        assert any(p.stride[0] > p.kernel[0] and p.stride[1] > p.kernel[1] for p in ps)
        assert any(p.k // form.width > 255 for p in ps)
        assert {p.batch for p in ps} == {1, 2, 3}


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


def test_four_bit_conv_problems_cover_every_remainder_and_field() -> None:
    ps = [problems.four_bit_conv_problem(i) for i in range(MIN_CASES)]
    assert not any(p.groups == p.channels == p.out_channels > 1 for p in ps)
    dense = [p for p in ps if p.groups == 1]
    assert _covers({(p.out_channels % 16, p.k % 64) for p in dense}, range(16), range(64))
    quads = {-(-p.channels // p.groups // 4) * p.kernel[0] * p.kernel[1] % 2 for p in dense}
    assert quads == {0, 1}  # lines of a panel: even and odd
    assert _covers({(p.layout, p.in_dtype, p.out_dtype) for p in ps}, (0, 1), range(4), problems.OUT_DTYPES)
    assert any(p.groups > 1 and p.channels == p.groups for p in ps)
