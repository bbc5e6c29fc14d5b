"""Patterns: what is accepted, what fits, and the order of the matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcompress.ops.block_csr import matrix_of, weight_of
from fastcompress.pruning import Pattern, as_matrix, from_matrix, parse_pattern


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unstructured", Pattern("unstructured")),
        ("channel", Pattern("channel")),
        ("16x4", Pattern("block", 16, 4)),
        ("1x4", Pattern("block", 1, 4)),
        ("7x3", Pattern("block", 7, 3)),
        ("2:4", Pattern("nm", n=2, m=4)),
        ("4:8", Pattern("nm", n=4, m=8)),
    ],
)
def test_parsing_and_printing(text: str, expected: Pattern) -> None:
    assert parse_pattern(text) == expected
    assert str(expected) == text
    assert parse_pattern(expected) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unstructred", "pattern 'unstructred' is unknown; allowed are .* did you mean 'unstructured'"),
        ("0x4", "pattern '0x4' is unknown; allowed are 'unstructured', blocks '<BH>x<BW>' such as '16x4'"),
        ("16x", "pattern '16x' is unknown"),
        ("16 x 4", "pattern '16 x 4' is unknown"),
        ("१x4", "is unknown"),
        ("-1x4", "is unknown"),
        ("4:4", "pattern '4:4' keeps 4 of every 4, which prunes nothing; N must be below M"),
        ("0:4", "pattern '0:4' is unknown"),
        ("", "pattern '' is unknown"),
    ],
)
def test_unknown_patterns(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pattern(text)


@pytest.mark.parametrize("value", [None, 4, (16, 4)])
def test_patterns_that_are_no_text(value: Any) -> None:
    with pytest.raises(TypeError, match="pattern must be a string"):
        parse_pattern(value)


@pytest.mark.parametrize(
    ("pattern", "shape", "groups", "reason"),
    [
        ("unstructured", (3, 5), 1, None),
        ("16x4", (32, 8), 1, None),
        ("16x4", (30, 8), 1, "pattern 16x4 needs outputs divisible by 16, it has 30"),
        ("16x4", (32, 6), 1, "pattern 16x4 needs input channels divisible by 4, it has 6"),
        ("16x4", (32, 4, 3, 3), 1, None),
        ("1x4", (32, 2, 2, 2), 1, "pattern 1x4 needs input channels divisible by 4, it has 2"),
        ("16x4", (32, 4, 3, 3), 2, None),
        (
            "16x4",
            (32, 4, 3, 3),
            4,
            "pattern 16x4 needs outputs per group divisible by 16, it has 8 in each of 4 groups",
        ),
        ("2:4", (3, 8), 1, None),
        ("2:4", (3, 6), 1, "pattern 2:4 needs input channels divisible by 4, it has 6"),
        ("channel", (8, 8), 1, "pattern 'channel' removes whole channels and has no mask; see prune_channels"),
        ("unstructured", (8,), 1, "its weight has shape [8]; patterns know [out, in] and [out, in/groups, kh, kw]"),
    ],
)
def test_fits(pattern: str, shape: tuple[int, ...], groups: int, reason: str | None) -> None:
    assert parse_pattern(pattern).fits(torch.zeros(shape), groups) == reason


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_matrix_order_is_the_one_of_the_kernels(out: int, inputs: int, height: int, width: int) -> None:
    weight = torch.arange(out * inputs * height * width, dtype=torch.float32).reshape(out, inputs, height, width)
    matrix = as_matrix(weight)
    for tap in range(height * width):
        for channel in range(inputs):
            column = weight[:, channel, tap // width, tap % width]
            assert torch.equal(matrix[:, tap * inputs + channel], column)
    assert torch.equal(matrix, matrix_of(weight))
    assert torch.equal(from_matrix(matrix, weight.shape), weight)
    assert torch.equal(weight_of(matrix, weight.shape), weight)


def test_matrix_of_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"as_matrix: weight must be \[out, in\] or .*, got shape \[2, 3, 4\]"):
        as_matrix(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"a matrix of shape \[2, 3\] is no weight of shape \[2, 3, 1, 2\]"):
        from_matrix(torch.zeros(2, 3), (2, 3, 1, 2))
