"""`Pruner`: masks that follow a schedule while a model trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.targets import Wording

from .channel_training import ChannelTraining
from .commit import commit, log_skipped
from .layers import PrunableLayer
from .optimizer_state import clear_moments, forget
from .plan import Plan, select
from .pruner_config import PrunerConfig
from .pruner_masks import narrowed_masks, regrown_masks
from .pruner_state import checked_state, pruner_state
from .record import PruneDecision
from .rewind import Rewind
from .solve import Solved
from .trained_layer import TrainedLayer
from .training_record import update_record
from .training_scores import TrainingScores

__all__ = ["Pruner"]

_WORDING = Wording("Pruner", "pruned")


class Pruner:
    """Prunes a model while it trains: masks are put on at once and change as the schedule says, in place.

    Parameters stay the same objects, so optimizers may be made before or after; compiled models are not compiled again.
    Without regrowth a pruned weight never comes back, whatever the optimizer does underneath the mask. A mask that
    the model has already stays in force. Parametrizations that are stacked on a mask afterwards (fake quantization) are
    not looked at: scores read the masked float weight.

    In data-parallel training every process has its own pruner; masks are the same everywhere. Averaged copies
    (``AveragedModel``) take the masks over with ``use_buffers=False``, the default.

    Args:
        model: changed in place; any model, it is not traced.
        config: what to prune, how, and when.
        optimizer: if given, its momentum and the like of pruned weights is zeroed when masks change, and it forgets
            what it knew of parameters that are rewound.
        example_inputs: one batch, for pattern channel only (needs torch-pruning): shows which channels depend on each
            other. A tensor is ``model(x)``, a dict ``model(**x)``, a tuple or list its first element.
        forward_fn: ``forward_fn(model, batch)`` runs the model in place of that protocol.

    Raises:
        TypeError, ValueError: a wrong argument, a target that matches nothing, a layer named exactly that cannot be
            pruned, or no layer at all. The model is unchanged.

    Example:
        >>> pruner = fc.Pruner(model, fc.PrunerConfig(0.9, "4x4", end_step=3000, frequency=100))
        >>> for x, y in loader:
        ...     optimizer.zero_grad()
        ...     loss_fn(model(x), y).backward()
        ...     optimizer.step()
        ...     pruner.step()
        >>> model = pruner.finish()

    Source: see `PrunerConfig`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PrunerConfig,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        example_inputs: Any = None,
        forward_fn: ForwardFn | None = None,
    ) -> None:
        _check_arguments(model, config, optimizer, example_inputs)
        self.model, self.config, self.optimizer = model, config, optimizer
        decisions: dict[str, PruneDecision] = {}
        self._channels: ChannelTraining | None = None
        if config.pattern == "channel":
            self._channels = ChannelTraining(model, config, decisions, example_inputs, forward_fn)
            self._layers = self._channels.layers
        else:
            chosen, asked = select(model, config, decisions, _WORDING, under_others=True)
            self._layers = tuple(TrainedLayer(layer, asked[layer.name]) for layer in chosen)
        if not self._layers:
            raise ValueError(f"Pruner: {type(model).__name__} has no layer that can be pruned{_reasons(decisions)}")
        _check_optimizer(optimizer, self._layers)
        self._step_count, self._finished = 0, False
        self._sparsities: tuple[tuple[tuple[int, int], ...], dict[str, float]] | None = None
        commit(model, Plan([_whole(layer) for layer in self._layers], decisions), config)
        self._scores = TrainingScores(self._layers, config.criterion, config.regrow is not None, config.seed)
        self._rewind = Rewind(model) if config.rewind_step is not None else None
        if config.rewind_step == 0 and self._rewind is not None:
            self._rewind.take()
        if config.sparsity_at(0, 1.0) > 0.0:
            self._update(0)
        log_skipped("Pruner", decisions.values())

    @property
    def step_count(self) -> int:
        """How often `step` was called: optimizer steps done."""
        return self._step_count

    @property
    def sparsity(self) -> float:
        """Masked fraction of all weights that this pruner prunes, from 0 to 1."""
        found = self.sparsities
        sizes = {layer.name: layer.mask.numel() for layer in self._layers}
        return sum(found[name] * size for name, size in sizes.items()) / sum(sizes.values())

    @property
    def sparsities(self) -> dict[str, float]:
        """Layer name → masked fraction of its weight."""
        # Masks change in place, by this pruner or by the model's load_state_dict.
        versions = tuple((id(mask), mask._version) for mask in (layer.mask for layer in self._layers))
        if self._sparsities is None or self._sparsities[0] != versions:
            found = {layer.name: 1.0 - int(layer.mask.sum()) / layer.mask.numel() for layer in self._layers}
            self._sparsities = versions, found
        return dict(self._sparsities[1])

    def step(self) -> bool:
        """Advance the schedule; call it once after every ``optimizer.step()``.

        Returns:
            Whether the masks were updated.

        Raises:
            RuntimeError: after `finish`, or the criterion needs gradients and a layer had none.
            ValueError: scores that are NaN; no mask has changed.
        """
        if self._finished:
            raise RuntimeError("Pruner.step: finish() was called; make a new Pruner to prune on")
        step = self._step_count + 1
        self._scores.observe()
        if self._rewind is not None and step == self.config.rewind_step:
            self._rewind.take()
        due = self.config.is_due(step)
        if due:
            self._update(step)
        self._scores.forget_gradients()
        self._step_count = step
        return due

    def finish(self) -> nn.Module:
        """End pruning as it stands and return the model, its masks in place for `fastcompress.convert`.

        Training may go on; the masks stay. Gradients of masked weights are no longer collected.

        With pattern channel the result is a smaller copy that computes the same: the masked channels are removed, and
        ``model`` keeps its masks. Its parameters are new, so it needs a new optimizer.

        Raises:
            ValueError: pattern channel, and something is stacked on the masks.
        """
        result = self.model if self._channels is None else self._channels.removed(self.model)
        self._scores.stop()
        self._finished = True
        update_record(self.model, self._layers, self.config)
        return result

    def state_dict(self) -> dict[str, Any]:
        """What training needs to go on bit for bit, besides the model's and the optimizer's own state.

        Call it between steps. Tensors and plain values only: ``torch.load(…, weights_only=True)`` reads it.
        """
        rewind = None if self._rewind is None else self._rewind.values
        return pruner_state(self.config, self._step_count, self._scores.state_dict(), rewind)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an equal pruner returned; load the model's state as well, it has the masks.

        Raises:
            TypeError, ValueError: no such state, another configuration, or other layers. Nothing has changed.
        """
        step, scores, rewind = checked_state(self.config, state)
        self._scores.check_state(scores)
        if self._rewind is not None:
            self._rewind.check_state(rewind)
            self._rewind.load_state_dict(rewind)
        self._scores.load_state_dict(scores)
        self._scores.forget_gradients()
        self._step_count = step

    def _update(self, step: int) -> None:
        """Everything that happens to masks and weights at ``step``; the new masks are all known before the first."""
        scores = self._scores.values(step)
        if self._channels is None:
            masks = narrowed_masks(self._layers, scores, self.config, step)
        else:
            masks = self._channels.narrowed(scores, step)
        grown: list[Tensor | None] = [None] * len(masks)
        share = self.config.regrow_share(step)
        if share > 0.0:
            masks = regrown_masks(self._layers, scores, self._scores.gradients(), masks, self.config, share)
            grown = [mask & ~layer.mask for layer, mask in zip(self._layers, masks, strict=True)]
        for layer, mask, new in zip(self._layers, masks, grown, strict=True):
            layer.set_mask(mask)
            if new is not None:
                layer.zero(new)
        self._scores.updated(grown)
        self._clear_moments(grown)
        if self._rewind is not None:
            self._rewind.restore()
            if self.optimizer is not None:
                forget(self.optimizer, self._rewind.parameters.values())
        update_record(self.model, self._layers, self.config)

    def _clear_moments(self, grown: Sequence[Tensor | None]) -> None:
        if self.optimizer is not None:
            for layer, new in zip(self._layers, grown, strict=True):
                clear_moments(self.optimizer, layer.parameter, ~layer.mask if new is None else ~layer.mask | new)


def _check_arguments(model: object, config: object, optimizer: object, example_inputs: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Pruner: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, PrunerConfig):
        raise TypeError(f"Pruner: config must be a PrunerConfig, got {type(config).__name__}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"Pruner: optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}")
    if (config.pattern == "channel") != (example_inputs is not None):
        raise ValueError(
            f"Pruner: example_inputs, one batch, belongs to pattern 'channel' and is needed there; pattern is "
            f"{config.pattern!r}, example_inputs {'given' if example_inputs is not None else 'missing'}"
        )


def _check_optimizer(optimizer: torch.optim.Optimizer | None, layers: Sequence[TrainedLayer]) -> None:
    if optimizer is None:
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(layer.parameter) in known for layer in layers):
        raise ValueError("Pruner: optimizer holds none of the weights that are pruned; pass the one that trains model")


def _whole(layer: TrainedLayer) -> tuple[PrunableLayer, float, Solved]:
    """A mask that prunes nothing more, for `commit`."""
    mask = layer.layer.mask
    return (
        layer.layer,
        layer.sparsity,
        Solved(torch.ones_like(layer.parameter, dtype=torch.bool) if mask is None else mask, 1.0),
    )


def _reasons(decisions: Mapping[str, PruneDecision]) -> str:
    return "".join(f"\n  {d.name or '(the model)'} ({d.kind}): {d.reason}" for d in decisions.values())
