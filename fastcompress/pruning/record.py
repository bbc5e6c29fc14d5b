"""What `prune` did to each layer and why; travels with the model through deepcopy."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PRUNING_ACTIONS", "PRUNING_ATTRIBUTE", "PruneDecision", "PruneRecord", "pruning_of"]

#: The attribute of the model that holds its `PruneRecord`.
PRUNING_ATTRIBUTE = "_fastcompress_pruning"

#: pruned: carries a mask now, or lost channels. kept: nobody asked for it. skipped: asked for, but impossible.
PRUNING_ACTIONS: tuple[str, ...] = ("pruned", "kept", "skipped")


@dataclass(frozen=True)
class PruneDecision:
    """The decision about one layer.

    Attributes:
        name: the layer's name in the model (the first one, if it has several).
        kind: its class, for example ``"Conv2d"``.
        action: one of `PRUNING_ACTIONS`.
        pattern: name of the pattern, empty unless pruned.
        asked: the sparsity asked for; None where nothing was asked for.
        achieved: fraction of the weight that is masked now, an earlier mask included; None unless pruned.
        retained: share of the criterion's score that is kept, in [0, 1]; None unless pruned.
        reason: one sentence for humans.
        gain: what the permutation added to ``retained``; None without one.
    """

    name: str
    kind: str
    action: str
    pattern: str = ""
    asked: float | None = None
    achieved: float | None = None
    retained: float | None = None
    reason: str = ""
    gain: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class PruneRecord:
    """All decisions about one model, in the order of its modules.

    Attributes:
        config: the arguments of the last `prune`, see `PruneConfig.to_json`.
        layers: one decision per layer.

    Example:
        >>> record = pruning_of(fc.prune(model, 0.9, "16x4"))
        >>> record.counts()
        {'pruned': 36, 'skipped': 1}
    """

    config: Mapping[str, Any]
    layers: tuple[PruneDecision, ...]

    def __iter__(self) -> Iterator[PruneDecision]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> PruneDecision:
        """The decision about the layer called ``name``; ``KeyError`` when there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def counts(self) -> dict[str, int]:
        """Action → number of layers, in the order of `PRUNING_ACTIONS`."""
        counter = Counter(layer.action for layer in self.layers)
        return {action: counter[action] for action in PRUNING_ACTIONS if counter[action]}

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        return {"config": dict(self.config), "layers": [layer.to_json() for layer in self.layers]}


def pruning_of(model: object) -> PruneRecord | None:
    """The record that `prune` attached to ``model``, or None."""
    record = getattr(model, PRUNING_ATTRIBUTE, None)
    return record if isinstance(record, PruneRecord) else None
