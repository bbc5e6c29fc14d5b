"""The values that parameters go back to when a lottery ticket is drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["Rewind"]


class Rewind:
    """All parameters of a model, and a copy of their values once `take` was called.

    Parameters that are made later, such as those of fake quantization, do not go back.

    Args:
        model: with its masks in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self.values: dict[str, Tensor] | None = None

    def take(self) -> None:
        """Remember the current values."""
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Set every parameter to the remembered value, in place."""
        assert self.values is not None, "PrunerConfig puts rewind_step before the first round"
        for name, parameter in self.parameters.items():
            parameter.copy_(self.values[name])

    def check_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Raises ``ValueError`` unless ``state`` are values of this model's parameters."""
        for name, value in (state or {}).items():
            if name not in self.parameters or value.shape != self.parameters[name].shape:
                raise ValueError(
                    f"Pruner.load_state_dict: the rewind value of parameter {name!r} with shape {list(value.shape)} "
                    "does not belong to this model"
                )
        missing = [name for name in self.parameters if state is not None and name not in state]
        if missing:
            raise ValueError(f"Pruner.load_state_dict: the rewind value of parameter {missing[0]!r} is missing")

    def load_state_dict(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over what `check_state` accepted."""
        self.values = None
        if state is not None:
            self.values = {
                name: state[name].detach().to(parameter.device, parameter.dtype, copy=True)
                for name, parameter in self.parameters.items()
            }
