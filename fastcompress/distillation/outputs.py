"""The tensor that is meant in whatever a model or module returns: a tensor, a tuple, a dict, a ModelOutput."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["find_tensor", "logits_of"]

#: What holds the logits in outputs by name: Hugging Face, torchvision's segmentation networks, common habit.
_LOGITS_KEYS = ("logits", "out", "output", "prediction_logits")
_HIDDEN_KEYS = ("last_hidden_state", "hidden_states", "logits", "out", "output")


def logits_of(output: Any, whose: str = "model") -> Tensor:
    """The logits in a model's output.

    Args:
        output: a tensor; a tuple or list, whose first floating tensor of two or more dimensions it is (a loss in front
            is a scalar); a mapping or an object (Hugging Face's ``ModelOutput``) with ``logits`` (or ``out``,
            ``output``), or a mapping with a single tensor.
        whose: ``"student"`` or ``"teacher"``, for the message.

    Raises:
        TypeError: there is no such tensor.

    Example:
        >>> logits_of({"loss": torch.tensor(0.3), "logits": torch.zeros(8, 10)}).shape
        torch.Size([8, 10])
    """
    if isinstance(output, Tensor):
        return output
    found = _by_name(output, _LOGITS_KEYS)
    if found is not None:
        return found
    if isinstance(output, (tuple, list)):
        for entry in output:
            if isinstance(entry, Tensor) and entry.is_floating_point() and entry.dim() >= 2:
                return entry
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor) and value.dim() >= 2]
        if len(tensors) == 1:
            return tensors[0]
    raise TypeError(
        f"distillation: no logits in the {whose}'s output, {_described(output)}; allowed are a tensor, a tuple that "
        "holds one, a dict or ModelOutput with 'logits'; use a forward_fn that returns them, or no logits loss"
    )


def find_tensor(output: Any) -> Tensor | None:
    """The tensor in a module's output: itself, the first of a tuple, ``last_hidden_state`` and the like; or None."""
    if isinstance(output, Tensor):
        return output
    found = _by_name(output, _HIDDEN_KEYS)
    if found is not None:
        return found
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, (tuple, list, Mapping)):
        return next((value for value in values if isinstance(value, Tensor)), None)
    return None


def _by_name(output: Any, keys: tuple[str, ...]) -> Tensor | None:
    for key in keys:
        value = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(value, Tensor):
            return value
    return None


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with keys {', '.join(map(repr, output)) or '(none)'}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {', '.join(type(entry).__name__ for entry in output) or 'nothing'}"
    return f"a {type(output).__name__}"
