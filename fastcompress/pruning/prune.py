"""`prune`: choose masks for a whole model and put them in place, or leave it as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.copying import copied
from fastcompress.models.targets import Target

from .channels import prune_channels
from .commit import commit, log_skipped
from .config import PruneConfig
from .plan import make_plan
from .source import LossFn, Source, make_source

__all__ = ["prune"]


def prune(
    model: nn.Module,
    sparsity: float | Mapping[Target, float],
    pattern: str = "unstructured",
    criterion: str = "magnitude",
    scope: str = "local",
    calibration_data: Any = None,
    targets: Iterable[Target] | Target | None = None,
    ignore: Iterable[Target] | Target | None = None,
    *,
    loss_fn: LossFn | None = None,
    forward_fn: ForwardFn | None = None,
    seed: int = 0,
    permute: bool | str = False,
    inplace: bool = False,
    progress: bool | None = None,
) -> nn.Module:
    """Set the least important weights of a model's linears and convolutions to zero and keep them there.

    Args:
        model: any model; it is run (where the criterion needs data), not traced.
        sparsity: pruned fraction, in [0, 1); or target → fraction, see `PruneConfig`.
        pattern: ``"unstructured"``; ``"<BH>x<BW>"`` blocks of outputs × input channels, ``"16x4"`` and the like;
            ``"<N>:<M>"``, N of every M consecutive inputs are kept; ``"channel"``, which removes channels for good
            (``sparsity`` is then the fraction of channels; see `prune_channels`).
        criterion: ``"magnitude"``; ``"wanda"``, weight times input norm; ``"sparsegpt"``, which also updates the
            remaining weights; ``"taylor"``, weight times gradient; ``"random"``.
        scope: ``"local"`` gives every layer the sparsity, ``"global"`` all of them together.
        calibration_data: iterable of batches, needed by wanda, sparsegpt and taylor. A tensor is ``model(x)``, a dict
            ``model(**x)``, a tuple or list its first element.
        targets: prune only these: module names, ``"re:…"`` patterns that match a whole name, or classes. A container
            stands for all layers inside.
        ignore: leave these as they are; the same notation, stronger than ``targets``.
        loss_fn: ``loss_fn(output, batch)`` → scalar, the loss of criterion taylor; by default the sum of squares of the
            model's first output tensor.
        forward_fn: ``forward_fn(model, batch)`` runs the model in place of the batch protocol.
        seed: of criterion random, and of the permutation search.
        permute: reorder input channels and outputs so that blocks hold more of the score: True, ``"inputs"``,
            ``"outputs"`` or ``"both"``. The order stays with the mask (`permutation_of`), through later calls too;
            outputs do not change order.
        inplace: change ``model`` itself and return it, instead of a copy.
        progress: show progress bars; by default when it takes long and stderr is a terminal.

    Returns:
        The pruned model, in the training mode it had. Its masks are parametrizations (`mask_of`): they hold through
        training, ``state_dict``, deepcopy and ``torch.compile``. Every layer's fate is in its record (`pruning_of`);
        layers that could not be pruned stay dense and are also logged, in one warning.

    Raises:
        TypeError, ValueError: a wrong argument, no data, a target that matches nothing, or a layer named exactly in
            ``targets`` or ``sparsity`` that cannot be pruned. ``model`` is unchanged after any exception.

    Example:
        >>> p = fc.prune(model, 0.9, "16x4", "sparsegpt", calibration_data=loader, ignore="classifier")
        >>> p = fc.prune(model, {nn.Linear: 0.9, "head": 0.5}, "4x4")

    Source: criteria in `fastcompress.pruning.criteria` and `sparsegpt`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prune: model must be a torch.nn.Module, got {type(model).__name__}")
    config = PruneConfig(
        sparsity,
        pattern,
        criterion,
        scope,
        targets,  # type: ignore[arg-type]  # one target or any iterable of them: checked and made a tuple
        () if ignore is None else ignore,  # type: ignore[arg-type]
        seed,
        permute,
    )
    source = make_source("prune", criterion, calibration_data, forward_fn, loss_fn, seed, progress)
    if config.pattern == "channel":
        return _channels(model, config, source, inplace)
    work = copied(model, "prune", inplace)
    plan = make_plan(work, config, source)
    commit(work, plan, config)
    log_skipped("prune", plan.decisions.values())
    return work


def _channels(model: nn.Module, config: PruneConfig, source: Source, inplace: bool) -> nn.Module:
    """Pattern ``"channel"``: the first calibration batch shows torch-pruning how the layers depend on each other."""
    if source.batches is None:
        raise ValueError(
            "prune: pattern 'channel' follows the channels through the running model and needs calibration_data, one "
            "batch at least; or call prune_channels with example_inputs"
        )
    if inplace or config.targets is not None or not isinstance(config.sparsity, float):
        raise ValueError(
            "prune: pattern 'channel' takes one sparsity for all layers, no targets (use ignore), and inplace=False: "
            "channels depend on each other, and the result is a smaller copy"
        )
    batches = list(source.batches)
    if not batches:
        raise ValueError("prune: calibration_data yielded no batches; give at least one")
    return prune_channels(
        model,
        batches[0],
        config.sparsity,
        criterion=config.criterion,
        scope=config.scope,
        ignore=config.ignore,
        calibration_data=batches,
        loss_fn=source.loss_fn,
        forward_fn=source.forward_fn,
        seed=config.seed,
        progress=source.progress,
    )
