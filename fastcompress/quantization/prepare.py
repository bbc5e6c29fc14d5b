"""`prepare`: fake quantization on a model's layers, for training that ends in eight or four bits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.adapters import adapt, needs_adapter
from fastcompress.models.calibrate import ForwardFn, as_batches, evaluating, run_batches
from fastcompress.models.choices import check_choice
from fastcompress.models.copying import copied
from fastcompress.models.flow import Flow, FlowTracer
from fastcompress.models.parents import layer_problem, never_ran, parent_problems, tied_problems
from fastcompress.models.targets import Candidate, Target, Wording, module_names, unwanted
from fastcompress.nn.parametrization import WeightTransform, weight_steps

from .candidates import find_candidates
from .fake_choice import make_input_quantizer, make_weight_quantizer
from .fake_input import InputFakeQuantize
from .fake_layer import InputQuantizer, put_on, take_off, weight_quantizer
from .fake_quantizer import STATES
from .fake_state import set_fake_quant
from .fuse import foldable_norm
from .plan import tracked_modules
from .qat_config import QATConfig

__all__ = ["prepare"]

logger = logging.getLogger("fastcompress")

_WORDING = Wording("prepare", "prepared")

#: At most this many inputs, of different shapes, are kept to check an adapter.
_MAX_EXAMPLES = 4

Examples = dict[str, list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class _Seen:
    """What running the model showed; ``flow`` is None where it did not run."""

    flow: Flow | None
    examples: Examples


def prepare(
    model: nn.Module,
    config: str | QATConfig = "W8A8",
    example_inputs: Any = None,
    calibration_data: Any = None,
    *,
    targets: Iterable[Target] | Target | None = None,
    ignore: Iterable[Target] | Target | None = None,
    state: str = "train",
    forward_fn: ForwardFn | None = None,
    inplace: bool = False,
    progress: bool | None = None,
) -> nn.Module:
    """Put fake quantization on a model's linears and convolutions, to train it to be good in int8 or in four bits.

    Modules and parameters stay what they are. A layer gets two additions: a parametrization ``WeightFakeQuantize`` on
    its weight (the last one, after a mask) and a submodule ``input_fake_quant`` that a forward pre-hook calls. They
    compute in float exactly the values that the quantized layer will compute with, and pass gradients through the
    rounding. Train the model as always, then call `fastcompress.convert`.

    ``"W8A8"`` takes linears and convolutions, ``"W4A8"`` and ``"W4A16"`` linears only. With ``"W4A8"`` each row of an
    input is rounded with a scale of its own and needs no range; with ``"W4A16"`` inputs are not rounded, and there is
    no ``input_fake_quant``. Layers of one model may have different schemes: call this once for each, with ``targets``.

    With ``example_inputs`` or ``calibration_data`` the model is run once, in eval mode, to see which BatchNorm follows
    which layer; a weight is then quantized with its norm folded in, and `convert` folds it. Without, no norm is folded,
    in training and conversion alike.

    Args:
        model: any model, masked or not, on any device; it is run, not traced.
        config: ``"W8A8"``, ``"W4A8"``, ``"W4A16"``, or a `QATConfig` with every option.
        example_inputs: one batch: a tensor is ``model(x)``, a dict ``model(**x)``, a tuple or list its first element.
        calibration_data: iterable of such batches. Input ranges and learned scales of inputs (``"W8A8"``) start from
            the mean of their ranges; without it they start from the first batch in training. In a distributed run every
            process must call ``prepare``, with equally many batches.
        targets: prepare only these: module names, ``"re:…"`` patterns that match a whole name, or classes. A container
            stands for all layers inside.
        ignore: leave these as they are; the same notation, stronger than ``targets``.
        state: what it starts in, see `set_fake_quant`. ``"off"`` leaves the model's outputs as they are.
        forward_fn: ``forward_fn(model, batch)`` runs the model in place of the batch protocol.
        inplace: change ``model`` itself and return it, instead of a copy.
        progress: show progress bars; by default when it takes long and stderr is a terminal.

    Returns:
        The model in the training mode it had. Layers that could not be prepared are logged, in one warning. State keys
        of a layer: ``<layer>.parametrizations.weight.<i>.*`` with ``i`` 0, or 1 behind a mask, and
        ``<layer>.input_fake_quant.*``; the weight itself is at ``<layer>.parametrizations.weight.original``.

    Raises:
        TypeError, ValueError: a wrong argument, a target that matches nothing, a layer that is prepared already, or no
            layer that could be. ``model`` is unchanged after any exception.

    Example:
        >>> model = fc.prepare(model, "W8A8", example_inputs=batch)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # … train; then
        >>> q = fc.convert(model, example_inputs=batch)

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
    (CVPR 2018), §3; Krishnamoorthi (arXiv 1806.08342, 2018), §3.2; Esser et al. (ICLR 2020).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepare: model must be a torch.nn.Module, got {type(model).__name__}")
    if forward_fn is not None and not callable(forward_fn):
        raise TypeError(f"prepare: forward_fn must be callable as forward_fn(model, batch), got {forward_fn!r:.80}")
    check_choice("prepare", "state", state, STATES)
    settings = _configure(config, targets, ignore)
    if state == "frozen" and calibration_data is None and settings.kind.input_mode == "static":
        raise ValueError("prepare: state 'frozen' needs calibration_data, from which the scales that it fixes come")
    batches = None if calibration_data is None else as_batches(calibration_data, function="prepare")
    work = copied(model, "prepare", inplace)
    chosen, reasons = _select(work, settings, batches is not None or example_inputs is not None)
    inputs = {c.name: make_input_quantizer(settings, _weight(c.module).device) for c in chosen}
    with evaluating(work):
        seen = _run(work, chosen, inputs, batches, example_inputs, forward_fn, progress)
        reasons |= _unfit(work, chosen, seen)
    chosen = [candidate for candidate in chosen if candidate.name not in reasons]
    if not chosen:
        raise ValueError(f"prepare: no layer can be prepared{_lines(reasons)}")
    _attach(work, chosen, inputs, settings, seen.flow, state)
    if reasons:
        logger.warning("prepare: %d layers stay float%s", len(reasons), _lines(reasons))
    return work


def _configure(
    config: str | QATConfig, targets: Iterable[Target] | Target | None, ignore: Iterable[Target] | Target | None
) -> QATConfig:
    changes: dict[str, Any] = {n: v for n, v in (("targets", targets), ("ignore", ignore)) if v is not None}
    if isinstance(config, QATConfig):
        return replace(config, **changes)
    if not isinstance(config, str):
        raise TypeError(f"prepare: config must be a scheme such as 'W8A8' or a QATConfig, got {config!r:.80}")
    return QATConfig(config, **changes)


def _select(model: nn.Module, config: QATConfig, runs: bool) -> tuple[list[Candidate], dict[str, str]]:
    """The layers to prepare, and name → reason of those that are wanted but cannot be."""
    everything = find_candidates(model)
    left_out = unwanted(model, everything, config, _WORDING)
    parents = parent_problems(model, runs)
    wanted = [candidate for candidate in everything if candidate.name not in left_out]
    reasons: dict[str, str] = {}
    for candidate in wanted:
        module = candidate.module
        if weight_quantizer(module) is not None:
            raise ValueError(
                f"prepare: layer {candidate.name!r} ({candidate.kind}) is prepared already; convert the model first, "
                "or pass the layer in ignore=. set_fake_quant changes its state"
            )
        problem = parents.get(module) or layer_problem(module, any_device=True)
        if problem is None and not isinstance(module, (nn.Linear, nn.Conv2d)):
            problem = f"fake quantization knows nn.Linear and nn.Conv2d, not {candidate.kind}"
        if problem is None and config.kind.grouped and not isinstance(module, nn.Linear):
            problem = f"{config.scheme} quantizes linear layers only"
        if problem is None and any(isinstance(step, WeightTransform) for step in weight_steps(module)):
            problem = "its weight is transformed already"
        if problem is not None:
            reasons[candidate.name] = problem
    chosen = [candidate for candidate in wanted if candidate.name not in reasons]
    tied, _ = tied_problems(model, {c.module: c.name for c in chosen})
    reasons |= {c.name: tied[c.module] for c in chosen if c.module in tied}
    return [candidate for candidate in chosen if candidate.name not in reasons], reasons


def _run(
    model: nn.Module,
    chosen: list[Candidate],
    inputs: Mapping[str, InputQuantizer | None],
    batches: Iterable[Any] | None,
    example: Any,
    forward_fn: ForwardFn | None,
    progress: bool | None,
) -> _Seen:
    """Run the model on what there is: the flow, examples for the adapters, and the inputs' ranges."""
    if batches is None and example is None:
        return _Seen(None, {})
    own_forward = {c.name for c in chosen if needs_adapter(c.module)}
    counts = dict.fromkeys(inputs, 0)
    examples: Examples = {}
    calibrating = [False]

    def listen(name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        if name not in inputs:
            return
        quantizer = inputs[name]
        if calibrating[0] and x.numel() and isinstance(quantizer, InputFakeQuantize):
            counts[name] += 1
            quantizer.observe(x, 1.0 / counts[name])  # the mean of all batches
        kept = examples.setdefault(name, [])
        if name in own_forward and len(kept) < _MAX_EXAMPLES and all(x.shape != seen.shape for seen, _ in kept):
            kept.append((x.detach().clone(), output.detach().clone()))

    modules = {names[0]: module for module, names in module_names(model).items()}
    tracer = FlowTracer(tracked_modules(model, modules), model, (listen,))
    with tracer.recording():
        for data, calibrates, description in (
            (None if example is None else [example], False, "running example_inputs"),
            (batches, True, "calibrating"),
        ):
            if data is not None:
                calibrating[0] = calibrates
                run_batches(
                    model,
                    data,
                    forward_fn,
                    around=tracer.run,
                    description=description,
                    progress=progress,
                    function="prepare",
                )
    return _Seen(tracer.flow, examples)


def _unfit(model: nn.Module, chosen: list[Candidate], seen: _Seen) -> dict[str, str]:
    """Name → reason of the layers that running the model, or trying their adapter, has ruled out."""
    reasons: dict[str, str] = {}
    for candidate in chosen:
        problem = None if seen.flow is None else never_ran(candidate.name, model, seen.flow)
        if problem is None and needs_adapter(candidate.module):
            problem = _adapter_problem(candidate, seen)
        if problem is not None:
            reasons[candidate.name] = problem
    return reasons


def _adapter_problem(candidate: Candidate, seen: _Seen) -> str | None:
    if seen.flow is None:
        return f"{candidate.kind} has a forward of its own; give example_inputs to find out what it computes"
    adapted = adapt(candidate.module, seen.examples.get(candidate.name, []))
    if isinstance(adapted, str):
        return adapted
    own = _weight(candidate.module)
    if adapted.layer.weight.shape != own.shape or not torch.equal(adapted.layer.weight, own):
        return "its adapter changes the weight, which fake quantization does not take into account"
    return None


def _attach(
    model: nn.Module,
    chosen: list[Candidate],
    inputs: Mapping[str, InputQuantizer | None],
    config: QATConfig,
    flow: Flow | None,
    state: str,
) -> None:
    """Put everything on and switch it to ``state``; an exception on the way takes all of it off again."""
    modules = {names[0]: module for module, names in module_names(model).items()}
    done: list[nn.Module] = []
    try:
        for candidate in chosen:
            layer = candidate.module
            norm = None
            if flow is not None and config.fold_batchnorm:
                norm = foldable_norm(candidate.name, layer, modules, flow)
            weight = make_weight_quantizer(config, _weight(layer), None if norm is None else modules[norm])
            done.append(layer)
            put_on(layer, weight, inputs[candidate.name])
        set_fake_quant(nn.ModuleList(done), state)
    except BaseException:
        for layer in done:
            take_off(layer)
        raise


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _lines(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return "; it has no linear or convolution that is wanted"
    return ":" + "".join(f"\n  {name or '(the model)'}: {reason}" for name, reason in reasons.items())
