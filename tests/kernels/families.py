"""Every kernel family that the oracle judges: how its problems are made and built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests import problems
from tests.block_problems import REAL_FORMS, S8_FORMS, conv_problems, linear_problems
from tests.group_problems import GROUP_FAMILIES, group_problems
from tests.kernels import group_runner, real_runner, runner

__all__ = ["FAMILIES"]

FAMILIES: dict[str, tuple[Callable[[int], Any], Callable[[Any], runner.Case]]] = {
    "linear_w8a8": (problems.linear_problem, runner.build_linear),
    "conv2d_w8a8": (problems.conv_problem, runner.build_conv),
    "conv2d_w4a8": (problems.four_bit_conv_problem, runner.build_conv),
    "quantize": (problems.quantize_problem, runner.build_quantize),
    **{f"linear_{form}": (linear_problems(form), runner.build_linear) for form in S8_FORMS},
    **{f"linear_{form}": (linear_problems(form), real_runner.build_real_linear) for form in REAL_FORMS},
    **{family: (group_problems(family), group_runner.build_group_linear) for family in GROUP_FAMILIES},
    "conv2d_blocks_s8": (conv_problems(S8_FORMS), runner.build_conv),
    "conv2d_blocks_float": (conv_problems(REAL_FORMS), real_runner.build_real_conv),
}
