"""The settings of compressed-tensors: groups of layers, each with a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcompress.formats.checkpoints.patterns import NamePattern
from fastcompress.formats.checkpoints.settings import Settings, UnsupportedScheme

__all__ = ["INT", "PACKED", "LayerScheme", "Schemes", "by_scheme"]

PACKED, INT = "pack-quantized", "int-quantized"
_FORMATS = {PACKED, INT}
_MIXED = "mixed-precision"
_MAX_TARGETS = 1000
_MAX_NAME_CHARS = 1000


@dataclass(frozen=True)
class LayerScheme:
    """How the layers of one group are quantized.

    Attributes:
        bits: 4 or 8.
        strategy: of the weights: ``"group"``, ``"channel"`` or ``"tensor"``.
        group_size: inputs that share a scale; None for all of them.
        symmetric: no zero points.
        act_order: groups are of any inputs, a tensor says which.
        format: ``"pack-quantized"`` or ``"int-quantized"``.
        input_mode: of the activations: ``"dynamic_16bit"``, ``"static"``, ``"dynamic"`` or ``"dynamic_symmetric"``.
    """

    bits: int
    strategy: str
    group_size: int | None
    symmetric: bool
    act_order: bool
    format: str
    input_mode: str


def _integers(settings: Settings) -> None:
    settings.string("type", default="int", allowed={"int"})


def _input_mode(value: Any, where: str) -> str:
    """int8 activations: per token at run time, or with one scale from calibration."""
    if value is None:
        return "dynamic_16bit"
    settings = Settings(value, where)
    _integers(settings)
    settings.bits("num_bits", allowed=(8,))
    symmetric = settings.boolean("symmetric", default=True)
    if settings.boolean("dynamic", default=False):
        settings.string("strategy", default="token", allowed={"token"})
        return "dynamic_symmetric" if symmetric else "dynamic"
    settings.string("strategy", default="tensor", allowed={"tensor"})
    return "static"


def _layer_scheme(group: Settings, default_format: str) -> LayerScheme:
    weights = Settings(group.any("weights"), f"{group.where}: weights")
    _integers(weights)
    bits = weights.bits("num_bits", allowed=(4, 8))
    size = weights.group_size("group_size")
    strategy = weights.string(
        "strategy", default="channel" if size is None else "group", allowed={"group", "channel", "tensor"}
    )
    if (strategy == "group") != (size is not None):
        raise weights.error("group_size", f"does not go with the strategy {strategy!r}")
    symmetric = weights.boolean("symmetric", default=True)
    if not symmetric and bits == 8:
        raise UnsupportedScheme(f"{weights.where}: 8-bit weights with zero points are not supported")
    weights.refuse("dynamic", "block_structure")
    act_order = _act_order(weights)
    group.refuse("output_activations")
    layout = group.string("format", default=default_format, allowed=_FORMATS)
    mode = _input_mode(group.any("input_activations"), f"{group.where}: input_activations")
    return LayerScheme(bits, strategy, size, symmetric, act_order, layout, mode)


def _act_order(weights: Settings) -> bool:
    """Whether a tensor gives the groups; with ``"weight"`` (``"static"``) they are of neighbouring inputs anyway."""
    value = weights.any("actorder")
    if value is None or isinstance(value, bool):
        return bool(value)
    return weights.string("actorder", allowed={"group", "dynamic", "weight", "static"}) in ("group", "dynamic")


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) > _MAX_TARGETS or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: must be a list of at most {_MAX_TARGETS} strings")
    return value


class _Names:
    """Module names, ``re:`` patterns and class names."""

    def __init__(self, values: list[str]) -> None:
        self.exact = {value for value in values if not value.startswith("re:")}
        self.patterns = [NamePattern(value[3:]) for value in values if value.startswith("re:")]

    def rank(self, name: str) -> int:
        """How well a module fits: 4 by its name, 3 by a pattern, 2 by its class, 1 by another class, 0 not at all.

        The class is guessed from the name: GPT-NeoX's ``embed_out`` looks like an embedding, but is a linear layer.
        """
        if name in self.exact:
            return 4
        if any(pattern.matches(name) for pattern in self.patterns):
            return 3
        embedding = "embed" in name.rpartition(".")[2]
        if embedding and "Embedding" in self.exact:
            return 2
        return (1 if embedding else 2) if "Linear" in self.exact else 0


class Schemes:
    """All groups of the settings.

    Raises:
        ValueError: the message names the field.
    """

    def __init__(self, settings: Settings) -> None:
        layout = settings.string("format", default=PACKED, allowed=_FORMATS | {_MIXED})
        settings.string("quantization_status", default="compressed", allowed={"compressed", "frozen"})
        settings.refuse("kv_cache_scheme", "transform_config")
        sparsity = settings.any("sparsity_config")
        if sparsity:
            Settings(sparsity, f"{settings.where}: sparsity_config").string(
                "format", default="dense", allowed={"dense"}
            )
        groups = settings.any("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise settings.error("config_groups", "must be a JSON object with at least one group")
        self._groups: list[tuple[_Names, LayerScheme]] = []
        for key, value in groups.items():
            group = Settings(value, f"{settings.where}: config_groups: {key!r:.60}")
            targets = _Names(_strings(group.any("targets"), f"{group.where}: targets"))
            self._groups.append((targets, _layer_scheme(group, PACKED if layout == _MIXED else layout)))
        ignored = settings.any("ignore")
        self._ignored = _Names([] if ignored is None else _strings(ignored, f"{settings.where}: ignore"))

    def of(self, module: str) -> LayerScheme:
        """The scheme of a module that has quantized tensors.

        Raises:
            ValueError: no group has it, or it is to be ignored.
        """
        if len(module) > _MAX_NAME_CHARS:
            raise ValueError(f"the module's name has {len(module)} characters, {_MAX_NAME_CHARS} are allowed")
        if self._ignored.rank(module) >= 3:
            raise ValueError("the settings say to ignore this module, yet it has quantized tensors")
        ranked = [(targets.rank(module), scheme) for targets, scheme in self._groups]
        best = max(rank for rank, _ in ranked)
        if best == 0:
            raise ValueError("no group of the settings has this module, yet it has quantized tensors")
        return next(scheme for rank, scheme in ranked if rank == best)


def by_scheme(schemes: Mapping[str, LayerScheme]) -> dict[LayerScheme, list[str]]:
    """Modules of each scheme, the largest group first."""
    groups: dict[LayerScheme, list[str]] = {}
    for module, scheme in schemes.items():
        groups.setdefault(scheme, []).append(module)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))
