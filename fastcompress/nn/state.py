"""``state_dict`` entries of a packed layer: canonical tensors, checked before the layer changes."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..ops.block_csr import BlockCSR
from ..ops.canonical import W8A8Canonical
from ..ops.canonical_conv4 import pack_conv_weight, unpack_conv_weight
from ..ops.canonical_sparse import SparseCanonical, SparseW8A8Canonical
from ..ops.canonical_w4 import W4Canonical
from ..ops.canonical_w8 import W8Canonical
from ..ops.packing import Canonical

__all__ = ["Canonical", "read_state", "write_state"]

#: Entries of a block-sparse weight: another number of blocks is another value, not another kind of layer.
_INDEX = ("crow", "col", "values")
_VARIABLE = ("col", "values")

#: Entries of a weight with scales by group; those that a layer has.
_GROUPED = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_min", "bias")


def write_state(c: Canonical, destination: dict[str, Any], prefix: str) -> None:
    """Put the canonical tensors of `c` (architecture §2) into `destination` under `prefix`."""
    if isinstance(c, W4Canonical | W8Canonical):
        present = {name: getattr(c, name, None) for name in _GROUPED}
        destination.update({prefix + name: tensor for name, tensor in present.items() if tensor is not None})
        return
    if isinstance(c, W8A8Canonical) and c.weight_bits == 4:
        destination[prefix + "weight_packed"] = pack_conv_weight(c.weight)
    elif isinstance(c, W8A8Canonical):
        destination[prefix + "weight"] = c.weight
    else:
        destination.update({prefix + name: getattr(c.blocks, name) for name in _INDEX})
    if not isinstance(c, SparseCanonical):
        destination[prefix + "weight_scale"] = c.weight_scale
    if c.bias is not None:
        destination[prefix + "bias"] = c.bias
    if not isinstance(c, SparseCanonical) and c.input_mode == "static":
        destination[prefix + "input_scale"] = torch.tensor(c.input_scale, dtype=torch.float32)
        destination[prefix + "input_zero_point"] = torch.tensor(c.input_zero_point, dtype=torch.int32)


def _mismatch(key: str, found: Any, expected: Tensor) -> str | None:
    """Say how an entry differs in kind from the layer's own, or None."""
    if not isinstance(found, Tensor):
        return f"{key}: expected a tensor, got {type(found).__name__}"
    if found.dtype != expected.dtype:
        hint = (
            "; load float weights into the float model, then quantize it"
            if not expected.is_floating_point() and found.is_floating_point()
            else ""
        )
        return f"{key}: dtype mismatch, the state dict has {found.dtype}, the layer holds {expected.dtype}{hint}"
    free = key.rsplit(".", 1)[-1] in _VARIABLE
    if found.dim() != expected.dim() or found.shape[free:] != expected.shape[free:]:
        return f"{key}: shape mismatch, the state dict has {list(found.shape)}, the layer holds {list(expected.shape)}"
    return None


def read_state(
    current: Canonical,
    state_dict: dict[str, Any],
    prefix: str,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> Canonical | None:
    """Read a layer's entries; returns the new canonical layer, or None when nothing may change.

    The last three lists are filled as ``nn.Module._load_from_state_dict`` does. Keys that are missing keep the
    current value, so a partial load with ``strict=False`` works; any other fault leaves the layer as it is.
    """
    expected: dict[str, Any] = {}
    write_state(current, expected, "")
    device = next(iter(expected.values())).device
    found: dict[str, Tensor] = {}
    faults: list[str] = []
    for name, tensor in expected.items():
        key = prefix + name
        if key not in state_dict:
            if strict:
                missing_keys.append(key)
            continue
        fault = _mismatch(key, state_dict[key], tensor)
        if fault:
            faults.append(fault)
        else:
            found[name] = state_dict[key].detach().to(device)
    if strict:
        others = (key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in expected)
        unexpected_keys.extend(others)
    if faults or not found:
        error_msgs.extend(faults)
        return None
    try:
        return _merge(current, found, prefix)
    except ValueError as error:
        error_msgs.append(str(error))
        return None


def _merge_groups(
    current: W4Canonical | W8Canonical, found: dict[str, Tensor], prefix: str
) -> W4Canonical | W8Canonical:
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"load_state_dict: `{prefix}{name}` holds NaN or infinity")
    zero = found.get("weight_zero_point")
    if zero is not None and bool((zero > 15).any()):
        raise ValueError(f"load_state_dict: `{prefix}weight_zero_point` must lie in [0, 15]")
    changes: dict[str, Any] = {name: tensor.clone() for name, tensor in found.items()}
    return replace(current, **changes)


def _merge(current: Canonical, found: dict[str, Tensor], prefix: str) -> Canonical:
    if isinstance(current, W4Canonical | W8Canonical):
        return _merge_groups(current, found, prefix)
    changes: dict[str, Any] = {
        name: found[name].clone() for name in ("weight", "weight_scale", "bias") if name in found
    }
    if "weight_packed" in found:
        changes["weight"] = unpack_conv_weight(found["weight_packed"], current.weight_shape)
    index = [name for name in _INDEX if name in found]
    if index and not isinstance(current, W8A8Canonical):
        if len(index) < len(_INDEX):
            raise ValueError(f"load_state_dict: `{prefix}{index[0]}` came alone; crow, col and values go together")
        parts = [found[name].clone() for name in _INDEX]
        try:
            changes["blocks"] = BlockCSR(parts[0], parts[1], parts[2], current.blocks.shape)
        except (TypeError, ValueError) as error:
            raise ValueError(f"load_state_dict: `{prefix}`: {error}") from error
    if "weight_scale" in changes:
        checks.check_scale("load_state_dict", prefix + "weight_scale", changes["weight_scale"], current.weight_shape[0])
    if "bias" in changes and not bool(torch.isfinite(changes["bias"]).all()):
        raise ValueError(f"load_state_dict: `{prefix}bias` holds NaN or infinity")
    if "input_scale" in found:
        changes["input_scale"] = float(found["input_scale"])
    if "input_zero_point" in found:
        changes["input_zero_point"] = int(found["input_zero_point"])
    merged: Canonical = replace(current, **changes)
    if isinstance(merged, W8A8Canonical | SparseW8A8Canonical) and merged.input_mode == "static":
        checks.check_parameters(
            "load_state_dict", prefix + "input_", merged.input_scale, merged.input_zero_point, 0, 255
        )
    return merged
