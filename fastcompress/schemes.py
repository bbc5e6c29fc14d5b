"""The schemes of `quantize`: what becomes of weights and activations."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALGORITHMS", "SCALE_DTYPES", "SCHEMES", "Scheme"]


@dataclass(frozen=True)
class Scheme:
    """One scheme.

    Attributes:
        input_mode: how a layer gets its activations: static, dynamic or dynamic_symmetric (8 bits by token), or
            dynamic_16bit (16 bits by token and group).
        weight_bits: 4 or 8.
        group_size: default number of inputs that share a scale, -1 for the whole row; None where scales are by channel
            and cannot be otherwise.
    """

    input_mode: str
    weight_bits: int = 8
    group_size: int | None = None

    @property
    def grouped(self) -> bool:
        """Whether weights have scales by group."""
        return self.group_size is not None

    @property
    def weight_only(self) -> bool:
        """Whether it is the weights' size that counts: activations keep 16 bits."""
        return self.input_mode == "dynamic_16bit"


#: Name of a scheme → what it is.
SCHEMES: dict[str, Scheme] = {
    "W8A8": Scheme("static"),
    "W8A8-dynamic": Scheme("dynamic"),
    "W4A8": Scheme("dynamic_symmetric", 4, 128),
    "W4A16": Scheme("dynamic_16bit", 4, 128),
    "W8A16": Scheme("dynamic_16bit", 8, 128),
}

#: How weights in groups are found: round-to-nearest; half-quadratic; by the layer's error on calibration data.
ALGORITHMS: tuple[str, ...] = ("rtn", "hqq", "gptq", "awq")

#: What scales of groups are stored as.
SCALE_DTYPES: tuple[str, ...] = ("bfloat16", "float16", "float32")
