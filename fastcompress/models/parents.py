"""Why a layer must stay float: its parent reads its weight directly, its weight is tied, or something sits on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastcompress.models.flow import Flow
from fastcompress.models.targets import tied_groups
from fastcompress.nn.mask import only_masked
from fastcompress.ops.constants import MAX_K

__all__ = ["carries_hooks", "layer_problem", "never_ran", "parent_problems", "tied_problems"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def carries_hooks(module: nn.Module) -> bool:
    """Whether replacing or folding away the module would lose something that was attached to it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in hooks) or "forward" in module.__dict__


def layer_problem(module: nn.Module, *, any_device: bool = False) -> str | None:
    """Why this layer, seen alone, cannot become int8; None when it can (``any_device``: once it is on the CPU)."""
    if isinstance(getattr(module, "weight", None), nn.parameter.UninitializedParameter):
        return "it is lazy and was never run"
    if torch.nn.utils.parametrize.is_parametrized(module) and not only_masked(module):
        return "it is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance, which would be lost"
    if carries_hooks(module):
        return "it has hooks, which would be lost; remove them first"
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return "it has no weight tensor"
    if type(weight) not in (nn.Parameter, Tensor):
        return f"its weight is a {type(weight).__name__}, not an ordinary tensor"
    if any_device and weight.is_meta:
        return "its weight is on the meta device and has no values"
    if weight.device.type != "cpu" and not any_device:
        return f"its weight is on {weight.device}; the kernels run on the CPU, call model.cpu() first"
    if weight.layout is not torch.strided:
        return f"its weight has layout {weight.layout}"
    if weight.dtype not in _DTYPES:
        return f"its weight is {weight.dtype}; supported are float32, bfloat16 and float16"
    if weight.numel() == 0:
        return "its weight is empty"
    if not bool(torch.isfinite(weight.detach()).all()):
        return "its weight holds NaN or infinity"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"padding_mode {module.padding_mode!r} is not supported, only 'zeros'"
    k = weight.shape[0] if type(module).__name__ == "Conv1D" else weight[0].numel()
    if k > MAX_K:
        return f"it sums over {k} products, int32 accumulators are safe up to {MAX_K}"
    return None


def _fast_path_possible(layer: nn.TransformerEncoderLayer) -> bool:
    return bool(
        torch.backends.mha.get_fastpath_enabled()
        and layer.self_attn.batch_first
        and layer.activation_relu_or_gelu
        and layer.self_attn.num_heads % 2 == 0
    )


def parent_problems(model: nn.Module, observed: bool) -> dict[nn.Module, str]:
    """Children of torch's own modules that read a child's weight and never call it.

    Where the model is observed running, only what cannot be seen there is decided by class (`never_ran` does the rest).
    """
    result: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            result[module.out_proj] = "nn.MultiheadAttention reads its weight directly and never calls it"
        elif isinstance(module, nn.TransformerEncoderLayer) and not observed and _fast_path_possible(module):
            for child in (module.linear1, module.linear2):
                result[child] = (
                    "nn.TransformerEncoderLayer's fused path may read its weight directly; give example_inputs to find "
                    "out, or call torch.backends.mha.set_fastpath_enabled(False)"
                )
    return result


def never_ran(name: str, model: nn.Module, flow: Flow) -> str | None:
    """Why a layer must stay because of what calibration saw of it, or None."""
    parent_name = name.rpartition(".")[0]
    parent = type(model.get_submodule(parent_name)).__name__ if name else type(model).__name__
    if flow.calls[name] == 0:
        if name not in flow.weight_used_outside:
            return "never called during calibration"
        hint = ""
        if parent == "TransformerEncoderLayer":
            hint = "; torch.backends.mha.set_fastpath_enabled(False) makes it call its layers"
        return f"never called during calibration, but its weight is used directly (by its parent {parent}?){hint}"
    if name in flow.weight_used_outside:
        return f"its weight is also used outside its forward (by its parent {parent}?)"
    return None


def tied_problems(
    model: nn.Module, candidates: Mapping[nn.Module, str]
) -> tuple[dict[nn.Module, str], dict[nn.Module, str]]:
    """(problems, notes) of candidates that share a parameter with another module.

    Tied with something that stays float (an embedding), quantizing would break the tie and store the weight twice.
    Tied with other candidates only, each gets its own int8 copy.
    """
    problems: dict[nn.Module, str] = {}
    notes: dict[nn.Module, str] = {}
    for group in tied_groups(model):
        others = [(name, module) for name, module in group if module not in candidates]
        for _, module in group:
            if module not in candidates:
                continue
            if others:
                name, other = others[0]
                owner = f"{name or 'the model'} ({type(other).__name__})"
                problems[module] = f"its weight is tied to {owner}, which stays float"
            else:
                rest = ", ".join(candidates[m] for _, m in group if m is not module)
                notes[module] = f"shared its parameters with {rest}; each has its own quantized weights now"
    return problems, notes
