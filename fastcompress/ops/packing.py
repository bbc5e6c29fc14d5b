"""Canonical tensors to packed blob and back (docs/architecture.md §2, §3): the only Python that touches blobs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PackedBlobError
from . import native, reference_layout
from .block_csr import BlockCSR, validate_block_csr
from .canonical import SparseW8A8Canonical, W8A8Canonical
from .checks import check_parameters, check_scale
from .constants import ACTIVATIONS, INPUT_MODES, MAX_K

__all__ = ["KERNEL_BLOCK", "check", "dequantize_w8a8", "info", "pack", "unpack"]

#: The block shape (outputs, inputs) that block-sparse int8 kernels take.
KERNEL_BLOCK = (16, 4)

_ACTIVATION_NAMES = {code: name for name, code in ACTIVATIONS.items()}
_MODE_NAMES = {code: name for name, code in INPUT_MODES.items()}


def _validate(c: W8A8Canonical) -> None:
    weight = c.weight
    if not isinstance(weight, Tensor) or weight.dtype != torch.int8:
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"pack: `weight` must be an int8 tensor, got {got}; quantize_weight makes one from floats")
    if weight.dim() not in (2, 4) or 0 in weight.shape:
        raise ValueError(
            "pack: `weight` must be [out, in] or [out, in/groups, kh, kw] with no empty dimension, "
            f"got shape {list(weight.shape)}"
        )
    _validate_rest(c, weight.shape[0], weight[0].numel(), weight.dim())


def _validate_blocks(c: SparseW8A8Canonical) -> None:
    b = c.blocks
    if b.dtype != torch.int8:
        raise TypeError(f"pack: `blocks` must hold int8 values, got {b.dtype}; quantize the weight first")
    if b.block_size != KERNEL_BLOCK:
        got = "x".join(map(str, b.block_size))
        raise ValueError(f"pack: `blocks` are {got}, the kernels take 16x4; use BlockCSR.from_dense(weight, (16, 4))")
    # The tensors may have changed since the object was made, and kernels trust every index.
    validate_block_csr("pack", "blocks", b.crow, b.col, b.values, b.shape)
    _validate_rest(c, b.shape[0], b.shape[1], 2)


def _validate_rest(c: W8A8Canonical | SparseW8A8Canonical, out: int, k: int, dims: int) -> None:
    if k > MAX_K:
        raise ValueError(f"pack: `weight` has {k} inputs per output, at most {MAX_K} keep int32 sums exact")
    check_scale("pack", "weight_scale", c.weight_scale, out)
    if c.bias is not None:
        if not isinstance(c.bias, Tensor) or c.bias.dtype != torch.float32:
            got = c.bias.dtype if isinstance(c.bias, Tensor) else type(c.bias).__name__
            raise TypeError(f"pack: `bias` must be a float32 tensor or None, got {got}; convert it with .float()")
        if list(c.bias.shape) != [out]:
            raise ValueError(f"pack: `bias` has shape {list(c.bias.shape)}, expected [{out}] (output channels)")
        if not bool(torch.isfinite(c.bias).all()):
            raise ValueError("pack: `bias` holds NaN or infinity; repair the model before quantizing it")
    if c.input_mode not in INPUT_MODES:
        raise ValueError(f"pack: `input_mode` must be one of {', '.join(INPUT_MODES)}, got {c.input_mode!r}")
    if c.activation not in ACTIVATIONS:
        raise ValueError(f"pack: `activation` must be one of {', '.join(ACTIVATIONS)}, got {c.activation!r}")
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


def pack(c: W8A8Canonical | SparseW8A8Canonical) -> Tensor:
    """Pack canonical tensors for this machine: 1-D uint8 tensor, header first, on the weight's device.

    Without the native module, and on devices other than the CPU, the layout is ``reference``, which is dense.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a shape, scale, zero point, mode, activation or group count is out of range.
    """
    if isinstance(c, SparseW8A8Canonical):
        return _pack_blocks(c)
    _validate(c)
    if native.module is None or c.weight.device.type != "cpu":
        return reference_layout.encode(c)
    packed = native.module.pack_w8a8(
        c.weight.detach().contiguous().numpy(),
        c.weight_scale.detach().contiguous().numpy(),
        None if c.bias is None else c.bias.detach().contiguous().numpy(),
        INPUT_MODES[c.input_mode],
        c.input_scale,
        c.input_zero_point,
        ACTIVATIONS[c.activation],
        c.groups,
    )
    return torch.from_numpy(packed)


def _pack_blocks(c: SparseW8A8Canonical) -> Tensor:
    _validate_blocks(c)
    b = c.blocks
    if native.module is None or b.values.device.type != "cpu":
        return reference_layout.encode(c.dense())
    packed = native.module.pack_bsr_w8a8(
        b.crow.numpy(),
        b.col.numpy(),
        b.values.numpy(),
        b.shape[1],
        c.weight_scale.detach().contiguous().numpy(),
        None if c.bias is None else c.bias.detach().contiguous().numpy(),
        INPUT_MODES[c.input_mode],
        c.input_scale,
        c.input_zero_point,
        ACTIVATIONS[c.activation],
    )
    return torch.from_numpy(packed)


def unpack(packed: Tensor) -> W8A8Canonical | SparseW8A8Canonical:
    """Return the canonical tensors of a blob, bit for bit, as copies on the blob's device.

    Raises:
        TypeError: not a uint8 tensor.
        PackedBlobError: the blob is foreign or corrupt.
    """
    if reference_layout.is_reference(packed):
        return W8A8Canonical(**reference_layout.decode(packed, copy=True))
    if "block_size" in info(packed):
        fields = _native("unpack", "unpack_bsr_w8a8", packed)
        index = [torch.from_numpy(fields[name]) for name in ("crow", "col", "values")]
        shape = (len(fields["weight_scale"]), fields["in_features"])
        return SparseW8A8Canonical(BlockCSR(index[0], index[1], index[2], shape), **_parameters(fields))
    fields = _native("unpack", "unpack_w8a8", packed)
    return W8A8Canonical(torch.from_numpy(fields["weight"]), **_parameters(fields), groups=fields["groups"])


def _parameters(fields: dict[str, Any]) -> dict[str, Any]:
    bias = fields["bias"]
    return {
        "weight_scale": torch.from_numpy(fields["weight_scale"]),
        "bias": None if bias is None else torch.from_numpy(bias),
        "input_mode": _MODE_NAMES[fields["input_mode"]],
        "input_scale": fields["input_scale"],
        "input_zero_point": fields["input_zero_point"],
        "activation": _ACTIVATION_NAMES[fields["activation"]],
    }


def check(packed: Tensor) -> None:
    """Recompute every checksum of a blob; reads all of it.

    Raises:
        TypeError: not a uint8 tensor.
        PackedBlobError: says what is wrong: magic, layout version, sizes, header checksum or payload checksum.
    """
    if reference_layout.is_reference(packed):
        reference_layout.check(packed)
        return
    _native("check", "blob_check", packed)


def info(packed: Tensor) -> dict[str, Any]:
    """What the header says: layout_version, family, isa, n, k, groups, kernel_size, bytes and more; O(1).

    Raises:
        TypeError: not a uint8 tensor.
        PackedBlobError: the header is foreign or corrupt.
    """
    if reference_layout.is_reference(packed):
        return reference_layout.info(packed)
    return dict(_native("info", "blob_info", packed))


def dequantize_w8a8(packed: Tensor, field: str, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """``torch.ops.fastcompress.dequantize_w8a8``: the blob's ``"weight"`` or ``"bias"`` of shape `size` as floats.

    Raises:
        ValueError: another field, no bias in the blob, or another shape.
        PackedBlobError: the blob is foreign or corrupt.
    """
    if field not in ("weight", "bias"):
        raise ValueError(f'dequantize_w8a8: `field` must be "weight" or "bias", got {field!r}')
    c = unpack(packed)
    value = c.dequantize() if field == "weight" else c.bias
    if value is None or list(value.shape) != list(size):
        found = "no bias" if value is None else f"shape {list(value.shape)}"
        raise ValueError(f"dequantize_w8a8: `size` is {list(size)}, the blob's {field} has {found}")
    return value.to(dtype)


def _native(function: str, name: str, packed: Tensor) -> Any:
    """Call the native module's `name` on the blob, for `function` here."""
    if native.module is None:
        raise PackedBlobError(
            f"{function}: the blob was packed by the native kernels, or is no blob at all; reading it needs the native "
            "module, which is not loaded: build it with `make build`, or load the layer from its state_dict"
        )
    try:
        return getattr(native.module, name)(_array(packed))
    except RuntimeError as error:
        if str(error).startswith("packed weights:"):
            raise PackedBlobError(str(error)) from error
        raise


def _array(packed: Tensor) -> Any:
    return packed.detach().cpu().contiguous().numpy()
