"""What can be packed, and the checks of canonical tensors before they are."""

import torch
from torch import Tensor

from .block_csr import validate_block_csr
from .canonical import W8A8Canonical
from .canonical_sparse import SparseCanonical, SparseW8A8Canonical
from .canonical_w4 import W4Canonical
from .canonical_w8 import W8Canonical
from .checks import check_parameters, check_scale
from .constants import ACTIVATIONS, INPUT_MODES, MAX_K

__all__ = ["KERNEL_BLOCKS", "Canonical", "validate_blocks", "validate_bytes", "validate_dense", "validate_nibbles"]

#: What can be packed.
Canonical = W8A8Canonical | SparseW8A8Canonical | SparseCanonical | W4Canonical | W8Canonical

#: The block shapes (outputs, inputs) that kernels take, for each dtype of the values, fastest first.
KERNEL_BLOCKS: dict[torch.dtype, tuple[tuple[int, int], ...]] = {
    torch.int8: ((16, 4), (4, 4), (1, 4)),
    torch.float32: ((16, 1), (4, 1), (1, 1)),
    torch.bfloat16: ((16, 2),),
}


def validate_dense(c: W8A8Canonical) -> None:
    weight = c.weight
    if not isinstance(weight, Tensor) or weight.dtype != torch.int8:
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"pack: `weight` must be an int8 tensor, got {got}; quantize_weight makes one from floats")
    if weight.dim() not in (2, 4) or 0 in weight.shape:
        raise ValueError(
            "pack: `weight` must be [out, in] or [out, in/groups, kh, kw] with no empty dimension, "
            f"got shape {list(weight.shape)}"
        )
    _validate_int8(c, weight.shape[0], weight[0].numel(), weight.dim())
    _validate_bits(c)


def _validate_bits(c: W8A8Canonical) -> None:
    if c.weight_bits not in (4, 8):
        raise ValueError(f"pack: `weight_bits` must be 4 or 8, got {c.weight_bits!r}")
    if c.weight_bits == 8:
        return
    if c.weight.dim() != 4:
        raise ValueError("pack: `weight_bits` 4 is for convolutions; a linear layer with four bits is a W4Canonical")
    if c.is_depthwise:
        raise ValueError("pack: `weight_bits` must be 8 for a depthwise convolution, got 4")
    low, high = (int(value) for value in torch.aminmax(c.weight))
    if low < -8 or high > 7:
        raise ValueError(
            f"pack: `weight` has values from {low} to {high}, four bits hold -8 to 7; use `weight_bits` 8, or quantize "
            "the float weight with quantize_weight(weight, bits=4)"
        )


def validate_blocks(c: SparseW8A8Canonical | SparseCanonical) -> None:
    b = c.blocks
    quantized = isinstance(c, SparseW8A8Canonical)
    if quantized != (b.dtype == torch.int8):
        wanted = "int8 values; quantize the weight first" if quantized else "float32 or bfloat16 values"
        raise TypeError(f"pack: `blocks` hold {b.dtype}, this layer takes {wanted}")
    if b.block_size not in KERNEL_BLOCKS[b.dtype]:
        got, takes = "x".join(map(str, b.block_size)), ", ".join(f"{h}x{w}" for h, w in KERNEL_BLOCKS[b.dtype])
        raise ValueError(
            f"pack: `blocks` are {got}, the {b.dtype} kernels take {takes}; make others with BlockCSR.from_dense"
        )
    # The tensors may have changed since the object was made, and kernels trust every index.
    validate_block_csr("pack", "blocks", b.crow, b.col, b.values, b.shape)
    if c.kernel_size is not None and (b.shape[1] // b.block_size[1]) % (c.kernel_size[0] * c.kernel_size[1]):
        raise ValueError(
            f"pack: {b.shape[1]} columns are not whole blocks at each of {c.kernel_size[0]}x{c.kernel_size[1]} taps"
        )
    if isinstance(c, SparseW8A8Canonical):
        _validate_int8(c, b.shape[0], b.shape[1], len(c.weight_shape))
    else:
        _validate_common(c, b.shape[0], b.shape[1])


def _validate_common(c: Canonical, out: int, k: int) -> None:
    if k > MAX_K:
        raise ValueError(f"pack: `weight` has {k} inputs per output, at most {MAX_K} keep int32 sums exact")
    if c.bias is not None:
        if not isinstance(c.bias, Tensor) or c.bias.dtype != torch.float32:
            got = c.bias.dtype if isinstance(c.bias, Tensor) else type(c.bias).__name__
            raise TypeError(f"pack: `bias` must be a float32 tensor or None, got {got}; convert it with .float()")
        if list(c.bias.shape) != [out]:
            raise ValueError(f"pack: `bias` has shape {list(c.bias.shape)}, expected [{out}] (output channels)")
        if not bool(torch.isfinite(c.bias).all()):
            raise ValueError("pack: `bias` holds NaN or infinity; repair the model before compressing it")
    if c.activation not in ACTIVATIONS:
        raise ValueError(f"pack: `activation` must be one of {', '.join(ACTIVATIONS)}, got {c.activation!r}")


def _validate_int8(c: W8A8Canonical | SparseW8A8Canonical, out: int, k: int, dims: int) -> None:
    check_scale("pack", "weight_scale", c.weight_scale, out)
    _validate_common(c, out, k)
    modes = [mode for mode in INPUT_MODES if mode != "dynamic_16bit"]
    if c.input_mode not in modes:
        raise ValueError(f"pack: `input_mode` must be one of {', '.join(modes)}, got {c.input_mode!r}")
    if c.input_mode == "static":
        check_parameters("pack", "input_", c.input_scale, c.input_zero_point, 0, 255)
    elif dims == 4:
        raise ValueError(f"pack: convolutions take static activations only, got `input_mode` {c.input_mode!r}")
    elif c.input_scale != 1.0 or c.input_zero_point != 0:
        raise ValueError(
            f"pack: `input_mode` {c.input_mode!r} computes its own parameters; `input_scale` must be 1.0 and "
            f"`input_zero_point` 0, got {c.input_scale!r} and {c.input_zero_point}"
        )
    if c.groups < 1 or out % c.groups or (dims == 2 and c.groups != 1):
        raise ValueError(
            f"pack: `groups` must divide the {out} output channels (and be 1 for a linear layer), got {c.groups}"
        )


def validate_nibbles(c: W4Canonical) -> None:
    if not isinstance(c.weight_packed, Tensor) or c.weight_packed.dtype != torch.int32:
        raise TypeError("pack: `weight_packed` must be an int32 tensor; round_to_nearest makes one from floats")
    out = c.weight_packed.shape[0]
    if list(c.weight_packed.shape) != [out, -(-c.in_features // 8)] or out < 1 or c.in_features < 1:
        raise ValueError(
            f"pack: `weight_packed` has shape {list(c.weight_packed.shape)}, expected [out, ceil(in / 8)] for "
            f"{c.in_features} inputs"
        )
    if c.input_mode not in ("dynamic_symmetric", "dynamic_16bit"):
        raise ValueError(
            "pack: `input_mode` of four-bit layers is dynamic_symmetric (W4A8) or dynamic_16bit (W4A16), got "
            f"{c.input_mode!r}"
        )
    if c.weight_zero_point is not None and c.weight_min is not None:
        raise ValueError("pack: `weight_zero_point` and `weight_min` exclude each other")
    parts = (
        ("weight_zero_point", c.weight_zero_point, torch.uint8),
        ("weight_min", c.weight_min, torch.float32),
    )
    for name, part, dtype in parts:
        if part is not None:
            _validate_grouped(name, part, (dtype,), [out, c.groups])
    if c.weight_zero_point is not None and bool((c.weight_zero_point > 15).any()):
        raise ValueError("pack: `weight_zero_point` must lie in [0, 15]")
    _validate_groups(c)


def validate_bytes(c: W8Canonical) -> None:
    if not isinstance(c.weight, Tensor) or c.weight.dtype != torch.int8:
        got = c.weight.dtype if isinstance(c.weight, Tensor) else type(c.weight).__name__
        raise TypeError(f"pack: `weight` must be an int8 tensor, got {got}")
    if c.weight.dim() != 2 or 0 in c.weight.shape:
        raise ValueError(f"pack: `weight` must be [out, in] with no empty dimension, got shape {list(c.weight.shape)}")
    if c.input_mode != "dynamic_16bit":
        raise ValueError(f"pack: `input_mode` of int8 weights in groups is dynamic_16bit (W8A16), got {c.input_mode!r}")
    _validate_groups(c)


def _validate_groups(c: W4Canonical | W8Canonical) -> None:
    """What layers with weights in groups have in common."""
    if not 1 <= c.group_size <= c.in_features or (c.group_size % 8 and c.group_size != c.in_features):
        raise ValueError(
            f"pack: `group_size` must be a multiple of 8, or all {c.in_features} inputs, got {c.group_size}"
        )
    scales = (torch.float32, torch.bfloat16, torch.float16)
    _validate_grouped("weight_scale", c.weight_scale, scales, [c.weight_shape[0], c.groups])
    _validate_common(c, *c.weight_shape)


def _validate_grouped(name: str, part: Tensor, allowed: tuple[torch.dtype, ...], shape: list[int]) -> None:
    if part.dtype not in allowed:
        raise TypeError(f"pack: `{name}` must be {' or '.join(map(str, allowed))}, got {part.dtype}")
    if list(part.shape) != shape:
        raise ValueError(f"pack: `{name}` has shape {list(part.shape)}, expected {shape}, one per group")
    if part.is_floating_point() and not bool(torch.isfinite(part).all()):
        raise ValueError(f"pack: `{name}` holds NaN or infinity")
