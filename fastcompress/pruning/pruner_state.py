"""What a `Pruner` saves, and the checks before it is taken over again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .pruner_config import PrunerConfig

__all__ = ["checked_state", "pruner_state"]

_VERSION = 1
_KEYS = ("version", "config", "step_count", "scores", "rewind")


def pruner_state(
    config: PrunerConfig, step_count: int, scores: dict[str, Tensor], rewind: dict[str, Tensor] | None
) -> dict[str, Any]:
    """A dict of tensors and plain values. Saving at every checkpoint must not hold on to tensors that training changes.

    Args:
        scores: what the criterion has gathered, already copied.
        rewind: parameter name → value to go back to.
    """
    return {
        "version": _VERSION,
        "config": json.dumps(config.to_json()),
        "step_count": step_count,
        "scores": scores,
        # Never changed in place, so it need not be copied.
        "rewind": None if rewind is None else dict(rewind),
    }


def checked_state(
    config: PrunerConfig, state: Mapping[str, Any]
) -> tuple[int, Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """``(step_count, scores, rewind)`` of a state that belongs to ``config``.

    Raises:
        TypeError, ValueError: it does not; the message names the field.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"Pruner.load_state_dict: state must be a dict from state_dict(), got {type(state).__name__}")
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise ValueError(f"Pruner.load_state_dict: state has no {missing[0]!r}; it is no state of a Pruner")
    if state["version"] != _VERSION:
        raise ValueError(
            f"Pruner.load_state_dict: state has version {state['version']!r:.80}, this release reads {_VERSION}"
        )
    saved, mine = json.loads(state["config"]), json.loads(json.dumps(config.to_json()))
    changed = [name for name in mine if saved.get(name) != mine[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"Pruner.load_state_dict: {name} was {saved.get(name)!r:.80} when the state was saved and is "
            f"{mine[name]!r:.80} now; resume with the same configuration"
        )
    step = state["step_count"]
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"Pruner.load_state_dict: step_count must be an int of at least 0, got {step!r:.80}")
    return (
        step,
        _tensors("scores", state["scores"]),
        None if state["rewind"] is None else _tensors("rewind", state["rewind"]),
    )


def _tensors(name: str, value: object) -> Mapping[str, Tensor]:
    if not isinstance(value, Mapping) or not all(isinstance(entry, Tensor) for entry in value.values()):
        raise TypeError(f"Pruner.load_state_dict: {name} must map names to tensors, got {value!r:.80}")
    return value
