"""The configuration of `quantize`: one frozen dataclass that refuses every wrong value by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastcompress.models.choices import check_choice
from fastcompress.models.targets import Target, target_tuple

__all__ = ["ACTIVATION_OBSERVERS", "SCHEMES", "WEIGHT_OBSERVERS", "QuantConfig", "Target"]

#: Scheme → what it does to activations.
SCHEMES: dict[str, str] = {"W8A8": "static", "W8A8-dynamic": "dynamic"}

ACTIVATION_OBSERVERS: tuple[str, ...] = ("minmax", "moving_average", "percentile", "mse", "entropy")
WEIGHT_OBSERVERS: tuple[str, ...] = ("minmax", "mse")


@dataclass(frozen=True)
class QuantConfig:
    """What `fastcompress.quantize` does, in every detail; ``QuantConfig("W8A8")`` is the same as the string.

    Attributes:
        scheme: ``"W8A8"``: static int8 activations, convolutions and linears, needs calibration data.
            ``"W8A8-dynamic"``: activations quantized per token at run time, linears only.
        targets: quantize only these modules: names, ``"re:…"`` patterns (whole name), or classes. None means all.
        ignore: never quantize these; the same notation, and stronger than ``targets``.
        observer: how static activation ranges are found: minmax, moving_average, percentile, mse, entropy.
        observer_options: keyword arguments of the observer, for example ``{"percentile": 99.99}``.
        weight_observer: how weight scales are found: ``"minmax"`` (largest magnitude) or ``"mse"``.
        symmetric_activations: quantize activations symmetrically around zero point 128.
        fuse: fold BatchNorm into its layer, and activations into the epilogue.
        smoothquant: migration strength α in [0, 1] (Xiao et al. 2022, eq. 4), or None to leave it out.
        equalize: cross-layer equalization (Nagel et al. 2019, section 4.1).
        bias_correction: correct the mean shift that weight rounding causes (Nagel et al. 2019, section 4.2).
        only_if_faster: keep the dense layer where int8 is not measured faster on this machine.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> config = QuantConfig("W8A8", observer="percentile", ignore=("classifier", "re:.*lm_head"))
    """

    scheme: str = "W8A8"
    targets: tuple[Target, ...] | None = None
    ignore: tuple[Target, ...] = ()
    observer: str = "minmax"
    observer_options: Mapping[str, Any] = field(default_factory=dict)
    weight_observer: str = "minmax"
    symmetric_activations: bool = False
    fuse: bool = True
    smoothquant: float | None = None
    equalize: bool = False
    bias_correction: bool = False
    only_if_faster: bool = True

    def __post_init__(self) -> None:
        check_choice("QuantConfig", "scheme", self.scheme, SCHEMES)
        check_choice("QuantConfig", "observer", self.observer, ACTIVATION_OBSERVERS)
        check_choice("QuantConfig", "weight_observer", self.weight_observer, WEIGHT_OBSERVERS)
        if self.targets is not None:
            object.__setattr__(self, "targets", target_tuple("QuantConfig", "targets", self.targets))
            if not self.targets:
                raise ValueError("QuantConfig: targets is empty; use None for all layers")
        object.__setattr__(self, "ignore", target_tuple("QuantConfig", "ignore", self.ignore))
        if not isinstance(self.observer_options, Mapping) or not all(isinstance(k, str) for k in self.observer_options):
            raise TypeError(
                f"QuantConfig: observer_options must map option names to values, got {self.observer_options!r:.80}"
            )
        object.__setattr__(self, "observer_options", dict(self.observer_options))
        for name in ("symmetric_activations", "fuse", "equalize", "bias_correction", "only_if_faster"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"QuantConfig: {name} must be True or False, got {value!r:.80}")
        self._check_smoothquant()
        if self.observer_options and self.input_mode != "static":
            raise ValueError(
                f"QuantConfig: observer_options belong to static activations, scheme is {self.scheme!r}; leave them out"
            )
        if self.equalize and self.input_mode != "static":
            raise ValueError(
                f"QuantConfig: equalize=True needs scheme 'W8A8', got {self.scheme!r}: it balances consecutive "
                "layers whose activations share one range; for per-token activations use smoothquant=0.5"
            )

    @property
    def input_mode(self) -> str:
        """The layers' ``input_mode``: static, dynamic or dynamic_symmetric."""
        mode = SCHEMES[self.scheme]
        return "dynamic_symmetric" if mode == "dynamic" and self.symmetric_activations else mode

    def replace(self, **changes: Any) -> QuantConfig:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; classes become ``"module:qualname"`` (for the record, not for reading back)."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("targets", "ignore"):
            if values[name] is not None:
                values[name] = [t if isinstance(t, str) else f"{t.__module__}:{t.__qualname__}" for t in values[name]]
        values["observer_options"] = {key: _plain(value) for key, value in self.observer_options.items()}
        return values

    def _check_smoothquant(self) -> None:
        if self.smoothquant is None:
            return
        if isinstance(self.smoothquant, bool) or not isinstance(self.smoothquant, (int, float)):
            raise TypeError(f"QuantConfig: smoothquant must be None or in [0, 1], got {self.smoothquant!r:.80}")
        if not math.isfinite(self.smoothquant) or not 0.0 <= self.smoothquant <= 1.0:
            raise ValueError(f"QuantConfig: smoothquant must lie in [0, 1], got {self.smoothquant!r}")
        object.__setattr__(self, "smoothquant", float(self.smoothquant))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
