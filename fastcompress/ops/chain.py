"""``conv2d_chain``: int8 convolutions that follow each other as one operator. Its shapes and its plain-torch form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import packing
from .chain_program import INPUT, unpack_chain
from .checks import FLOATS, check_tensor
from .reference import memory_format

__all__ = ["Window", "conv2d_chain", "conv2d_chain_fake"]


@dataclass(frozen=True)
class Window:
    """``output size = (input size + offset) // step``, of one convolution or of several behind each other.

    ``((n + a) // s + b) // t == (n + a + s * b) // (s * t)`` for positive s and t.
    """

    offset: int = 0
    step: int = 1

    def then(self, kernel: int, stride: int, before: int, after: int, dilation: int) -> "Window":
        """The window of this and a convolution behind it."""
        offset = before + after - dilation * (kernel - 1) - 1 + stride
        return Window(self.offset + self.step * offset, self.step * stride)


def conv2d_chain(
    input: Tensor,
    program: Tensor,
    out_channels: int,
    height: Sequence[int],
    width: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    """``torch.ops.fastcompress.conv2d_chain`` step by step: ``[N,C,H,W]`` to ``[N,out_channels,H',W']``.

    Args:
        program: what `pack_chain` made.
        out_channels, height, width, out_dtype: of the last step; see `Window`.

    Raises:
        TypeError, ValueError: images that the chain does not take, or arguments that are not the program's.
        PackedBlobError: the program is corrupt.
    """
    shape = _shape(input, out_channels, height, width)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    values = {INPUT: batched.contiguous(memory_format=torch.channels_last)}
    for index, step in enumerate(unpack_chain(program)):
        header = packing.info(step.packed)
        values[index] = torch.ops.fastcompress.conv2d_w8a8(
            values[step.input],
            step.packed,
            header["n"],
            header["kernel_size"],
            step.stride,
            step.padding,
            step.dilation,
            None if step.residual is None else values[step.residual],
            step.out_dtype,
            step.out_scale,
            step.out_zero_point,
        )
    out = values[index]
    if list(out.shape[-3:]) != shape[-3:] or out.dtype != out_dtype:
        raise ValueError(
            f"conv2d_chain: `out_channels`, `height`, `width` and `out_dtype` say {shape} of {out_dtype}, the program "
            f"gives {list(out.shape)} of {out.dtype}"
        )
    out = out.clone(memory_format=memory_format(batched))
    return out if input.dim() == 4 else out.squeeze(0)


def conv2d_chain_fake(
    input: Tensor,
    program: Tensor,
    out_channels: int,
    height: Sequence[int],
    width: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    """The output without its values, for ``torch.compile`` and ``torch.export``."""
    if input.dtype not in (*FLOATS, torch.uint8) or program.dtype != torch.uint8:
        raise TypeError(
            f"conv2d_chain: `input` must be floats or uint8 and `program` uint8, got {input.dtype}, {program.dtype}"
        )
    shape = _shape(input, out_channels, height, width)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    whole = batched.shape[:1] + torch.Size(shape[-3:])
    out = torch.empty(whole, dtype=out_dtype, device=input.device, memory_format=memory_format(batched))
    return out if input.dim() == 4 else out.squeeze(0)


def _shape(input: Tensor, out_channels: int, height: Sequence[int], width: Sequence[int]) -> list[int]:
    check_tensor("conv2d_chain", "input", input)
    if input.dim() not in (3, 4):
        raise ValueError(f"conv2d_chain: `input` must be [N, C, H, W] or [C, H, W], got shape {list(input.shape)}")
    for name, window in (("height", height), ("width", width)):
        if len(window) != 2 or window[1] < 1:
            raise ValueError(f"conv2d_chain: `{name}` must be (offset, step) with a positive step, got {list(window)}")
    sizes = [(n + offset) // step for n, (offset, step) in zip(input.shape[-2:], (height, width), strict=True)]
    return [*input.shape[:-3], out_channels, *sizes]
