"""The configuration of `Pruner`: one frozen dataclass that refuses every wrong value by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcompress.models.choices import check_choice
from fastcompress.models.targets import Target, target_tuple

from .checks import check_seed, checked_pattern, checked_sparsities, checked_sparsity, config_json
from .config import SCOPES
from .patterns import Pattern, parse_pattern
from .schedules import SCHEDULES, round_steps

__all__ = ["REGROWTHS", "REGROW_DECAYS", "TRAINING_CRITERIA", "PrunerConfig"]

TRAINING_CRITERIA: tuple[str, ...] = ("magnitude", "taylor", "movement", "random")

#: Criteria that need gradients, so a model that has not been trained for a step yet cannot be pruned by them.
_NEED_GRADIENTS = ("taylor", "movement")

REGROWTHS: tuple[str, ...] = ("rigl",)
REGROW_DECAYS: tuple[str, ...] = ("cosine", "none")


@dataclass(frozen=True)
class PrunerConfig:
    """What a `Pruner` does, in every detail. Steps are optimizer steps; step 0 is before the first.

    Attributes:
        sparsity: pruned fraction of every layer at the end, in [0, 1); or target → fraction, see `PruneConfig`.
        pattern: ``"unstructured"``, blocks of outputs × inputs (``"16x4"``), ``"2:4"``, or ``"channel"``. On its way an
            N:M pattern covers a growing part of the groups of M. For channels ``sparsity`` is the fraction of them.
        criterion: magnitude; taylor, |w dL/dw| summed over the steps since the last update; movement, -w dL/dw summed
            over all steps; random.
        scope: ``"local"``: each layer has the sparsity; ``"global"``: all of them together, see `PruneConfig`.
        schedule: ``"constant"`` and ``"one-shot"``: all at ``start_step``, ``"linear"``, ``"cubic"``, or
            ``"iterative"``, which prunes in ``rounds``; see `fastcompress.pruning.schedules`. Only ``"one-shot"`` and
            ``"iterative"`` never update the masks in between.
        start_step, end_step: the first and the last step at which masks change; None means ``start_step``.
        frequency: steps between updates of the masks.
        initial_sparsity: before ``start_step``, from the construction on.
        rounds: of schedule iterative, spread evenly from ``start_step`` to ``end_step``.
        rewind_step: iterative: at each round all parameters go back to what they were after this step; None: no rewind.
        regrow: ``"rigl"``: at updates after the first, the least important of the kept weights make place for as many
            pruned ones with the largest gradients, which start at zero. Never with rewind or channels.
        regrow_fraction: fraction of a layer's kept weights that move, in (0, 1].
        regrow_decay: ``"cosine"``: the fraction falls to zero at ``end_step``; ``"none"``: it stays.
        targets: prune only these modules: names, ``"re:…"`` patterns (whole name), or classes. None means all.
        ignore: never prune these; the same notation, and stronger than ``targets``.
        round_to: pattern channel: layers keep a multiple of this many channels.
        seed: of criterion random.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.

    Example:
        >>> config = PrunerConfig(0.9, "4x4", start_step=0, end_step=3000, frequency=100)
        >>> config.sparsity_at(1500)
        0.7875

    Source: movement: Sanh et al. (arXiv 2005.07683), equation 3; rigl: Evci et al. (arXiv 1911.11134), section 3;
    rewinding: Frankle et al. (arXiv 1912.05671); the schedules' are with their functions.
    """

    sparsity: float | Mapping[Target, float]
    pattern: str = "unstructured"
    criterion: str = "magnitude"
    scope: str = "local"
    schedule: str = "cubic"
    start_step: int = 0
    end_step: int | None = None
    frequency: int = 1
    initial_sparsity: float = 0.0
    rounds: int = 1
    rewind_step: int | None = None
    regrow: str | None = None
    regrow_fraction: float = 0.3
    regrow_decay: str = "cosine"
    targets: tuple[Target, ...] | None = None
    ignore: tuple[Target, ...] = ()
    round_to: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        parsed = checked_pattern("PrunerConfig", self.pattern)
        object.__setattr__(self, "pattern", str(parsed))
        check_choice("PrunerConfig", "criterion", self.criterion, TRAINING_CRITERIA)
        check_choice("PrunerConfig", "scope", self.scope, SCOPES)
        check_choice("PrunerConfig", "schedule", self.schedule, tuple(SCHEDULES))
        if self.targets is not None:
            object.__setattr__(self, "targets", target_tuple("PrunerConfig", "targets", self.targets))
            if not self.targets:
                raise ValueError("PrunerConfig: targets is empty; use None for all layers")
        object.__setattr__(self, "ignore", target_tuple("PrunerConfig", "ignore", self.ignore or ()))
        object.__setattr__(self, "sparsity", checked_sparsities("PrunerConfig", self.sparsity, parsed))
        check_seed("PrunerConfig", self.seed)
        self._check_steps()
        self._check_initial(parsed)
        self._check_rounds()
        self._check_regrow(parsed)
        self._check_scope(parsed)

    @property
    def parsed(self) -> Pattern:
        """The pattern as a `Pattern`."""
        return parse_pattern(self.pattern)

    @property
    def last_step(self) -> int:
        """The last step at which masks change."""
        if self.end_step is None or (self.schedule == "iterative" and self.rounds == 1):
            return self.start_step
        return self.end_step

    def sparsity_at(self, step: int, final: float | None = None) -> float:
        """The scheduled sparsity after ``step`` optimizer steps, of a layer that shall end at ``final``.

        Raises:
            ValueError: ``final`` is None and the configuration has a sparsity per layer.
        """
        if final is None:
            if isinstance(self.sparsity, Mapping):
                raise ValueError("PrunerConfig.sparsity_at: sparsity is a mapping; pass final, one layer's sparsity")
            final = self.sparsity
        return SCHEDULES[self.schedule](
            step,
            final,
            start=self.start_step,
            end=self.last_step,
            rounds=self.rounds,
            initial=self.initial_sparsity,
        )

    def is_due(self, step: int) -> bool:
        """Whether the masks change after ``step`` optimizer steps."""
        if not self.start_step <= step <= self.last_step:
            return False
        if self.schedule == "iterative":
            return step in round_steps(self.start_step, self.last_step, self.rounds)
        return step == self.last_step or (step - self.start_step) % self.frequency == 0

    def regrow_share(self, step: int) -> float:
        """The fraction of kept weights that moves at ``step``; zero where nothing regrows."""
        if self.regrow is None or not self.start_step < step < self.last_step:
            return 0.0
        if self.regrow_decay == "none":
            return self.regrow_fraction
        progress = (step - self.start_step) / (self.last_step - self.start_step)
        return self.regrow_fraction / 2.0 * (1.0 + math.cos(math.pi * progress))

    def replace(self, **changes: Any) -> PrunerConfig:
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; classes become ``"module:qualname"`` (for the record, not for reading back)."""
        return config_json(self)

    def _check_steps(self) -> None:
        for name, least in (("start_step", 0), ("end_step", 0), ("frequency", 1), ("rounds", 1), ("round_to", 1)):
            value = getattr(self, name)
            if value is not None or name != "end_step":
                _check_int(name, value, least)
        if self.end_step is not None and self.end_step < self.start_step:
            raise ValueError(
                f"PrunerConfig: end_step must not be before start_step={self.start_step}, got {self.end_step}"
            )
        if self.schedule == "one-shot" and self.end_step not in (None, self.start_step):
            raise ValueError(
                f"PrunerConfig: schedule 'one-shot' prunes at start_step={self.start_step} only, end_step is "
                f"{self.end_step}; leave it out, or use 'constant'"
            )
        if self.end_step is None and self.schedule in ("linear", "cubic"):
            raise ValueError(
                f"PrunerConfig: schedule {self.schedule!r} needs end_step, the step at which it reaches the sparsity"
            )

    def _check_initial(self, pattern: Pattern) -> None:
        # An N:M pattern is reached group by group, so every fraction up to its own is possible.
        free = Pattern("unstructured") if pattern.kind == "nm" else pattern
        initial = checked_sparsity("PrunerConfig", "initial_sparsity", self.initial_sparsity, free)
        object.__setattr__(self, "initial_sparsity", initial)
        finals = self.sparsity.values() if isinstance(self.sparsity, Mapping) else (self.sparsity,)
        smallest = min((value for value in finals if value > 0.0), default=0.0)
        if initial > smallest:
            raise ValueError(
                f"PrunerConfig: initial_sparsity must not exceed the final sparsity {smallest:.4g}, got {initial:.4g}"
            )
        at_once = max((self.sparsity_at(0, value) for value in finals), default=0.0)
        if self.criterion in _NEED_GRADIENTS and at_once > 0.0:
            raise ValueError(
                f"PrunerConfig: criterion {self.criterion!r} needs gradients, which a step of training gives first, "
                f"but sparsity {at_once:.4g} is asked for at step 0; use start_step=1 or later and initial_sparsity=0"
            )

    def _check_rounds(self) -> None:
        iterative = self.schedule == "iterative"
        if self.rounds != 1 and not iterative:
            raise ValueError(
                f"PrunerConfig: rounds belongs to schedule 'iterative', got rounds={self.rounds} with "
                f"{self.schedule!r}; leave it out"
            )
        if iterative and self.rounds > 1 and (self.end_step or 0) - self.start_step < self.rounds - 1:
            raise ValueError(
                f"PrunerConfig: rounds={self.rounds} need as many steps from start_step={self.start_step} to end_step, "
                f"which is {self.end_step}"
            )
        if self.rewind_step is None:
            return
        _check_int("rewind_step", self.rewind_step, 0)
        if not iterative:
            raise ValueError(
                f"PrunerConfig: rewind_step belongs to schedule 'iterative', got {self.schedule!r}; leave it out"
            )
        if self.rewind_step > self.start_step:
            raise ValueError(
                f"PrunerConfig: rewind_step must not be after start_step={self.start_step}, got {self.rewind_step}"
            )

    def _check_regrow(self, pattern: Pattern) -> None:
        check_choice("PrunerConfig", "regrow_decay", self.regrow_decay, REGROW_DECAYS)
        fraction = self.regrow_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0.0 < fraction <= 1.0:
            raise ValueError(f"PrunerConfig: regrow_fraction must lie in (0, 1], got {fraction!r:.80}")
        if self.regrow is None:
            return
        check_choice("PrunerConfig", "regrow", self.regrow, REGROWTHS)
        if pattern.kind == "channel":
            raise ValueError("PrunerConfig: channels do not regrow, regrow is 'rigl'; leave it out")
        if self.schedule in ("iterative", "one-shot"):
            raise ValueError(
                f"PrunerConfig: regrow needs updates between start_step and end_step, schedule {self.schedule!r} has "
                "none; use 'constant'"
            )
        if self.last_step <= self.start_step:
            raise ValueError(
                f"PrunerConfig: regrow needs end_step after start_step={self.start_step}, got {self.end_step}"
            )

    def _check_scope(self, pattern: Pattern) -> None:
        if pattern.kind == "channel" and (self.targets is not None or isinstance(self.sparsity, Mapping)):
            raise ValueError(
                "PrunerConfig: pattern 'channel' takes one sparsity for all layers and no targets (use ignore): "
                "channels depend on each other"
            )
        if self.scope != "global":
            return
        if pattern.kind in ("nm", "channel"):
            raise ValueError(f"PrunerConfig: pattern {str(pattern)!r} goes with scope='local' only, scope is 'global'")
        if isinstance(self.sparsity, Mapping):
            raise ValueError(
                "PrunerConfig: scope='global' takes one sparsity for all layers, got a mapping; use scope='local' or a "
                "number"
            )


def _check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"PrunerConfig: {name} must be an int, got {value!r:.80}")
    if value < least:
        raise ValueError(f"PrunerConfig: {name} must be at least {least}, got {value}")
