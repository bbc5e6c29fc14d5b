"""The ways to run a model that a measurement compares: memory formats, bfloat16, compiled."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["Form", "channels_last_form", "dense_forms", "has_images", "thread_count"]

#: A name, a function that makes the model, and a function that makes its inputs from a batch.
Form = tuple[str, Callable[[], nn.Module], Callable[[Any], Any]]


def has_images(model: nn.Module) -> bool:
    """Whether a memory format matters: the model has 2-d convolutions."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def dense_forms(baseline: nn.Module, compiled: bool, bf16: bool) -> list[Form]:
    """The model as it is, then channels-last for images, compiled and in bfloat16 if asked for."""
    images = has_images(baseline)
    dtype = next((p.dtype for p in baseline.parameters() if p.is_floating_point()), torch.float32)
    label = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype))

    def best() -> nn.Module:
        return _channels_last_copy(baseline) if images else baseline

    def batch_for_best(batch: Any) -> Any:
        return _changed(batch, _channels_last) if images else batch

    forms: list[Form] = [(f"{label} eager", lambda: baseline, lambda batch: batch)]
    if images:
        forms.append((f"{label} channels-last", best, batch_for_best))
    if compiled:
        forms.append((f"{label} compiled", lambda: cast(nn.Module, torch.compile(best())), batch_for_best))
    if bf16 and dtype == torch.float32:
        half: Form = (
            "bf16",
            lambda: copy.deepcopy(best()).to(torch.bfloat16),
            lambda batch: _changed(batch_for_best(batch), _bf16),
        )
        forms.append(half)
    return forms


def channels_last_form(name: str, model: nn.Module) -> Form:
    """A copy of ``model`` in channels-last, under ``name``."""
    return (name, lambda: _channels_last_copy(model), lambda batch: _changed(batch, _channels_last))


@contextlib.contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    """So many threads for torch and the kernels inside the block; None leaves what is set."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _channels_last_copy(model: nn.Module) -> nn.Module:
    # torch's own type hints leave memory_format out.
    return cast(nn.Module, cast(Any, copy.deepcopy(model)).to(memory_format=torch.channels_last))


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``change`` applied to every tensor of a batch."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _changed(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_changed(item, change) for item in value]
    return value


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _bf16(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
