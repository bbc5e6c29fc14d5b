"""The teacher's answer to a batch: computed, or read from the cache; without gradients, and nothing of it changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn

from .cache import TeacherCache
from .outputs import logits_of
from .probe import run_quietly
from .samples import Samples
from .taps import Taps
from .wrappers import unwrapped

__all__ = ["LOGITS", "Teacher", "check_finite"]

#: The key of the logits among a teacher's outputs; no module has this name.
LOGITS = "<logits>"


class Teacher:
    """Runs ``model`` on batches and returns its logits and taps, in contiguous tensors.

    Args:
        model: the teacher.
        taps: modules whose outputs are wanted.
        logits: whether the logits are wanted (under `LOGITS`).
        forward_fn: ``forward_fn(model, batch)`` in place of the batch protocol.
        cache: where to look first.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Sequence[str],
        logits: bool,
        forward_fn: ForwardFn | None = None,
        cache: TeacherCache | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self._taps = Taps(self.model, taps, whose="teacher")
        self._logits = logits
        self._forward_fn = forward_fn
        self._cache = cache

    def outputs(self, batch: Any) -> dict[str, Tensor]:
        """Name of tap, or `LOGITS` → tensor.

        Raises:
            ValueError: it holds NaN or infinity. RuntimeError: a tapped module did not run.
        """
        if self._cache is None:
            return self.compute(batch)
        names = (*self._taps.names, *((LOGITS,) if self._logits else ()))
        samples = Samples(batch, whole=self._forward_fn is not None)
        return self._cache.outputs(self.model, names, samples, self.compute, self._forward_fn)

    def compute(self, batch: Any) -> dict[str, Tensor]:
        """`outputs`, from a forward of the model."""
        with self._taps:
            output = run_quietly(self.model, batch, self._forward_fn)
        # The layout of memory is made the same as the cache's: sums over other layouts round differently.
        found = {name: self._taps[name].detach().contiguous() for name in self._taps.names}
        self._taps.clear()
        if self._logits:
            found[LOGITS] = logits_of(output, "teacher").detach().contiguous()
        for name, value in found.items():
            check_finite(name, value)
        return found


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError where ``value`` holds NaN or infinity; -inf is a legitimate logit."""
    bad = ~torch.isfinite(value)
    if name == LOGITS:
        bad &= value != -torch.inf
    if bool(bad.any()):
        what = "logits" if name == LOGITS else f"module {name!r}"
        row = int(bad.flatten(1).any(1).nonzero()[0]) if value.dim() > 1 else 0
        raise ValueError(
            f"distillation: the teacher's {what} hold NaN or infinity, first in sample {row} of the batch; check the "
            "batch and the teacher's weights, and its precision under autocast"
        )
