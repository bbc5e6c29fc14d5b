"""Seeded problems of linear layers with weights in groups; see `tests.problems` for what is promised of them.

Rows walk through a period of 61, outputs of 71, depths of 137, all prime: 4,331 problems in a row hold every (M, N)
pair, 9,727 every (N, K) pair, and no (M, N, K) triple repeats within 593,000. 61 rows are many tiles, 71 outputs
more than the four panels of a tile of few rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import oracles, problems
from tests.problems import LinearProblem

__all__ = ["GROUP_FAMILIES", "GROUP_SIZES", "ZERO_KINDS", "GroupLinear", "GroupScheme", "group_problems"]

GROUP_SIZES = (8, 16, 24, 32, 64, 128)
#: What is taken off four-bit values: 8, a zero point of the group, or (instead) a minimum is added.
ZERO_KINDS = ("middle", "zero point", "minimum")


@dataclass(frozen=True)
class GroupScheme:
    """Bits of the weights and the input mode; ``zero_kinds`` is what such weights can have."""

    bits: int
    mode: str
    zero_kinds: tuple[str, ...]

    @property
    def function(self) -> str:
        """The operator."""
        return f"linear_w{self.bits}"


#: The families of kernels, and what they compute.
GROUP_FAMILIES: dict[str, GroupScheme] = {
    "linear_w4a8": GroupScheme(4, "dynamic_symmetric", ZERO_KINDS),
    "linear_w4a16": GroupScheme(4, "dynamic_16bit", ZERO_KINDS),
    "linear_w8a16": GroupScheme(8, "dynamic_16bit", ("none",)),
}


@dataclass(frozen=True)
class GroupLinear(LinearProblem):
    """One call of linear_w4 or linear_w8; ``group_size`` is ``k`` where one scale serves the whole row."""

    bits: int
    group_size: int
    zero_kind: str
    scale_dtype: str
    signed_scales: bool
    magnitude: float

    @property
    def groups(self) -> int:
        """Groups of an output channel."""
        return -(-self.k // self.group_size)


class _Draws:
    """A problem's random choices, all drawn in one call of the generator."""

    def __init__(self, *seed: int) -> None:
        self._values = iter(np.random.default_rng(seed).random(24).tolist())

    def pick(self, options: tuple[Any, ...]) -> Any:
        return options[int(next(self._values) * len(options))]

    def chance(self, probability: float) -> bool:
        return bool(next(self._values) < probability)

    def log_uniform(self, low: float, high: float) -> float:
        return float(np.float32(low * (high / low) ** next(self._values)))


def group_problems(family: str) -> Callable[[int], GroupLinear]:
    """The numbered problems of a family."""
    scheme = GROUP_FAMILIES[family]
    number = tuple(GROUP_FAMILIES).index(family)

    def problem(index: int) -> GroupLinear:
        d = _Draws(31, number, index)
        # One problem in eight is deep: many groups, large ones, and whole rows whose sums float32 has to round.
        deep = index % 8 == 0
        k = 1 + index % 137 + (137 * d.pick((1, 1, 2, 2, 3, 3, 5, 8)) if deep else 0)
        sizes = (*GROUP_SIZES, 64, 128, 128) if deep else tuple(size for size in GROUP_SIZES if size < k)
        in_dtype = d.pick(problems.FLOAT_DTYPES)
        # Some inputs are so small that the smallest scale is taken; f16 has none of them.
        tiny = d.chance(0.05) and in_dtype != "f16"
        return GroupLinear(
            index=index,
            activation=d.pick(oracles.ACTIVATIONS),
            has_bias=d.chance(0.5),
            residual=d.pick(problems.RESIDUALS),
            out_dtype=d.pick(problems.OUT_DTYPES[:-1]),
            extreme=d.chance(0.1),
            hostile=d.chance(0.05),
            in_dtype=in_dtype,
            m=1 + index % 61,
            n=1 + index % 71,
            k=k,
            mode=scheme.mode,
            per_token_given=False,
            bits=scheme.bits,
            group_size=d.pick((*sizes, k)),
            zero_kind=d.pick(scheme.zero_kinds),
            scale_dtype=d.pick(problems.FLOAT_DTYPES),
            signed_scales=d.chance(0.3),
            magnitude=d.log_uniform(1e-33, 1e-25) if tiny else d.log_uniform(0.1, 10.0),
        )

    return problem
