"""Tied parameters of transformers' models, where layers of ours have taken the place of some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["keep_ties"]


def keep_ties(model: Any, kept: Mapping[str, str]) -> None:
    """Leave transformers only these pairs of tied parameters: layers of ours are tied already, and have none."""
    if not hasattr(model, "all_tied_weights_keys"):
        return
    model.all_tied_weights_keys = dict(kept)
    if not kept:
        for module in model.modules():
            if getattr(module, "_tied_weights_keys", None):
                module._tied_weights_keys = None  # what `tie_weights` would look the pairs up in again
