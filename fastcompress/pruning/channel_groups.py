"""Which channels of a model live and die together, and what removing them takes from each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn, run_batch
from fastcompress.models.targets import tied_groups

from .channel_graph import torch_pruning, traceable
from .evidence import float_tensors

__all__ = ["ChannelGroup", "Member", "channel_masks", "channel_scores", "find_groups", "remove_channels"]

#: Besides layers with masks, the only modules that a group may pass: each channel by itself, so that a masked channel
#: and a missing one are the same to all others.
_CHANNELWISE = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Member:
    """A layer's share of a group.

    Attributes:
        name: of the layer.
        outputs: whether its outputs are the channels; otherwise its inputs are.
        positions: int64 ``[n]``, rows (outputs) or columns (inputs) of its weight.
        channels: int64 ``[n]``, the group's channel that each of them belongs to.
    """

    name: str
    outputs: bool
    positions: Tensor
    channels: Tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that depend on each other.

    Attributes:
        root: name of the layer whose outputs they are counted by.
        channels: how many.
        members: every linear and convolution that loses weights when a channel goes, the root first.
    """

    root: str
    channels: int
    members: tuple[Member, ...]


def _graph(model: nn.Module, example_inputs: Any, forward_fn: ForwardFn | None) -> Any:
    def forward(module: nn.Module, batch: Any) -> list[Tensor]:
        return float_tensors(run_batch(module, batch, forward_fn, function="Pruner"))

    return torch_pruning().DependencyGraph().build_dependency(model, example_inputs, forward_fn=forward)


def find_groups(
    model: nn.Module, example_inputs: Any, forward_fn: ForwardFn | None, fixed: Mapping[str, str]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups of a plain model (without masks), and layer name → reason of those whose outputs stay.

    Args:
        fixed: layer name → reason, of layers whose outputs must stay.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    names = {module: name for name, module in model.named_modules()}
    shared = {module for group in tied_groups(model) for _, module in group}
    groups, reasons = [], dict(fixed)
    with traceable(model):
        graph = _graph(model, example_inputs, forward_fn)
        for found in graph.get_all_groups(ignored_layers=[], root_module_types=[nn.Linear, nn.Conv2d]):
            group = _group(found, graph, names)
            outputs = [member.name for member in group.members if member.outputs]
            problem = _problem(found, graph, shared) or next((fixed[name] for name in outputs if name in fixed), None)
            if problem is None:
                groups.append(group)
            else:
                reasons |= {name: problem for name in outputs if name not in reasons}
    return groups, reasons


def _group(found: Any, graph: Any, names: Mapping[nn.Module, str]) -> ChannelGroup:
    members = [
        Member(
            names[item.dep.target.module],
            bool(graph.is_out_channel_pruning_fn(item.dep.handler)),
            torch.tensor(item.idxs),
            torch.tensor(item.root_idxs),
        )
        for item in found
        if isinstance(item.dep.target.module, (nn.Linear, nn.Conv2d))
    ]
    return ChannelGroup(members[0].name, len(found[0].idxs), tuple(members))


def _problem(found: Any, graph: Any, shared: set[nn.Module]) -> str | None:
    """Why a group's channels cannot be masked first and removed later."""
    ops = torch_pruning().ops
    for item in found:
        node, module = item.dep.target, item.dep.target.module
        outputs = graph.is_out_channel_pruning_fn(item.dep.handler)
        if not node.outputs and outputs:
            return "its channels are the model's outputs"
        if module in shared:
            return "its channels reach a layer that shares its weight"
        if isinstance(module, nn.Conv2d) and 1 < module.groups != module.in_channels:
            return f"its channels reach a grouped convolution ({module.groups} groups)"
        known = (nn.Linear, nn.Conv2d, *_CHANNELWISE)
        if not isinstance(module, known) and not type(module).__module__.startswith(ops.__name__):
            return f"its channels reach {type(module).__name__}, which mixes them: a masked one is not a missing one"
    return None


def channel_scores(group: ChannelGroup, scores: Mapping[str, Tensor]) -> Tensor:
    """float64 ``[channels]``: the sum over all weights that go with a channel.

    Args:
        scores: layer name → scores of its weight's shape.
    """
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member in group.members:
        score = scores[member.name].double()
        each = (score if member.outputs else score.transpose(0, 1)).flatten(1).sum(dim=1).cpu()
        total.index_add_(0, member.channels, each[member.positions])
    return total


def channel_masks(
    groups: Sequence[ChannelGroup], dead: Sequence[Tensor], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Layer name → mask (bool, True is kept) without the channels that are dead.

    Rows of a layer that makes a channel and columns of one that reads it both go, so that it has no effect whatever
    bias, BatchNorm or activation lie between.

    Args:
        dead: of each group, bool ``[channels]``.
        shapes: layer name → shape of its weight.
    """
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for group, gone in zip(groups, dead, strict=True):
        for member in group.members:
            lost = member.positions[gone[member.channels]]
            if member.outputs:
                masks[member.name][lost] = False
            else:
                masks[member.name][:, lost] = False
    return masks


def remove_channels(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    dead: Sequence[Tensor],
    example_inputs: Any,
    forward_fn: ForwardFn | None,
) -> None:
    """Take the dead channels out of a plain model (without masks), in place."""
    with traceable(model):
        graph = _graph(model, example_inputs, forward_fn)
        for group, gone in zip(groups, dead, strict=True):
            if bool(gone.any()):
                root = model.get_submodule(group.root)
                remove = graph.get_pruner_of_module(root).prune_out_channels
                graph.get_pruning_group(root, remove, idxs=gone.nonzero().flatten().tolist()).prune()
