"""Canonical tensors to packed blob and back (docs/architecture.md §2, §3): the only Python that touches blobs."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PackedBlobError
from . import native, reference_groups, reference_layout
from .block_csr import BlockCSR
from .canonical import W8A8Canonical
from .canonical_sparse import SparseCanonical, SparseW8A8Canonical
from .canonical_w4 import W4Canonical
from .canonical_w8 import W8Canonical
from .constants import ACTIVATIONS, INPUT_MODES
from .packing_checks import KERNEL_BLOCKS, Canonical, validate_blocks, validate_bytes, validate_dense, validate_nibbles

__all__ = ["KERNEL_BLOCKS", "Canonical", "check", "dequantize", "info", "pack", "unpack"]

_ACTIVATION_NAMES = {code: name for name, code in ACTIVATIONS.items()}
_SCALE_KINDS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_MODE_NAMES = {code: name for name, code in INPUT_MODES.items()}


def pack(c: Canonical) -> Tensor:
    """Pack canonical tensors for this machine: 1-D uint8 tensor, header first, on the weight's device.

    Without the native module, and on devices other than the CPU, the layout is ``reference``, which is dense.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a shape, scale, zero point, mode, activation, index or group count is out of range.
    """
    if isinstance(c, W4Canonical):
        return _pack_nibbles(c)
    if isinstance(c, W8Canonical):
        return _pack_bytes(c)
    if not isinstance(c, W8A8Canonical):
        return _pack_blocks(c)
    validate_dense(c)
    if native.module is None or c.weight.device.type != "cpu":
        return reference_layout.encode(c)
    packed = native.module.pack_w8a8(
        c.weight.detach().contiguous().numpy(),
        c.weight_scale.detach().contiguous().numpy(),
        None if c.bias is None else c.bias.detach().contiguous().numpy(),
        *_input_codes(c),
        c.groups,
        c.weight_bits,
    )
    return torch.from_numpy(packed)


def _input_codes(c: W8A8Canonical | SparseW8A8Canonical) -> tuple[int, float, int, int]:
    return INPUT_MODES[c.input_mode], c.input_scale, c.input_zero_point, ACTIVATIONS[c.activation]


def _pack_nibbles(c: W4Canonical) -> Tensor:
    validate_nibbles(c)
    if native.module is None or c.weight_packed.device.type != "cpu":
        return reference_groups.encode(c)
    packed = native.module.pack_w4(
        c.weight_packed.detach().contiguous().numpy(),
        c.in_features,
        *_group_scales(c),
        None if c.weight_zero_point is None else c.weight_zero_point.detach().contiguous().numpy(),
        None if c.weight_min is None else c.weight_min.detach().contiguous().numpy(),
        None if c.bias is None else c.bias.detach().contiguous().numpy(),
        c.group_size,
        INPUT_MODES[c.input_mode],
        ACTIVATIONS[c.activation],
    )
    return torch.from_numpy(packed)


def _group_scales(c: W4Canonical | W8Canonical) -> tuple[Any, str]:
    """Scales as the native module takes them, and their type."""
    scale = c.weight_scale.detach().contiguous()
    kind = next(name for name, dtype in _SCALE_KINDS.items() if dtype == scale.dtype)
    return (scale.view(torch.uint16) if kind == "bf16" else scale).numpy(), kind


def _pack_bytes(c: W8Canonical) -> Tensor:
    validate_bytes(c)
    if native.module is None or c.weight.device.type != "cpu":
        return reference_groups.encode(c)
    packed = native.module.pack_w8(
        c.weight.detach().contiguous().numpy(),
        *_group_scales(c),
        None if c.bias is None else c.bias.detach().contiguous().numpy(),
        c.group_size,
        INPUT_MODES[c.input_mode],
        ACTIVATIONS[c.activation],
    )
    return torch.from_numpy(packed)


def _unpack_nibbles(fields: dict[str, Any]) -> W4Canonical:
    return W4Canonical(
        torch.from_numpy(fields["weight_packed"]),
        torch.from_numpy(fields["weight_scale"]).view(_SCALE_KINDS[fields["scale_dtype"]]),
        _optional(fields["bias"]),
        fields["in_features"],
        fields["group_size"],
        _MODE_NAMES[fields["input_mode"]],
        _optional(fields["zero_point"]),
        _optional(fields["minimum"]),
        _ACTIVATION_NAMES[fields["activation"]],
    )


def _unpack_bytes(fields: dict[str, Any]) -> W8Canonical:
    return W8Canonical(
        torch.from_numpy(fields["weight"]),
        torch.from_numpy(fields["weight_scale"]).view(_SCALE_KINDS[fields["scale_dtype"]]),
        _optional(fields["bias"]),
        fields["group_size"],
        _MODE_NAMES[fields["input_mode"]],
        _ACTIVATION_NAMES[fields["activation"]],
    )


def _optional(array: Any) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _pack_blocks(c: SparseW8A8Canonical | SparseCanonical) -> Tensor:
    validate_blocks(c)
    b = c.blocks
    if native.module is None or b.values.device.type != "cpu":
        return reference_layout.encode(c)
    scale, codes = None, (0, 1.0, 0, ACTIVATIONS[c.activation])
    if isinstance(c, SparseW8A8Canonical):
        scale, codes = c.weight_scale.detach().contiguous().numpy(), _input_codes(c)
    packed = native.module.pack_bsr(
        b.crow.numpy(),
        b.col.numpy(),
        (b.values.view(torch.uint16) if b.dtype == torch.bfloat16 else b.values).numpy(),
        c.weight_shape,
        scale,
        None if c.bias is None else c.bias.detach().contiguous().numpy(),
        *codes,
    )
    return torch.from_numpy(packed)


def unpack(packed: Tensor) -> Canonical:
    """Return the canonical tensors of a blob, bit for bit, as copies on the blob's device.

    The reference layout is dense: all-zero blocks do not come back from it.

    Raises:
        TypeError: not a uint8 tensor.
        PackedBlobError: the blob is foreign or corrupt.
    """
    if reference_layout.is_reference(packed):
        return reference_layout.unpack(packed)
    if reference_groups.is_reference(packed):
        return reference_groups.unpack(packed)
    header = info(packed)
    if header["family"] == "linear_w4":
        return _unpack_nibbles(_native("unpack", "unpack_w4", packed))
    if header["family"] == "linear_w8":
        return _unpack_bytes(_native("unpack", "unpack_w8", packed))
    if "block_size" in header:
        return _unpack_blocks(_native("unpack", "unpack_bsr", packed))
    fields = _native("unpack", "unpack_w8a8", packed)
    sizes = {name: fields[name] for name in ("groups", "weight_bits")}
    return W8A8Canonical(torch.from_numpy(fields["weight"]), **_parameters(fields), **sizes)


def _unpack_blocks(fields: dict[str, Any]) -> SparseW8A8Canonical | SparseCanonical:
    shape = fields["weight_shape"]
    values = torch.from_numpy(fields["values"])
    if values.dtype == torch.uint16:
        values = values.view(torch.bfloat16)
    matrix = (shape[0], math.prod(shape[1:]))
    blocks = BlockCSR(torch.from_numpy(fields["crow"]), torch.from_numpy(fields["col"]), values, matrix)
    kernel_size = (shape[2], shape[3]) if len(shape) == 4 else None
    if fields["weight_scale"] is not None:
        return SparseW8A8Canonical(blocks, **_parameters(fields), kernel_size=kernel_size)
    bias = None if fields["bias"] is None else torch.from_numpy(fields["bias"])
    return SparseCanonical(blocks, bias, _ACTIVATION_NAMES[fields["activation"]], kernel_size)


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
    if reference_groups.is_reference(packed):
        reference_groups.check(packed)
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
    if reference_groups.is_reference(packed):
        return reference_groups.info(packed)
    return dict(_native("info", "blob_info", packed))


def dequantize(packed: Tensor, field: str, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """``torch.ops.fastcompress.dequantize``: the blob's ``"weight"`` or ``"bias"`` of shape `size` as floats.

    Raises:
        ValueError: another field, no bias in the blob, or another shape.
        PackedBlobError: the blob is foreign or corrupt.
    """
    if field not in ("weight", "bias"):
        raise ValueError(f'dequantize: `field` must be "weight" or "bias", got {field!r}')
    c = unpack(packed)
    value = c.dequantize() if field == "weight" else c.bias
    if value is None or list(value.shape) != list(size):
        found = "no bias" if value is None else f"shape {list(value.shape)}"
        raise ValueError(f"dequantize: `size` is {list(size)}, the blob's {field} has {found}")
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
