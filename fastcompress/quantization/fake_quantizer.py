"""What the fake-quantizers of weights and inputs have in common: their state, their scale, and how both are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from .qparams import TINY

__all__ = ["STATES", "FakeQuantizer", "Switched"]

#: off: the identity. observe: observers run, nothing is rounded. train: rounding, while observers or steps learn.
#: frozen: rounding with fixed scale and zero point. The index in this tuple is what the ``state`` buffer holds.
STATES: tuple[str, ...] = ("off", "observe", "train", "frozen")

#: A learned scale does not shrink below this part of its unit: an optimizer that oversteps must not end in 0.
_SMALLEST_STEP = 2.0**-10


class Switched(nn.Module):
    """Base of everything that fake quantization adds to a layer: it is in one of `STATES`.

    Its ``state_dict`` holds ``state`` (uint8 ``[]``, an index into `STATES`). Nothing here changes its dtype, whatever
    the model is cast to.

    Attributes:
        mode: the state's name.
    """

    state: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.mode = "off"
        self.register_buffer("state", torch.zeros((), dtype=torch.uint8, device=device))

    def _set_mode(self, mode: str) -> None:
        with torch.no_grad():
            self.state.fill_(STATES.index(mode))
        self.mode = mode

    def _read_back(self) -> None:
        """Set what Python keeps beside the buffers, after they were loaded."""
        self.mode = STATES[int(self.state)]

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; also takes over what an average of models (EMA) wrote into the buffers only."""
        super().train(mode)
        self.refresh()
        return self

    def refresh(self) -> None:
        """Believe the buffers, which somebody may have written without ``load_state_dict``."""
        if not self.state.is_meta:
            self._read_back()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}state")
        if isinstance(state, Tensor) and not (state.numel() == 1 and 0 <= int(state) < len(STATES)):
            error_msgs: list[str] = args[-1]
            error_msgs.append(f"{prefix}state must hold one number from 0 to {len(STATES) - 1}, got {state.tolist()}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.refresh()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_dtype, recurse)

    def extra_repr(self) -> str:
        return self.mode


class FakeQuantizer(Switched):
    """Base of `WeightFakeQuantize` and `InputFakeQuantize`.

    Besides `Switched`'s, its ``state_dict`` holds ``scale`` (float32; 0 while unknown) and, with learned scales, the
    parameter ``step`` and ``unit`` (float32, the shape of ``scale``): in state train the scale is ``step * unit``.
    ``scale`` is what it was when that state was last left, and what it is again when the state is entered again.

    A learned scale is trained in units of its start, and its gradient is that of the paper over the unit. So SGD moves
    the scale exactly as in the paper, while Adam, whose steps are about the learning rate whatever the gradient, moves
    it by that fraction: a scale of 1e-4 itself would not survive a step of 1e-3.

    Attributes:
        known: whether there is a scale to round with.
    """

    scale: Tensor
    step: nn.Parameter | None
    unit: Tensor | None

    def __init__(self, shape: tuple[int, ...], learned: bool, step_init: str, device: torch.device) -> None:
        super().__init__(device)
        self.known = False
        self.step_init = step_init
        self.register_buffer("scale", torch.zeros(shape, dtype=torch.float32, device=device))
        one = torch.ones(shape, dtype=torch.float32, device=device)
        self.step = nn.Parameter(one) if learned else None
        self.register_buffer("unit", one.clone() if learned else None)

    def learned_scale(self) -> Tensor:
        """``step * unit``, detached; the step counts as at least 2^-10 (its gradient goes on), the scale as 2^-100."""
        assert self.step is not None
        assert self.unit is not None
        return (self.step.detach().clamp(min=_SMALLEST_STEP) * self.unit).clamp(min=TINY)

    def _set_mode(self, mode: str) -> None:
        """Change the state; the subclass has made sure that a learned scale is known where it is needed."""
        with torch.no_grad():
            if self.step is not None and self.known and mode != self.mode:
                if self.mode == "train":
                    self.scale.copy_(self.learned_scale())
                elif mode == "train":
                    self._start_step(self.scale.clone())
        super()._set_mode(mode)

    def _start_step(self, value: Tensor) -> None:
        """Let the learned scale go on from ``value``, in units of that."""
        assert self.step is not None
        assert self.unit is not None
        with torch.no_grad():
            self.step.fill_(1.0)
            self.unit.copy_(value)
            self.scale.copy_(value)
        self.known = True

    def _read_back(self) -> None:
        super()._read_back()
        self.known = bool((self.scale > 0).all())

    def extra_repr(self) -> str:
        return f"{self.mode}, {'learned' if self.step is not None else 'observed'} scale"
