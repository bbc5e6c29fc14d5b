"""The configuration of `quantize`: one frozen dataclass that refuses every wrong value by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastcompress.models.choices import check_choice
from fastcompress.models.targets import Target, target_tuple
from fastcompress.schemes import ALGORITHMS, SCALE_DTYPES, SCHEMES, Scheme

__all__ = ["ACTIVATION_OBSERVERS", "SCHEMES", "WEIGHT_OBSERVERS", "QuantConfig", "Target"]

ACTIVATION_OBSERVERS: tuple[str, ...] = ("minmax", "moving_average", "percentile", "mse", "entropy")
WEIGHT_OBSERVERS: tuple[str, ...] = ("minmax", "mse")

_FLAGS = ("symmetric_activations", "fuse", "equalize", "bias_correction", "only_if_faster", "symmetric_weights")


@dataclass(frozen=True)
class QuantConfig:
    """What `fastcompress.quantize` does, in every detail; ``QuantConfig("W8A8")`` is the same as the string.

    Attributes:
        scheme: ``"W8A8"``: static int8 activations, convolutions and linears, needs calibration data.
            ``"W8A8-dynamic"``: activations quantized per token at run time, linears only. ``"W4A8"``: four-bit weights
            in groups, activations int8 per token, linears only. ``"W4A16"``, ``"W8A16"``: weights in groups, linears
            only.
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
        only_if_faster: keep the dense layer where int8 is not measured faster on this machine. Weight-only schemes
            (``"W4A16"``, ``"W8A16"``) always replace: they are for size as well.
        algorithm: how weights in groups are found: ``"rtn"`` (each to the nearest), ``"hqq"`` (no data), ``"gptq"`` and
            ``"awq"`` (calibration data).
        algorithm_options: fields of `fastcompress.quantization.groupwise.GroupwiseOptions`, and ``checkpoint_dir``, a
            directory where ``"gptq"`` and ``"awq"`` keep finished blocks and go on after an interruption.
        group_size: inputs that share a scale, a multiple of 8; -1 is the whole row, None is 128.
        symmetric_weights: weights in groups lie around zero; False (four bits only): each group has a zero point.
        scale_dtype: what scales of groups are stored as: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        conv_bits: of convolutions' weights (``"W8A8"`` only): 8, or 4, which halves them again; the arithmetic stays
            int8. Depthwise and block-sparse convolutions keep eight.
        embedding_bits: 4 or 8 quantizes embeddings too, in such groups, and the output heads that share their weight;
            None leaves both. Schemes with groups only.

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
    algorithm: str = "rtn"
    algorithm_options: Mapping[str, Any] = field(default_factory=dict)
    group_size: int | None = None
    symmetric_weights: bool = True
    scale_dtype: str = "bfloat16"
    embedding_bits: int | None = None
    conv_bits: int = 8

    def __post_init__(self) -> None:
        check_choice("QuantConfig", "scheme", self.scheme, SCHEMES)
        check_choice("QuantConfig", "observer", self.observer, ACTIVATION_OBSERVERS)
        check_choice("QuantConfig", "weight_observer", self.weight_observer, WEIGHT_OBSERVERS)
        if self.targets is not None:
            object.__setattr__(self, "targets", target_tuple("QuantConfig", "targets", self.targets))
            if not self.targets:
                raise ValueError("QuantConfig: targets is empty; use None for all layers")
        object.__setattr__(self, "ignore", target_tuple("QuantConfig", "ignore", self.ignore))
        for name in ("observer_options", "algorithm_options"):
            options = getattr(self, name)
            if not isinstance(options, Mapping) or not all(isinstance(k, str) for k in options):
                raise TypeError(f"QuantConfig: {name} must map option names to values, got {options!r:.80}")
            object.__setattr__(self, name, dict(options))
        for name in _FLAGS:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"QuantConfig: {name} must be True or False, got {value!r:.80}")
        self._check_smoothquant()
        self._check_groups()
        self._check_conv_bits()
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
    def kind(self) -> Scheme:
        """What the scheme does."""
        return SCHEMES[self.scheme]

    @property
    def inputs_per_group(self) -> int | None:
        """Inputs that share a scale; None for the whole row."""
        size = self.kind.group_size if self.group_size is None else self.group_size
        return None if size == -1 else size

    @property
    def input_mode(self) -> str:
        """The layers' ``input_mode``: static, dynamic or dynamic_symmetric."""
        mode = SCHEMES[self.scheme].input_mode
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
        for name in ("observer_options", "algorithm_options"):
            values[name] = {key: _plain(value) for key, value in values[name].items()}
        return values

    def _check_smoothquant(self) -> None:
        if self.smoothquant is None:
            return
        if isinstance(self.smoothquant, bool) or not isinstance(self.smoothquant, (int, float)):
            raise TypeError(f"QuantConfig: smoothquant must be None or in [0, 1], got {self.smoothquant!r:.80}")
        if not math.isfinite(self.smoothquant) or not 0.0 <= self.smoothquant <= 1.0:
            raise ValueError(f"QuantConfig: smoothquant must lie in [0, 1], got {self.smoothquant!r}")
        object.__setattr__(self, "smoothquant", float(self.smoothquant))

    def _check_conv_bits(self) -> None:
        if isinstance(self.conv_bits, bool) or self.conv_bits not in (4, 8):
            raise ValueError(f"QuantConfig: conv_bits must be 4 or 8, got {self.conv_bits!r:.80}")
        if self.conv_bits != 8 and self.input_mode != "static":
            raise ValueError(
                f"QuantConfig: conv_bits={self.conv_bits} belongs to scheme 'W8A8', which quantizes convolutions; "
                f"scheme is {self.scheme!r}; leave it out"
            )

    def _check_groups(self) -> None:
        check_choice("QuantConfig", "algorithm", self.algorithm, ALGORITHMS)
        check_choice("QuantConfig", "scale_dtype", self.scale_dtype, SCALE_DTYPES)
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise TypeError(f"QuantConfig: group_size must be None, -1 or a multiple of 8, got {size!r:.80}")
        if size is not None and size != -1 and (size < 1 or size % 8):
            raise ValueError(f"QuantConfig: group_size must be None, -1 (the whole row) or a multiple of 8, got {size}")
        if self.embedding_bits not in (None, 4, 8):
            raise ValueError(f"QuantConfig: embedding_bits must be None, 4 or 8, got {self.embedding_bits!r:.80}")
        kind = self.kind
        if not kind.grouped:
            self._refuse_options_of_groups()
            return
        if kind.weight_bits == 8 and not self.symmetric_weights:
            raise ValueError("QuantConfig: symmetric_weights=False is for four bits; int8 weights have no zero points")
        if self.bias_correction or (kind.weight_only and self.smoothquant is not None):
            name = "bias_correction" if self.bias_correction else "smoothquant"
            raise ValueError(
                f"QuantConfig: {name} does not go with scheme {self.scheme!r}; algorithm='gptq' or 'awq' makes up for "
                "rounded weights"
            )

    def _refuse_options_of_groups(self) -> None:
        """Options of schemes with groups, given to another one, would do nothing."""
        fresh = {f.name: f.default for f in dataclasses.fields(self)}
        given = {"algorithm", "group_size", "symmetric_weights", "scale_dtype", "embedding_bits"}
        changed = sorted(name for name in given if getattr(self, name) != fresh[name])
        changed += ["algorithm_options"] if self.algorithm_options else []
        if changed:
            allowed = ", ".join(name for name, kind in SCHEMES.items() if kind.grouped)
            raise ValueError(
                f"QuantConfig: {changed[0]}={getattr(self, changed[0])!r:.60} belongs to schemes with groups "
                f"({allowed}), scheme is {self.scheme!r}; leave it out"
            )


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
