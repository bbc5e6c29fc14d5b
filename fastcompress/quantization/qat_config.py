"""The configuration of `prepare`: one frozen dataclass that refuses every wrong value by name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from fastcompress.models.choices import check_choice
from fastcompress.models.targets import Target, target_tuple
from fastcompress.schemes import SCALE_DTYPES, SCHEMES, Scheme

from .groupwise.grid import GroupGrid

__all__ = ["QAT_METHODS", "QAT_SCHEMES", "STEP_INITS", "QATConfig"]

QAT_SCHEMES: tuple[str, ...] = ("W8A8", "W4A8", "W4A16")
QAT_METHODS: tuple[str, ...] = ("ste", "lsq")
STEP_INITS: tuple[str, ...] = ("lsq", "minmax")

_OF_STATIC = ("symmetric_activations", "observer_momentum")
_OF_GROUPS = ("group_size", "scale_dtype")


@dataclass(frozen=True)
class QATConfig:
    """What `fastcompress.prepare` does, in every detail; ``QATConfig("W8A8")`` is the same as the string.

    Attributes:
        scheme: ``"W8A8"``: s8 weights with one scale per output channel, static u8 activations. ``"W4A8"``: four-bit
            weights in groups, int8 activations with a scale for each row; linear layers only. ``"W4A16"``: four-bit
            weights in groups, activations are not rounded; linear layers only.
        method: ``"ste"``: scales follow the data (of weights the largest magnitude, of inputs a moving average of the
            smallest and largest value) and gradients pass the rounding. ``"lsq"``: scales are parameters that are
            trained with the weights; the zero point is fixed when training starts.
        targets: prepare only these modules: names, ``"re:…"`` patterns (whole name), or classes. None means all.
        ignore: never prepare these; the same notation, and stronger than ``targets``.
        symmetric_activations: quantize activations symmetrically around zero point 128; W8A8 only.
        observer_momentum: weight of the newest batch in the moving average, in (0, 1]; W8A8 only.
        fold_batchnorm: quantize the weight as it is with the BatchNorm behind it folded in. Where nothing shows what
            follows a layer (no ``example_inputs`` and no ``calibration_data``) nothing is folded.
        step_init: where learned scales start: ``"lsq"``, twice the mean magnitude over sqrt(largest integer), the mean
            over what is not zero; or ``"minmax"``, the scale that just covers the weights.
        group_size: inputs that share a scale, a multiple of 8; -1 is the whole row; None: 128. Four bits only.
        scale_dtype: what scales of groups are stored as, and rounded to in training: ``"bfloat16"``, ``"float16"`` or
            ``"float32"``. Four bits only.

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
    group_size: int | None = None
    scale_dtype: str = "bfloat16"

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
        self._check_groups()

    @property
    def kind(self) -> Scheme:
        """What the scheme does."""
        return SCHEMES[self.scheme]

    @property
    def grid(self) -> GroupGrid:
        """What weights are rounded to, in schemes with groups."""
        kind = self.kind
        size = kind.group_size if self.group_size is None else self.group_size
        dtype: torch.dtype = getattr(torch, self.scale_dtype)
        return GroupGrid(kind.weight_bits, None if size == -1 else size, True, dtype)

    def _check_groups(self) -> None:
        check_choice("QATConfig", "scale_dtype", self.scale_dtype, SCALE_DTYPES)
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise TypeError(f"QATConfig: group_size must be None, -1 or a multiple of 8, got {size!r:.80}")
        if size is not None and size != -1 and (size < 1 or size % 8):
            raise ValueError(f"QATConfig: group_size must be None, -1 (the whole row) or a multiple of 8, got {size}")
        # Options of the other schemes would do nothing.
        foreign = _OF_STATIC if self.kind.grouped else _OF_GROUPS
        fresh = {f.name: f.default for f in dataclasses.fields(self)}
        for name in foreign:
            if getattr(self, name) != fresh[name]:
                allowed = ", ".join(s for s in QAT_SCHEMES if SCHEMES[s].grouped != self.kind.grouped)
                raise ValueError(
                    f"QATConfig: {name}={getattr(self, name)!r:.60} belongs to {allowed}, scheme is {self.scheme!r}; "
                    "leave it out"
                )

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
