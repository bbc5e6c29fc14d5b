"""Per-layer sparsities by shape alone: layers with few weights for their inputs and outputs keep more of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fastcompress.models.targets import Target

from .config import PruneConfig
from .plan import select
from .record import PruneDecision

__all__ = ["erdos_renyi"]


def erdos_renyi(
    model: nn.Module,
    sparsity: float,
    pattern: str = "unstructured",
    *,
    targets: Iterable[Target] | Target | None = None,
    ignore: Iterable[Target] | Target = (),
) -> dict[str, float]:
    """Spread a sparsity over the layers in proportion to the sum over the product of their dimensions (ERK).

    A layer keeps ``ε · (out + in + kh + kw) / (out · in · kh · kw)`` of its weights (without ``kh``, ``kw`` in a linear
    layer), with ``ε`` such that all layers together have the sparsity; what would keep more than all stays dense.

    Args:
        model: not changed.
        sparsity: pruned fraction of all weights together, in [0, 1).
        pattern: layers that it does not fit are left out.
        targets, ignore: as in `prune`.

    Returns:
        Name → sparsity, for the ``sparsity`` argument of `prune`, `PrunerConfig` and `recipes.Pruning`; layers that
        stay dense are missing.

    Raises:
        TypeError, ValueError: as in `prune`, or no layer can be pruned.

    Example:
        >>> spread = fc.pruning.erdos_renyi(model, 0.9, "4x4", ignore=["stem", "head"])
        >>> masked = fc.prune(model, spread, "4x4")

    Source: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", section 3, item 1; Mocanu et al. 2018
    for linear layers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"erdos_renyi: model must be a torch.nn.Module, got {type(model).__name__}")
    config = PruneConfig(sparsity, pattern, targets=targets, ignore=ignore)  # type: ignore[arg-type]  # tuples there
    decisions: dict[str, PruneDecision] = {}
    layers, _ = select(model, config, decisions)
    if not layers:
        why = "; ".join(f"{name}: {decision.reason}" for name, decision in decisions.items())
        raise ValueError(f"erdos_renyi: no layer can be pruned ({why or 'the model has none'})")
    elems = {layer.name: layer.weight.numel() for layer in layers}
    sides = {layer.name: sum(layer.weight.shape) for layer in layers}
    kept = (1.0 - sparsity) * sum(elems.values())
    sparse = set(elems)
    while True:
        epsilon = (kept - sum(elems[name] for name in elems.keys() - sparse)) / sum(sides[name] for name in sparse)
        full = {name for name in sparse if epsilon * sides[name] >= elems[name]}
        if not full:
            return {name: 1.0 - epsilon * sides[name] / elems[name] for name in elems if name in sparse}
        sparse -= full
