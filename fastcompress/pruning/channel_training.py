"""Channels that are masked while a model trains and removed when it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn, evaluating, run_batch
from fastcompress.models.copying import copied
from fastcompress.models.targets import Candidate, Wording, matched

from .channel_groups import ChannelGroup, channel_masks, channel_scores, find_groups, remove_channels
from .channel_run import check_runs
from .channels import channel_decisions
from .commit import merged
from .evidence import float_tensors
from .layers import PrunableLayer, find_layers
from .mask import foreign_parametrizations, masked, remove_mask
from .pruner_config import PrunerConfig
from .record import PRUNING_ATTRIBUTE, PruneDecision
from .selection import lowest
from .trained_layer import TrainedLayer

__all__ = ["ChannelTraining"]

#: How far a smaller model's outputs may be from those with masks, relative to the largest: sums change their order.
_CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}


class ChannelTraining:
    """The groups of channels that a `Pruner` narrows, and their removal.

    Args:
        model: without masks; it is copied and run on ``example_inputs``, not changed.
        config: with pattern channel.
        decisions: receives why layers are left alone.
        example_inputs: one batch.
        forward_fn: runs the model on a batch in place of the batch protocol.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: the model carries masks or other parametrizations, or no group of channels can be removed.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PrunerConfig,
        decisions: dict[str, PruneDecision],
        example_inputs: Any,
        forward_fn: ForwardFn | None,
    ) -> None:
        self.config, self.example_inputs, self.forward_fn = config, example_inputs, forward_fn
        candidates = find_layers(model)
        _check_plain(candidates)
        fixed = {
            name: "in ignore"
            for entry in config.ignore
            for name in matched(model, candidates, entry, "ignore", Wording("Pruner", "pruned"))
        }
        plain = copied(model, "Pruner")
        groups, reasons = find_groups(plain, example_inputs, forward_fn, fixed)
        self.groups = [group for group in groups if self._last_count(group) > 0]
        few = {group.root: f"it has too few channels to keep a multiple of {config.round_to}" for group in groups}
        if self._differ(plain, self.groups):
            # One by one, to find those that do not run or do not give the same without their channels.
            for group in list(self.groups):
                problem = self._differ(plain, [group])
                if problem:
                    reasons |= {member.name: problem for member in group.members if member.outputs}
                    self.groups.remove(group)
            problem = self._differ(plain, self.groups)
            if problem:
                raise ValueError(f"Pruner: {problem}, though each group of channels alone does; pass layers in ignore=")
        changed = {member.name for group in self.groups for member in group.members}
        for candidate in candidates:
            if candidate.name not in changed:
                reason = reasons.get(candidate.name) or few.get(
                    candidate.name, "its channels depend on those that stay"
                )
                decisions[candidate.name] = PruneDecision(
                    candidate.name, candidate.kind, "kept", asked=cast(float, config.sparsity), reason=reason
                )
        final = cast(float, config.sparsity)
        self.layers = tuple(TrainedLayer(PrunableLayer(c), final) for c in candidates if c.name in changed)

    @torch.no_grad()
    def narrowed(self, scores: Sequence[Tensor], step: int) -> list[Tensor]:
        """Each layer's mask after ``step``: without the least important channels; none comes back."""
        # What is masked already counts nothing.
        weights = {
            layer.name: torch.where(layer.mask, score, 0.0) for layer, score in zip(self.layers, scores, strict=True)
        }
        final = cast(float, self.config.sparsity)
        share = self.config.sparsity_at(step) / final if final > 0.0 else 0.0
        dead = []
        for group, gone in zip(self.groups, self._dead(), strict=True):
            ranked = torch.where(gone, -torch.inf, channel_scores(group, weights))
            dead.append(gone | lowest(ranked, round(share * self._last_count(group))))
        masks = channel_masks(self.groups, dead, {layer.name: layer.parameter.shape for layer in self.layers})
        return [masks[layer.name].to(layer.mask.device) & layer.mask for layer in self.layers]

    def removed(self, model: nn.Module) -> nn.Module:
        """A copy of ``model`` without the channels that are masked, and without masks.

        Raises:
            ValueError: a layer has other parametrizations on its mask.
        """
        for name, module in masked(model).items():
            others = foreign_parametrizations(module)
            if others:
                raise ValueError(
                    f"Pruner.finish: layer {name!r} has the parametrization {', '.join(others)} on its mask, so its "
                    "channels cannot be removed; finish channels before quantization-aware training begins"
                )
        result = copied(model, "Pruner.finish")
        for module in masked(result).values():
            remove_mask(module)
        remove_channels(result, self.groups, self._dead(), self.example_inputs, self.forward_fn)
        check_runs(result, model, self.example_inputs, self.forward_fn)
        fixed = [
            candidate.name for candidate in find_layers(model) if candidate.name not in {x.name for x in self.layers}
        ]
        decisions = channel_decisions(model, result, cast(float, self.config.sparsity), fixed)
        setattr(result, PRUNING_ATTRIBUTE, merged(result, decisions, self.config.to_json(), None))
        return result

    def _last_count(self, group: ChannelGroup) -> int:
        """How many channels are gone at the end of the schedule."""
        left = group.channels * (1.0 - cast(float, self.config.sparsity)) / self.config.round_to
        return max(0, group.channels - max(1, round(left)) * self.config.round_to)

    def _dead(self) -> list[Tensor]:
        """Of each group, the channels whose whole row in the root's mask is False."""
        masks = {layer.name: layer.mask for layer in self.layers}
        return [~masks[group.root].flatten(1).any(dim=1).cpu() for group in self.groups]

    def _differ(self, plain: nn.Module, groups: Sequence[ChannelGroup]) -> str | None:
        """What is wrong with removing channels of these groups instead of masking them; None when it is the same."""
        dead = [torch.arange(group.channels) >= group.channels - self._last_count(group) for group in groups]
        zeroed, small = copied(plain, "Pruner"), copied(plain, "Pruner")
        shapes = {c.name: cast(Tensor, c.module.weight).shape for c in find_layers(plain)}
        with torch.no_grad():
            for name, mask in channel_masks(groups, dead, shapes).items():
                weight = cast(Tensor, zeroed.get_submodule(name).weight)
                weight.masked_fill_(~mask.to(weight.device), 0.0)
        try:
            remove_channels(small, groups, dead, self.example_inputs, self.forward_fn)
            outputs = [self._outputs(model) for model in (zeroed, small)]
        except Exception as error:
            return f"the model does not run without its channels ({type(error).__name__}: {error})"
        for expected, found in zip(*outputs, strict=True):
            close = _CLOSE.get(expected.dtype, 5e-2) * float(expected.double().abs().max() if expected.numel() else 0)
            if found.shape != expected.shape or float((found - expected).double().abs().max()) > close:
                return "the model's outputs without its channels are not those with the channels masked"
        return None

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        with evaluating(model):
            return float_tensors(run_batch(model, self.example_inputs, self.forward_fn, function="Pruner"))


def _check_plain(candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        if nn.utils.parametrize.is_parametrized(candidate.module):
            chains: Mapping[str, Any] = cast(Any, candidate.module.parametrizations)
            kinds = sorted({type(step).__name__ for chain in chains.values() for step in chain})
            raise ValueError(
                f"Pruner: layer {candidate.name!r} has the parametrization {', '.join(kinds)}, and cannot lose "
                "channels; prune channels first, or call remove_mask on every masked layer"
            )
