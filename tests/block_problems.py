"""Seeded problems of block-sparse layers: every kind of block, linear layers and convolutions.

As in `tests.problems`, sizes walk through coprime periods and the remaining fields are drawn. One problem in sixteen is
wide: its blocks lie 255 columns and more apart, where indices of one byte need stepping stones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tests import oracles, problems
from tests.problems import ConvProblem, LinearProblem

__all__ = [
    "BLOCKS",
    "FORMS",
    "REAL_FORMS",
    "S8_FORMS",
    "BlockConv",
    "BlockLinear",
    "Form",
    "block_mask",
    "conv_problems",
    "linear_problems",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """Blocks of ``height`` outputs x ``width`` inputs, of values of one dtype."""

    value: str
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.value}_{self.height}x{self.width}"


S8_FORMS = (Form("s8", 16, 4), Form("s8", 4, 4), Form("s8", 1, 4))
REAL_FORMS = (Form("f32", 16, 1), Form("f32", 4, 1), Form("f32", 1, 1), Form("bf16", 16, 2))
FORMS = S8_FORMS + REAL_FORMS

#: How the blocks lie; those of a wide problem: `_WIDE`.
BLOCKS = ("random", "random", "random", "none", "all", "one", "empty rows", "full rows")
_WIDE = ("steps", "steps", "ends", "sparse")
#: Distances around those that need one stepping stone more.
_STEPS = (1, 2, 253, 254, 255, 256, 509, 510, 511, 765)


@dataclass(frozen=True)
class BlockLinear(LinearProblem):
    """One call of linear_w8a8 or linear_bsr with block-sparse weights, ``density`` of the blocks stored."""

    form: Form
    blocks: str
    density: float


@dataclass(frozen=True)
class BlockConv(ConvProblem):
    """One call of conv2d_w8a8 or conv2d_bsr; blocks are those of the matrix ``[out, kh * kw * in]``."""

    form: Form
    blocks: str
    density: float


def block_mask(p: BlockLinear | BlockConv) -> NDArray[np.bool_]:
    """Which blocks are stored, ``[out / height, k / width]``."""
    rng = np.random.default_rng([14, p.index])
    n = p.n if isinstance(p, BlockLinear) else p.out_channels
    rows, columns = n // p.form.height, p.k // p.form.width
    mask = np.zeros((rows, columns), dtype=bool)
    if p.blocks == "one":
        mask[int(rng.integers(rows)), int(rng.integers(columns))] = True
    elif p.blocks == "ends":
        mask[:, -1] = True
        mask[::2, 0] = True
    elif p.blocks == "steps":
        at = np.cumsum(rng.choice(_STEPS, size=(rows, 8)), axis=1) - rng.integers(2)
        row, step = np.nonzero(at < columns)
        mask[row, at[row, step]] = True
    elif p.blocks not in ("none", "all"):
        mask = rng.random((rows, columns)) < (0.004 if p.blocks == "sparse" else p.density)
        if p.blocks.endswith("rows"):
            mask[rng.random(rows) < 0.5] = p.blocks == "full rows"
    return mask | (p.blocks == "all")


class _Draws:
    """A problem's random choices; one call of the generator serves them all."""

    def __init__(self, *seed: int) -> None:
        self._values = iter(np.random.default_rng(seed).random(40).tolist())

    def below(self, limit: int) -> int:
        return int(next(self._values) * limit)

    def pick(self, options: tuple[T, ...]) -> T:
        return options[self.below(len(options))]

    def chance(self, probability: float) -> bool:
        return bool(next(self._values) < probability)


def _common(d: _Draws, index: int, form: Form, wide: bool) -> dict[str, Any]:
    real = form.value != "s8"
    return {
        "index": index,
        "form": form,
        "activation": d.pick(oracles.ACTIVATIONS),
        "has_bias": d.chance(0.5),
        "residual": d.pick(problems.RESIDUALS),
        "out_dtype": d.pick(problems.OUT_DTYPES[: -1 if real else None]),
        "extreme": d.chance(0.1),
        "hostile": d.chance(0.1),
        "blocks": d.pick(_WIDE if wide else BLOCKS),
        "density": d.pick((0.02, 0.1, 0.3, 0.7)),
    }


def linear_problems(form: Form) -> Callable[[int], BlockLinear]:
    """The numbered linear problems of one kind of block."""
    kinds = problems.INPUT_KINDS if form.value == "s8" else tuple((d, "static", False) for d in problems.FLOAT_DTYPES)
    rows = {16: 5, 4: 19, 1: 73}[form.height]
    few_rows = {16: 2, 4: 5, 1: 17}[form.height]

    def problem(index: int) -> BlockLinear:
        d = _Draws(16, FORMS.index(form), index)
        wide, long = index % 16 == 3, index % 16 == 5
        in_dtype, mode, given = d.pick(kinds)
        return BlockLinear(
            **_common(d, index, form, wide),
            in_dtype=in_dtype,
            m=1 + index // 16 % 139 if long else 1 + index % 41,
            n=form.height * (1 + index % (few_rows if wide else rows)),
            k=form.width * (256 + d.below(600) if wide else 1 + index % 67),
            mode=mode,
            per_token_given=given,
        )

    return problem


_KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (3, 3), (2, 3), (1, 4), (5, 1), (5, 5))
_STRIDES = ((1, 1), (1, 1), (1, 1), (2, 2), (2, 2), (2, 1), (1, 3), (3, 2), (4, 5))
_DILATIONS = ((1, 1), (1, 1), (1, 1), (2, 2), (1, 2))


def conv_problems(forms: tuple[Form, ...]) -> Callable[[int], BlockConv]:
    """The numbered convolutions, the kinds of blocks taking turns."""

    def problem(index: int) -> BlockConv:
        form, step = forms[index % len(forms)], index // len(forms)
        d = _Draws(17, len(forms), index)
        wide = step % 16 == 3
        kernel = (3, 3) if wide else d.pick(_KERNELS)
        stride, dilation = d.pick(_STRIDES), d.pick(_DILATIONS)
        padding = (d.below(4), d.below(4), d.below(4), d.below(4)) if d.chance(0.7) else (0, 0, 0, 0)
        span = [e * (s - 1) + 1 for e, s in zip(dilation, kernel, strict=True)]
        smallest = (max(1, span[0] - padding[0] - padding[1]), max(1, span[1] - padding[2] - padding[3]))
        few = {16: 2, 4: 5, 1: 11} if wide else {16: 5, 4: 13, 1: 37}
        blocks_a_tap = 29 + d.below(12) if wide else 1 + step % (29 if kernel == (1, 1) else 7)
        return BlockConv(
            **_common(d, index, form, wide),
            in_dtype=d.pick((*problems.FLOAT_DTYPES, *(("u8",) if form.value == "s8" else ()))),
            batch=d.pick((1, 1, 1, 2, 3)),
            height=min(12, smallest[0] + d.below(9)),
            width=min(12, smallest[1] + d.below(9)),
            channels=form.width * blocks_a_tap,
            out_channels=form.height * (1 + step % few[form.height]),
            groups=1,
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            layout=d.pick(("nhwc", "nchw")),
        )

    return problem
