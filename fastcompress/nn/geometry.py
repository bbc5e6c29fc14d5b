"""Kernel sizes, strides and paddings of convolutions, in every spelling that torch knows."""

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["Padding", "Padding4", "padding4_of", "pair", "same_padding4"]

Padding: TypeAlias = int | str | Sequence[int]

#: (top, bottom, left, right), in pixels.
Padding4: TypeAlias = tuple[int, int, int, int]


def pair(layer: str, name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """(vertical, horizontal) from one or two integers; `layer` and `name` are for messages.

    Raises:
        ValueError: another number of integers, or one below `least`.
    """
    found = (value, value) if isinstance(value, int) else tuple(value)
    if len(found) != 2 or min(found) < least:
        raise ValueError(f"{layer}: `{name}` must be one or two integers >= {least}, got {value!r}")
    return found[0], found[1]


def padding4_of(
    layer: str, padding: Padding, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Padding4:
    """(top, bottom, left, right) from any spelling that torch knows, or from itself.

    Raises:
        ValueError: no such spelling, ``"same"`` with a stride, or a negative number.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same" or stride != (1, 1):
            raise ValueError(
                f'{layer}: `padding` must be "valid", "same" (with stride 1) or integers, got {padding!r} '
                f"with stride {stride}"
            )
        down, across = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
        return (down // 2, down - down // 2, across // 2, across - across // 2)
    if not isinstance(padding, int) and len(padding) == 4:
        top, bottom, left, right = padding
        if min(padding) < 0:
            raise ValueError(f"{layer}: `padding` must not be negative, got {padding!r}")
        return (top, bottom, left, right)
    vertical, horizontal = pair(layer, "padding", padding, 0)
    return (vertical, vertical, horizontal, horizontal)


def same_padding4(
    height: int, width: int, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Padding4:
    """TensorFlow's "SAME" as (top, bottom, left, right): ceil(size / stride) outputs, the odd pixel at the end."""
    down, across = (
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, k, s, d in zip((height, width), kernel_size, stride, dilation, strict=True)
    )
    return (down // 2, down - down // 2, across // 2, across - across // 2)
