"""What a checkpoint needs of a distiller, as a flat dict of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastcompress.models.choices import nearest

from .binding import Binding

__all__ = ["load_state", "state_of"]

_UPDATES = "updates"


def state_of(binding: Binding, with_teacher: bool) -> dict[str, Tensor]:
    """Projections (``projections.…``), and with ``with_teacher`` the teacher (``teacher.…``) and the updates so far."""
    state = {name: tensor.clone() for name, tensor in _tensors(binding, with_teacher).items()}
    return {**state, _UPDATES: torch.tensor(binding.updates)}


@torch.no_grad()
def load_state(binding: Binding, with_teacher: bool, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the binding.

    Raises:
        TypeError, ValueError: it is not what `state_of` gave; nothing has changed.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("Distiller.load_state_dict: state must map names to tensors, as state_dict() returns")
    own = _tensors(binding, with_teacher)
    expected = own.keys() | {_UPDATES}
    for name in sorted(expected ^ state.keys(), key=str):
        where = "is missing" if name in expected else f"is unknown{nearest(str(name), expected)}"
        raise ValueError(
            f"Distiller.load_state_dict: {name!r} {where}; bind with the losses and student it was saved with"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape or tensor.dtype != state[name].dtype:
            raise ValueError(
                f"Distiller.load_state_dict: {name!r} is {state[name].dtype} {list(state[name].shape)}, expected "
                f"{tensor.dtype} {list(tensor.shape)}; bind with the losses and student it was saved with"
            )
    count = state[_UPDATES]
    if count.dtype != torch.int64 or count.dim() != 0 or int(count) < 0:
        raise ValueError("Distiller.load_state_dict: 'updates' must be one int64 number that is not negative")
    for name, tensor in own.items():
        tensor.copy_(state[name])
    binding.updates = int(count)


def _tensors(binding: Binding, with_teacher: bool) -> dict[str, Tensor]:
    tensors = {f"projections.{name}": tensor for name, tensor in binding.projections.state_dict().items()}
    if with_teacher and binding.teacher is not None:
        model = binding.teacher.model
        # Not its state_dict, which leaves out buffers that are not persistent.
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensors[f"teacher.{name}"] = tensor.detach()
    return tensors
