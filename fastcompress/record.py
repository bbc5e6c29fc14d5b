"""What was done to each layer of a model and why; travels with the model through deepcopy, save and load."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ACTIONS", "RECORD_ATTRIBUTE", "CompressionRecord", "LayerDecision", "record_of"]

#: The attribute of the model that holds its `CompressionRecord`.
RECORD_ATTRIBUTE = "_fastcompress_record"

#: quantized: runs on an int8 kernel. sparse: runs on a block-sparse float kernel. kept: could be compressed, dense is
#: faster here or was asked for. skipped: cannot be compressed, the reason says why. fused: folded into another layer,
#: ``nn.Identity`` now.
ACTIONS: tuple[str, ...] = ("quantized", "sparse", "kept", "skipped", "fused")


@dataclass(frozen=True)
class LayerDecision:
    """The decision about one module.

    Attributes:
        name: the module's name in the model (the first one, if it has several).
        kind: the class it had before compression, for example ``"Conv2d"``.
        action: one of `ACTIONS`.
        reason: one sentence for humans.
        shapes: input shapes that the decision rests on.
        dense_seconds, quantized_seconds: measured time of one call of the dense and of the compressed (int8 or sparse)
            layer, averaged over ``shapes``; None when not measured.
        activation: activation fused into the layer's epilogue, or ``"none"``.
        kernel: name of the kernel that runs it, empty when unknown or dense.
    """

    name: str
    kind: str
    action: str
    reason: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    dense_seconds: float | None = None
    quantized_seconds: float | None = None
    activation: str = "none"
    kernel: str = ""

    @property
    def speedup(self) -> float | None:
        """Dense time over the compressed layer's, or None when not measured."""
        if not self.dense_seconds or not self.quantized_seconds:
            return None
        return self.dense_seconds / self.quantized_seconds

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        return dataclasses.asdict(self) | {"shapes": [list(shape) for shape in self.shapes]}

    @classmethod
    def from_json(cls, data: object, where: str = "record") -> LayerDecision:
        """Read back what `to_json` wrote; ``ValueError`` names the field that is wrong."""
        values = _checked(data, cls, where)
        for key in ("name", "kind", "action", "reason", "activation", "kernel"):
            if not isinstance(values.get(key, ""), str):
                raise ValueError(f"{where}: {key} must be a string, got {values[key]!r:.80}")
        if values["action"] not in ACTIONS:
            raise ValueError(f"{where}: action {values['action']!r:.80} is not one of {', '.join(ACTIONS)}")
        for key in ("dense_seconds", "quantized_seconds"):
            value = values.get(key)
            if value is not None and (not _is_number(value) or value < 0 or not math.isfinite(value)):
                raise ValueError(f"{where}: {key} must be null or a number of seconds, got {value!r:.80}")
        values["shapes"] = _shapes(values.get("shapes", []), where)
        return cls(**values)


@dataclass(frozen=True)
class CompressionRecord:
    """All decisions about one model, in the order of its modules.

    Example:
        >>> record = fc.quantize(model, "W8A8", batches)._fastcompress_record
        >>> record.counts()
        {'quantized': 53, 'fused': 86}
    """

    scheme: str
    config: Mapping[str, Any]
    layers: tuple[LayerDecision, ...]
    fastcompress_version: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[LayerDecision]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> LayerDecision:
        """The decision about the module called ``name``; ``KeyError`` when there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def counts(self) -> dict[str, int]:
        """Action → number of modules, in the order of `ACTIONS`."""
        counter = Counter(layer.action for layer in self.layers)
        return {action: counter[action] for action in ACTIONS if counter[action]}

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        return {
            "scheme": self.scheme,
            "config": dict(self.config),
            "layers": [layer.to_json() for layer in self.layers],
            "fastcompress_version": self.fastcompress_version,
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, data: object) -> CompressionRecord:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: the message names the field.
        """
        values = _checked(data, cls, "record")
        for key in ("scheme", "fastcompress_version"):
            if not isinstance(values[key], str):
                raise ValueError(f"record: {key} must be a string, got {values[key]!r:.80}")
        for key in ("config", "environment"):
            if not isinstance(values.get(key, {}), Mapping):
                raise ValueError(f"record: {key} must be an object, got {values[key]!r:.80}")
        if not isinstance(values["layers"], (list, tuple)):
            raise ValueError(f"record: layers must be a list, got {values['layers']!r:.80}")
        layers = tuple(LayerDecision.from_json(layer, f"record: layer {i}") for i, layer in enumerate(values["layers"]))
        return cls(**(values | {"layers": layers}))


def record_of(model: object) -> CompressionRecord | None:
    """The record that ``model`` carries, or None."""
    record = getattr(model, RECORD_ATTRIBUTE, None)
    return record if isinstance(record, CompressionRecord) else None


def _checked(data: object, cls: type[Any], where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: must be an object, got {data!r:.80}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in known:
            raise ValueError(f"{where}: unknown field {key!r:.80}; allowed are {', '.join(known)}")
    for name, f in known.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: field {name!r} is missing")
    return dict(data)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shapes(value: object, where: str) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(shape, (list, tuple)) and all(type(d) is int and d >= 0 for d in shape) for shape in value
    ):
        raise ValueError(f"{where}: shapes must be lists of non-negative integers, got {value!r:.80}")
    return tuple(tuple(shape) for shape in value)
