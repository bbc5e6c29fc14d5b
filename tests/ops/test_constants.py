"""Names and codes are the same in Python, in C++ and in the oracle."""

import re
from pathlib import Path
from typing import Any

import pytest

from fastcompress.ops import constants
from tests import oracles, problems

TYPES_H = Path(__file__).parents[2] / "csrc" / "include" / "fastcompress" / "types.h"


def _enum(name: str) -> dict[str, int]:
    if not TYPES_H.is_file():
        pytest.skip("the C++ sources are not here")
    body = re.search(rf"enum class {name} : int32_t \{{(.*?)\}}", TYPES_H.read_text(), re.S)
    assert body, f"no enum {name} in types.h"
    return {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)", body.group(1))}


def test_activation_codes_equal_the_native_ones(native: Any) -> None:
    assert dict(native.ACTIVATIONS) == constants.ACTIVATIONS


def test_input_mode_codes_equal_the_native_ones(native: Any) -> None:
    assert dict(native.INPUT_MODES) == constants.INPUT_MODES


def test_activation_codes_equal_the_header() -> None:
    assert _enum("Activation") == constants.ACTIVATIONS


def test_input_mode_codes_equal_the_header() -> None:
    assert sorted(_enum("InputMode").values()) == sorted(constants.INPUT_MODES.values())


def test_isa_names_equal_the_header_in_order() -> None:
    codes = _enum("Isa")
    assert tuple(sorted(codes, key=lambda name: codes[name])) == constants.ISA_NAMES


def test_oracle_uses_the_same_codes_and_bound() -> None:
    assert {name: code for code, name in enumerate(oracles.ACTIVATIONS)} == constants.ACTIVATIONS
    assert problems.MAX_K == constants.MAX_K
    assert 255 * 128 * constants.MAX_K <= 2**31 - 1 < 255 * 128 * (constants.MAX_K + 1)
