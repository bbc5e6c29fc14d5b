"""The configuration of `prepare`: one frozen dataclass that refuses every wrong value by name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fastcompress.models.choices import check_choice
from fastcompress.models.targets import Target, target_tuple

__all__ = ["QAT_METHODS", "QAT_SCHEMES", "STEP_INITS", "QATConfig"]

QAT_SCHEMES: tuple[str, ...] = ("W8A8",)
QAT_METHODS: tuple[str, ...] = ("ste", "lsq")
STEP_INITS: tuple[str, ...] = ("lsq", "minmax")


@dataclass(frozen=True)
class QATConfig:
    """What `fastcompress.prepare` does, in every detail; ``QATConfig("W8A8")`` is the same as the string.

    Attributes:
        scheme: ``"W8A8"``: s8 weights with one scale per output channel, static u8 activations.
        method: ``"ste"``: scales follow the data (of weights the largest magnitude, of inputs a moving average of the
            smallest and largest value) and gradients pass the rounding. ``"lsq"``: scales are parameters that are
            trained with the weights; the zero point is fixed when training starts.
        targets: prepare only these modules: names, ``"re:…"`` patterns (whole name), or classes. None means all.
        ignore: never prepare these; the same notation, and stronger than ``targets``.
        symmetric_activations: quantize activations symmetrically around zero point 128.
        observer_momentum: weight of the newest batch in the moving average, in (0, 1].
        fold_batchnorm: quantize the weight as it is with the BatchNorm behind it folded in. Where nothing shows what
            follows a layer (no ``example_inputs`` and no ``calibration_data``) nothing is folded.
        step_init: where learned scales start: ``"lsq"``, twice the mean magnitude over sqrt(largest integer), the mean
            over what is not zero; or ``"minmax"``, the scale that just clips nothing.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> config = QATConfig("W8A8", method="lsq", ignore=("classifier",))

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
    (CVPR 2018), §3; Esser et al., "Learned Step Size Quantization" (ICLR 2020), §2.
    """

    scheme: str = "W8A8"
    method: str = "ste"
    targets: tuple[Target, ...] | None = None
    ignore: tuple[Target, ...] = ()
    symmetric_activations: bool = False
    observer_momentum: float = 0.01
    fold_batchnorm: bool = True
    step_init: str = "lsq"

    def __post_init__(self) -> None:
        check_choice("QATConfig", "scheme", self.scheme, QAT_SCHEMES)
        check_choice("QATConfig", "method", self.method, QAT_METHODS)
        check_choice("QATConfig", "step_init", self.step_init, STEP_INITS)
        if self.targets is not None:
            object.__setattr__(self, "targets", target_tuple("QATConfig", "targets", self.targets))
            if not self.targets:
                raise ValueError("QATConfig: targets is empty; use None for all layers")
        object.__setattr__(self, "ignore", target_tuple("QATConfig", "ignore", self.ignore))
        for name in ("symmetric_activations", "fold_batchnorm"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"QATConfig: {name} must be True or False, got {value!r:.80}")
        momentum = self.observer_momentum
        if isinstance(momentum, bool) or not isinstance(momentum, (int, float)):
            raise TypeError(f"QATConfig: observer_momentum must be a number in (0, 1], got {momentum!r:.80}")
        if not math.isfinite(momentum) or not 0.0 < momentum <= 1.0:
            raise ValueError(f"QATConfig: observer_momentum must lie in (0, 1], got {momentum!r}")
        object.__setattr__(self, "observer_momentum", float(momentum))

    def replace(self, **changes: Any) -> QATConfig:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; classes become ``"module:qualname"`` (for the record, not for reading back)."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("targets", "ignore"):
            if values[name] is not None:
                values[name] = [t if isinstance(t, str) else f"{t.__module__}:{t.__qualname__}" for t in values[name]]
        return values
