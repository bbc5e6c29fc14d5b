"""The programs of ``conv2d_chain``: one uint8 tensor with header, steps and packed weights.

csrc/include/fastcompress/chain.h has the layout. A program is made for this machine, as packed weights are.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PackedBlobError
from . import packing
from .blob_checksum import blob_checksum
from .checks import check_parameters, check_tensor

__all__ = ["INPUT", "MOST_STEPS", "ChainStep", "pack_chain", "unpack_chain"]

#: As a step's input or residual: what the chain itself takes.
INPUT = -1

_MAGIC, _VERSION, _ALIGN = 0x48434346, 1, 64
_HEADER = struct.Struct("=Iiqq32x")
_CHECKSUM = struct.Struct("=Q")
_HEADER_BYTES = _HEADER.size + _CHECKSUM.size
_STEP = struct.Struct("=12qifi20x")
_NO_VALUE = -2
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int8)
#: Convolutions of a chain at most.
MOST_STEPS = 1024


@dataclass(frozen=True)
class ChainStep:
    """One convolution of a chain.

    Attributes:
        packed: weights of a static int8 convolution, as `fastcompress.ops.pack` returns them.
        stride, dilation: (height, width).
        padding: (top, bottom, left, right).
        input: number of the step whose output it reads, or `INPUT`.
        residual: number of the step whose output it adds before the activation, `INPUT`, or None.
        out_dtype: floating point, uint8 or int8.
        out_scale, out_zero_point: of integer outputs.
    """

    packed: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    input: int = INPUT
    residual: int | None = None
    out_dtype: torch.dtype = torch.float32
    out_scale: float = 1.0
    out_zero_point: int = 0


def pack_chain(steps: Sequence[ChainStep]) -> Tensor:
    """The program of a chain: 1-D uint8, whose weights are copies of the steps'.

    Steps with the same weight tensor share one copy.

    Raises:
        TypeError: weights are no uint8 tensor on the CPU, or an output's dtype is none that convolutions give.
        ValueError: no steps or too many, a step that reads what comes after it, weights that are not those of an int8
            convolution, a number out of range.
        PackedBlobError: weights are foreign or corrupt.
    """
    if not 1 <= len(steps) <= MOST_STEPS:
        raise ValueError(f"pack_chain: a chain has 1 to {MOST_STEPS} steps, got {len(steps)}")
    size = _round_up(_HEADER_BYTES + _STEP.size * len(steps))
    table, places = bytearray(), dict[tuple[int, int], int]()
    for index, step in enumerate(steps):
        _check_step(index, step)
        weights = (step.packed.data_ptr(), step.packed.numel())
        if weights not in places:
            places[weights] = size
            size = _round_up(size + step.packed.numel())
        table += _step_bytes(index, step, places[weights])
    header = _HEADER.pack(_MAGIC, _VERSION, size, len(steps))
    text = header + _CHECKSUM.pack(_checksum(header, bytes(table))) + bytes(table)
    program = torch.zeros(size, dtype=torch.uint8)
    program[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    for step in steps:
        place = places[step.packed.data_ptr(), step.packed.numel()]
        program[place : place + step.packed.numel()] = step.packed
    return program


def _step_bytes(index: int, step: ChainStep, place: int) -> bytes:
    try:
        return _STEP.pack(
            place,
            step.packed.numel(),
            step.input,
            _NO_VALUE if step.residual is None else step.residual,
            *step.stride,
            *step.padding,
            *step.dilation,
            _DTYPES.index(step.out_dtype),
            *((1.0, 0) if step.out_dtype.is_floating_point else (step.out_scale, step.out_zero_point)),
        )
    except (struct.error, OverflowError) as error:
        raise ValueError(f"pack_chain: step {index}: a number is out of range ({error}): {step}") from error


def _round_up(value: int) -> int:
    return -(-value // _ALIGN) * _ALIGN


def _check_step(index: int, step: ChainStep) -> None:
    check_tensor("pack_chain", "packed", step.packed)
    if step.packed.dtype != torch.uint8 or step.packed.device.type != "cpu":
        raise TypeError(
            f"pack_chain: step {index}: `packed` is {step.packed.dtype} on {step.packed.device}, expected the uint8 "
            "tensor that fastcompress.ops.pack returns, on the CPU"
        )
    packing.check(step.packed)
    header = packing.info(step.packed)
    if header["family"] != "conv2d_w8a8":
        raise ValueError(f"pack_chain: step {index}: `packed` holds a {header['family']} layer, expected conv2d_w8a8")
    if header["weight_bits"] != 8:
        raise ValueError(
            f"pack_chain: step {index}: `packed` holds weights of {header['weight_bits']} bits, expected 8; call "
            "the layer by itself, or pack it with `weight_bits` 8"
        )
    for name, value in (("input", step.input), ("residual", step.residual)):
        if value is not None and not INPUT <= value < index:
            raise ValueError(f"pack_chain: step {index}: `{name}` is {value}, allowed: {INPUT} to {index - 1}")
    for name, numbers, count in (
        ("stride", step.stride, 2),
        ("padding", step.padding, 4),
        ("dilation", step.dilation, 2),
    ):
        if len(numbers) != count or not all(isinstance(number, int) for number in numbers):
            raise ValueError(f"pack_chain: step {index}: `{name}` must be {count} integers, got {numbers!r}")
    if step.out_dtype not in _DTYPES:
        raise TypeError(f"pack_chain: step {index}: `out_dtype` is {step.out_dtype}, allowed: {_DTYPES}")
    if not step.out_dtype.is_floating_point:
        low = 0 if step.out_dtype == torch.uint8 else -128
        check_parameters("pack_chain", "out_", step.out_scale, step.out_zero_point, low, low + 255)


def _checksum(header: bytes, table: bytes) -> int:
    first, rest = blob_checksum(header), blob_checksum(table)
    return first ^ (rest << 1 & (1 << 64) - 1 | rest >> 63)


def unpack_chain(program: Tensor) -> list[ChainStep]:
    """The steps of a program; their weights share its memory.

    Raises:
        TypeError: not a uint8 tensor.
        PackedBlobError: it is no program, or corrupt.
    """
    if not isinstance(program, Tensor) or program.dtype != torch.uint8:
        got = program.dtype if isinstance(program, Tensor) else type(program).__name__
        raise TypeError(f"conv2d_chain: `program` must be a uint8 tensor, got {got}; pack_chain makes one")
    if program.dim() != 1:
        raise PackedBlobError(f"packed weights: chain: it has shape {list(program.shape)}; freeze the model again")
    text = program[: _HEADER_BYTES + _STEP.size * MOST_STEPS].cpu().numpy().tobytes()
    if len(text) < _HEADER_BYTES:
        raise PackedBlobError("packed weights: chain: shorter than its header; freeze the model again")
    magic, version, size, count = _HEADER.unpack_from(text)
    end = _HEADER_BYTES + _STEP.size * count
    if (magic, version, size) != (_MAGIC, _VERSION, program.numel()) or not 1 <= count <= MOST_STEPS or end > size:
        raise PackedBlobError("packed weights: chain: not the program of a chain; freeze the model again")
    table = text[_HEADER_BYTES:end]
    if _CHECKSUM.unpack_from(text, _HEADER.size)[0] != _checksum(text[: _HEADER.size], table):
        raise PackedBlobError("packed weights: chain: checksum mismatch; freeze the model again")
    return [_read_step(program, end, index, fields) for index, fields in enumerate(_STEP.iter_unpack(table))]


def _read_step(program: Tensor, end: int, index: int, fields: tuple[float, ...]) -> ChainStep:
    place, length, input, residual, *geometry = (int(value) for value in fields[:12])
    if not end <= place <= place + length <= program.numel() or not 0 <= fields[12] < len(_DTYPES):
        raise PackedBlobError("packed weights: chain: weights outside of the buffer; freeze the model again")
    if not INPUT <= input < index or not (residual == _NO_VALUE or INPUT <= residual < index):
        raise PackedBlobError("packed weights: chain: a step reads what comes after it; freeze the model again")
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w = geometry
    return ChainStep(
        program[place : place + length],
        (stride_h, stride_w),
        (top, bottom, left, right),
        (dilation_h, dilation_w),
        input,
        None if residual == _NO_VALUE else residual,
        _DTYPES[int(fields[12])],
        fields[13],
        int(fields[14]),
    )
