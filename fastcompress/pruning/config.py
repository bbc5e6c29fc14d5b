"""The configuration of `prune`: one frozen dataclass that refuses every wrong value by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcompress.models.choices import check_choice
from fastcompress.models.targets import Target, target_tuple

from .checks import check_seed, checked_pattern, checked_sparsities, config_json
from .criteria import CRITERIA
from .patterns import Pattern, parse_pattern

__all__ = ["PERMUTATIONS", "SCOPES", "PruneConfig"]

SCOPES: tuple[str, ...] = ("local", "global")

#: Besides True (what the pattern needs most: inputs where blocks are wider than one, otherwise outputs) and False.
PERMUTATIONS: tuple[str, ...] = ("inputs", "outputs", "both")


@dataclass(frozen=True)
class PruneConfig:
    """What `fastcompress.prune` does, in every detail.

    Attributes:
        sparsity: pruned fraction of every layer, in [0, 1); or target → fraction, where layers that no key matches stay
            dense, later keys override earlier ones, and a layer's own name overrides patterns, classes and containers.
        pattern: ``"unstructured"``, blocks of outputs × inputs (``"16x4"``), ``"2:4"``, or ``"channel"``.
        criterion: magnitude, wanda, sparsegpt, taylor or random.
        scope: ``"local"``: each layer has the sparsity; ``"global"``: all of them together, by one threshold on scores
            over their layer's mean.
        targets: prune only these modules: names, ``"re:…"`` patterns (whole name), or classes. None means all.
        ignore: never prune these; the same notation, and stronger than ``targets``.
        seed: of criterion random, and of the permutation search.
        permute: reorder ``"inputs"``, ``"outputs"`` or ``"both"`` so that blocks hold more of the score; True picks.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> config = PruneConfig(0.9, "16x4", "sparsegpt", ignore=("classifier",))
    """

    sparsity: float | Mapping[Target, float]
    pattern: str = "unstructured"
    criterion: str = "magnitude"
    scope: str = "local"
    targets: tuple[Target, ...] | None = None
    ignore: tuple[Target, ...] = ()
    seed: int = 0
    permute: bool | str = False

    def __post_init__(self) -> None:
        parsed = checked_pattern("prune", self.pattern)
        object.__setattr__(self, "pattern", str(parsed))
        check_choice("prune", "criterion", self.criterion, CRITERIA)
        self._check_scope(parsed)
        if self.targets is not None:
            object.__setattr__(self, "targets", target_tuple("prune", "targets", self.targets))
            if not self.targets:
                raise ValueError("prune: targets is empty; use None for all layers")
        object.__setattr__(self, "ignore", target_tuple("prune", "ignore", self.ignore))
        object.__setattr__(self, "sparsity", checked_sparsities("prune", self.sparsity, parsed))
        check_seed("prune", self.seed)
        self._check_permute(parsed)

    @property
    def parsed(self) -> Pattern:
        """The pattern as a `Pattern`."""
        return parse_pattern(self.pattern)

    @property
    def permuted_dims(self) -> tuple[bool, bool]:
        """Whether (inputs, outputs) are permuted."""
        if self.permute is True:
            wide = self.parsed.block_cols > 1
            return wide, not wide
        return self.permute in ("inputs", "both"), self.permute in ("outputs", "both")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; classes become ``"module:qualname"`` (for the record, not for reading back)."""
        return config_json(self)

    def _check_scope(self, pattern: Pattern) -> None:
        check_choice("prune", "scope", self.scope, SCOPES)
        if self.scope == "global":
            if self.criterion == "sparsegpt":
                raise ValueError(
                    "prune: criterion 'sparsegpt' chooses masks layer by layer, scope is 'global'; use scope='local' "
                    "or another criterion"
                )
            if pattern.kind == "nm":
                raise ValueError(
                    f"prune: pattern {str(pattern)!r} has the same sparsity everywhere, scope is 'global'; use "
                    "scope='local'"
                )
            if isinstance(self.sparsity, Mapping):
                raise ValueError(
                    "prune: scope='global' takes one sparsity for all layers, got a mapping; use scope='local' or a "
                    "number"
                )

    def _check_permute(self, pattern: Pattern) -> None:
        if not isinstance(self.permute, bool) and self.permute not in PERMUTATIONS:
            listed = ", ".join(repr(name) for name in PERMUTATIONS)
            raise ValueError(f"prune: permute must be True, False, {listed}; got {self.permute!r:.80}")
        if not self.permute:
            return
        if pattern.kind != "block":
            raise ValueError(
                f"prune: permute={self.permute!r} needs a block pattern such as '16x4', got {str(pattern)!r}; leave "
                "it out"
            )
        if self.scope == "global":
            raise ValueError(
                f"prune: permute={self.permute!r} searches at each layer's own sparsity, scope is 'global'; use "
                "scope='local'"
            )
        inputs, outputs = self.permuted_dims
        for name, wanted, size in (("inputs", inputs, pattern.block_cols), ("outputs", outputs, pattern.block_rows)):
            if wanted and size == 1:
                raise ValueError(
                    f"prune: permute={self.permute!r} has no effect on the {name} of pattern {str(pattern)!r}, whose "
                    "blocks are one wide there; leave it out"
                )
