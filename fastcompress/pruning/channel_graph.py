"""Channel pruning with torch-pruning: its dependency graph finds what must shrink together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import evaluating, run_batch

from .evidence import batch_loss, float_tensors
from .layers import find_layers
from .source import Source

__all__ = ["accumulate_gradients", "shrink", "torch_pruning", "traceable"]


def torch_pruning() -> Any:
    """The optional package.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError(
            "prune_channels: pattern 'channel' needs the package torch-pruning; pip install fastcompress[channels]"
        ) from error
    return torch_pruning


def shrink(
    model: nn.Module,
    example_inputs: Any,
    ratio: float,
    round_to: int,
    criterion: str,
    scope: str,
    fixed: list[str],
    source: Source,
) -> None:
    """Remove channels of ``model`` in place.

    Args:
        ratio: fraction of each layer's channels.
        fixed: names of layers whose outputs stay.
    """
    tp = torch_pruning()
    importance = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance,
        "random": tp.importance.RandomImportance,
    }[criterion]()

    def forward(module: nn.Module, batch: Any) -> list[Tensor]:
        return float_tensors(run_batch(module, batch, source.forward_fn, function="prune_channels"))

    def pruner(ignored: list[nn.Module]) -> Any:
        # Its defaults for groups and heads are dicts shared between calls.
        groups: list[dict[nn.Module, int]] = [{}, {}, {}, {}]
        made = tp.pruner.BasePruner(
            model,
            example_inputs,
            importance,
            global_pruning=scope == "global",
            pruning_ratio=ratio,
            ignored_layers=ignored,
            pruning_ratio_dict=_rounded(model, ratio, round_to) if scope == "local" else None,
            round_to=round_to if scope == "global" else None,
            in_channel_groups=groups[0],
            out_channel_groups=groups[1],
            num_heads=groups[2],
            channel_groups=groups[3],
            forward_fn=forward,
        )
        made._round_to = _pruned_after_rounding
        return made

    with traceable(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        kept = [model.get_submodule(name) for name in fixed]
        kept += _output_layers(pruner([]))
        pruner(kept).step()


def _pruned_after_rounding(n_pruned: int, current_channels: int, round_to: int) -> int:
    """Never all channels, as with torch-pruning's own, which then leaves the layer as it is."""
    kept = max(round_to, (current_channels - n_pruned) // round_to * round_to)
    return max(0, current_channels - kept)


def _rounded(model: nn.Module, ratio: float, round_to: int) -> dict[nn.Module, float]:
    """Each layer's own ratio, so that a multiple of ``round_to`` channels stays, at least one multiple.

    torch-pruning's rounding counts the channels of grouped convolutions wrongly.
    """
    result: dict[nn.Module, float] = {}
    for candidate in find_layers(model):
        channels = int(cast(Tensor, candidate.module.weight).shape[0])
        kept = max(1, round(channels * (1.0 - ratio) / round_to)) * round_to
        # Half a channel more, against rounding errors: it is cut off.
        result[candidate.module] = max(0.0, 1.0 - (kept + 0.5) / channels) if ratio > 0 and kept < channels else 0.0
    return result


def _output_layers(pruner: Any) -> list[nn.Module]:
    """The layers whose channels are the model's outputs: their group reaches a node that nothing reads."""
    graph = pruner.DG
    found: list[nn.Module] = []
    for group in graph.get_all_groups(ignored_layers=[], root_module_types=pruner.root_module_types):
        if any(not dep.target.outputs and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in group):
            found.append(group[0].dep.target.module)
    return found


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Parameters with gradients and modules in eval mode, as the graph is found by autograd; put back afterwards."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = [(module, module.training) for module in model.modules()]
    try:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags.get(name, True))
        for module, flag in training:
            module.training = flag


def accumulate_gradients(model: nn.Module, source: Source) -> None:
    """Sum each parameter's gradient over the calibration data into ``.grad`` of this copy."""
    count = 0
    with traceable(model), evaluating(model), torch.enable_grad():
        model.zero_grad(set_to_none=True)
        for batch in source.batches or ():
            output = run_batch(model, batch, source.forward_fn, function="prune_channels")
            batch_loss(output, batch, source).backward()
            count += 1
    if count == 0:
        raise ValueError("prune_channels: calibration_data yielded no batches; give at least one")
