"""Canonical tensors to packed blob and back (docs/architecture.md §2, §3): the only Python that touches blobs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PackedBlobError
from . import native, reference_layout
from .canonical import W8A8Canonical
from .checks import check_parameters, check_scale
from .constants import ACTIVATIONS, INPUT_MODES, MAX_K

__all__ = ["check", "dequantize_w8a8", "info", "pack", "unpack"]

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
    out, k = weight.shape[0], weight[0].numel()
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
    elif weight.dim() == 4:
        raise ValueError(f"pack: convolutions take static activations only, got `input_mode` {c.input_mode!r}")
    elif c.input_scale != 1.0 or c.input_zero_point != 0:
        raise ValueError(
            f"pack: `input_mode` {c.input_mode!r} computes its own parameters; `input_scale` must be 1.0 and "
            f"`input_zero_point` 0, got {c.input_scale!r} and {c.input_zero_point}"
        )
    if c.groups < 1 or out % c.groups or (weight.dim() == 2 and c.groups != 1):
        raise ValueError(
            f"pack: `groups` must divide the {out} output channels (and be 1 for a linear layer), got {c.groups}"
        )


def pack(c: W8A8Canonical) -> Tensor:
    """Pack canonical tensors for this machine: 1-D uint8 tensor, header first, on the weight's device.

    Without the native module, and on devices other than the CPU, the layout is ``reference``.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a shape, scale, zero point, mode, activation or group count is out of range.
    """
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


def unpack(packed: Tensor) -> W8A8Canonical:
    """Return the canonical tensors of a blob, bit for bit, as copies on the blob's device.

    Raises:
        TypeError: not a uint8 tensor.
        PackedBlobError: the blob is foreign or corrupt.
    """
    if reference_layout.is_reference(packed):
        return W8A8Canonical(**reference_layout.decode(packed, copy=True))
    fields = _native("unpack", "unpack_w8a8", packed)
    bias = fields["bias"]
    return W8A8Canonical(
        weight=torch.from_numpy(fields["weight"]),
        weight_scale=torch.from_numpy(fields["weight_scale"]),
        bias=None if bias is None else torch.from_numpy(bias),
        input_mode=_MODE_NAMES[fields["input_mode"]],
        input_scale=fields["input_scale"],
        input_zero_point=fields["input_zero_point"],
        activation=_ACTIVATION_NAMES[fields["activation"]],
        groups=fields["groups"],
    )


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
