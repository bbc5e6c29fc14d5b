"""What the fake-quantizers of weights and inputs have in common: their state, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from .qparams import TINY

__all__ = ["STATES", "FakeQuantizer"]

#: off: the identity. observe: observers run, nothing is rounded. train: rounding, while observers or steps learn.
#: frozen: rounding with fixed scale and zero point. The index in this tuple is what the ``state`` buffer holds.
STATES: tuple[str, ...] = ("off", "observe", "train", "frozen")


class FakeQuantizer(nn.Module):
    """Base of `WeightFakeQuantize` and `InputFakeQuantize`.

    Its ``state_dict`` holds ``state`` (uint8 ``[]``, an index into `STATES`), ``scale`` (float32; 0 while unknown) and,
    with learned scales, the parameter ``step`` (float32, the shape of ``scale``). ``step`` counts in state train only;
    ``scale`` is what it was when that state was last left, and returns to it when the state is entered again. Nothing
    here ever leaves float32, whatever the model is cast to.

    Attributes:
        mode: the state's name.
        known: whether there is a scale to round with.
    """

    state: Tensor
    scale: Tensor
    step: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], learned: bool, step_init: str, device: torch.device) -> None:
        super().__init__()
        self.mode = "off"
        self.known = False
        self.step_init = step_init
        self.register_buffer("state", torch.zeros((), dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.zeros(shape, dtype=torch.float32, device=device))
        self.step = nn.Parameter(torch.ones(shape, dtype=torch.float32, device=device)) if learned else None

    def effective_step(self) -> Tensor:
        """The learned scale as it is used: not below 2^-100, where its reciprocal would overflow; detached."""
        assert self.step is not None
        return self.step.detach().clamp(min=TINY)

    def _set_mode(self, mode: str) -> None:
        """Change the state; the subclass has made sure that a learned scale is known where it is needed."""
        with torch.no_grad():
            if self.step is not None and self.known and mode != self.mode:
                if self.mode == "train":
                    self.scale.copy_(self.effective_step())
                elif mode == "train":
                    self.step.copy_(self.scale)
            self.state.fill_(STATES.index(mode))
        self.mode = mode

    def _start_step(self, value: Tensor) -> None:
        """The first value of the learned scale."""
        assert self.step is not None
        with torch.no_grad():
            self.step.copy_(value)
            self.scale.copy_(value)
        self.known = True

    def _read_back(self) -> None:
        """Set what Python keeps beside the buffers, after they were loaded."""
        self.mode = STATES[int(self.state)]
        self.known = bool((self.scale > 0).all())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}state")
        if isinstance(state, Tensor) and not (state.numel() == 1 and 0 <= int(state) < len(STATES)):
            error_msgs: list[str] = args[-1]
            error_msgs.append(f"{prefix}state must hold one number from 0 to {len(STATES) - 1}, got {state.tolist()}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.state.is_meta:
            self._read_back()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_dtype, recurse)

    def extra_repr(self) -> str:
        return f"{self.mode}, {'learned' if self.step is not None else 'observed'} scale"
