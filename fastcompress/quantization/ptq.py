"""Post-training quantization of a whole model: record, measure, balance, build, and only then change anything."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.config import QuantConfig
from fastcompress.models.adapters import Adapted, adapt, needs_adapter
from fastcompress.models.calibrate import ForwardFn, evaluating, run_batch, run_batches
from fastcompress.models.flow import Flow, FlowTracer
from fastcompress.models.parents import layer_problem, never_ran, parent_problems, tied_problems
from fastcompress.models.replace import replace_modules, restore_modules
from fastcompress.models.speed import Timer, Verdict, decide
from fastcompress.models.targets import Candidate, module_names, unwanted
from fastcompress.nn import PackedLayer, QuantizedLayer
from fastcompress.quantization.balance import apply_equalization, apply_smoothing
from fastcompress.quantization.candidates import find_candidates, unsupported_layers, unsupported_reason
from fastcompress.quantization.fuse import find_fusions
from fastcompress.quantization.job import Job
from fastcompress.quantization.sparse_form import choose_forms
from fastcompress.record import LayerDecision

__all__ = ["Source", "quantize_model"]

logger = logging.getLogger("fastcompress")

#: At most this many inputs, of different shapes, are kept to check an adapter.
_MAX_EXAMPLES = 4


@dataclass(frozen=True)
class Source:
    """Where a model's inputs come from.

    Attributes:
        batches: calibration batches, or None.
        example: one batch that is like those of real use, or None.
        forward_fn: runs the model on a batch in place of the batch protocol.
        progress: show progress bars; None decides by stderr.
    """

    batches: Iterable[Any] | None = None
    example: Any = None
    forward_fn: ForwardFn | None = None
    progress: bool | None = None


@dataclass
class _Plan:
    """All that is known so far about one call of `quantize_model`."""

    model: nn.Module
    config: QuantConfig
    source: Source
    timer: Timer | None
    modules: dict[str, nn.Module]
    training: dict[nn.Module, bool]
    decisions: dict[str, LayerDecision] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    examples: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    flow: Flow | None = None
    first_batch: list[Any] = field(default_factory=list)

    def leave(self, candidate: Candidate, action: str, reason: str, verdict: Verdict | None = None) -> None:
        """Decide that a layer stays as it is."""
        job = self.jobs.pop(candidate.name, None)
        self.decisions[candidate.name] = LayerDecision(
            candidate.name,
            candidate.kind,
            action,
            reason,
            tuple(kind.shape for kind, _ in job.inputs) if job is not None else (),
            verdict.dense_seconds if verdict is not None else None,
            verdict.quantized_seconds if verdict is not None else None,
        )


def quantize_model(
    model: nn.Module, config: QuantConfig, source: Source, timer: Timer | None
) -> tuple[nn.Module, list[LayerDecision]]:
    """Quantize ``model`` in place and say what was decided about each layer, in the order of its modules.

    Nothing is changed before everything is built; an exception at any point leaves the model as it was.

    Returns:
        The model (another object only where the model itself is a single layer) and the decisions.
    """
    modules = {names[0]: module for module, names in module_names(model).items()}
    training = {module: module.training for module in modules.values()}
    plan = _Plan(model, config, source, timer, modules, training)
    with evaluating(model):
        candidates = _select(plan)
        _record_run(plan, candidates)
        _adapt(plan, candidates)
        _measure(plan)
        norms = _balance(plan)
        built = {name: job.quantized(config) for name, job in plan.jobs.items()}
        result = _commit(plan, built, norms)
    order = {name: position for position, name in enumerate(plan.modules)}
    _log(plan.decisions.values())
    return result, sorted(plan.decisions.values(), key=lambda decision: order[decision.name])


def _select(plan: _Plan) -> list[Candidate]:
    """The candidates that nothing known before running forbids."""
    model, config = plan.model, plan.config
    everything = find_candidates(model)
    left_out = unwanted(model, everything, config)
    parents = parent_problems(model, _runs(plan.source))
    for layer in unsupported_layers(model):
        if not isinstance(layer.module, PackedLayer):
            plan.leave(layer, "skipped", unsupported_reason(layer.module))
    remaining: list[Candidate] = []
    for candidate in everything:
        module = candidate.module
        problem = parents.get(module) or layer_problem(module)
        if candidate.name in left_out:
            plan.leave(candidate, "kept", left_out[candidate.name])
        elif isinstance(module, nn.Conv2d) and config.input_mode != "static":
            plan.leave(candidate, "kept", f"{config.scheme} quantizes linear layers only")
        elif problem is not None:
            plan.leave(candidate, "skipped", problem)
        else:
            remaining.append(candidate)
    problems, notes = tied_problems(model, {c.module: c.name for c in remaining})
    for candidate in [c for c in remaining if c.module in problems]:
        plan.leave(candidate, "skipped", problems[candidate.module])
    remaining = [c for c in remaining if c.module not in problems]
    for candidate in remaining:
        plain: Any = candidate.module
        plan.jobs[candidate.name] = Job(candidate, Adapted(plain))
        if candidate.module in notes:
            plan.jobs[candidate.name].notes.append(notes[candidate.module])
    return remaining


def _runs(source: Source) -> bool:
    return source.batches is not None or source.example is not None


def _tracked(plan: _Plan) -> dict[str, nn.Module]:
    """What the tracer follows: the layers, and every other module that has nothing inside."""
    layers = {candidate.module for candidate in find_candidates(plan.model)}
    inside = {child for layer in layers for child in layer.modules() if child is not layer}
    return {
        name: module
        for name, module in plan.modules.items()
        if module not in inside
        and not isinstance(module, torch.jit.ScriptModule)
        and (module in layers or next(module.children(), None) is None)
    }


def _record_run(plan: _Plan, candidates: list[Candidate]) -> None:
    """Run the model on the calibration data: flow, shapes, observers, and examples for the adapters."""
    source = plan.source
    if not _runs(source):
        return
    own_forward = {c.name for c in candidates if needs_adapter(c.module)}
    for job in plan.jobs.values():
        job.start_observing(plan.config)
    observing = [True]

    def listen(name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        if name not in plan.jobs:
            return
        if observing[0]:
            plan.jobs[name].observe(x)
        if name in own_forward:
            kept = plan.examples.setdefault(name, [])
            if len(kept) < _MAX_EXAMPLES and all(x.shape != seen.shape for seen, _ in kept):
                kept.append((x.detach().clone(), output.detach().clone()))

    tracer = FlowTracer(_tracked(plan), plan.model, (listen,))
    with tracer.recording():
        if source.batches is not None:
            run_batches(
                plan.model,
                source.batches,
                source.forward_fn,
                around=tracer.run,
                progress=source.progress,
                first=plan.first_batch,
            )
        if source.example is not None:
            # Shapes of real use outweigh those of the calibration data; ranges come from the latter alone.
            observing[0] = source.batches is None
            seen, tracer.flow.inputs = tracer.flow.inputs, defaultdict(Counter)
            run_batches(
                plan.model, [source.example], source.forward_fn, around=tracer.run, description="running example_inputs"
            )
            plan.first_batch[:] = [source.example]
            for name, kinds in seen.items():
                tracer.flow.inputs.setdefault(name, kinds)
    plan.flow = tracer.flow


def _adapt(plan: _Plan, candidates: list[Candidate]) -> None:
    """Drop what never ran or saw nothing; find the plain equivalents of subclasses."""
    for candidate in candidates:
        name, job = candidate.name, plan.jobs[candidate.name]
        problem = None if plan.flow is None else never_ran(name, plan.model, plan.flow)
        if problem is None and job.observer is not None:
            observer = job.observer
            if not observer.has_data:
                problem = "its inputs held no finite value in calibration"
            elif observer.data_min == observer.data_max == 0.0:
                problem = "its inputs were zero throughout calibration, so they have no range"
        if problem is None and needs_adapter(candidate.module):
            adapted = adapt(candidate.module, plan.examples.get(name, []))
            if isinstance(adapted, str):
                problem = adapted
            else:
                job.adapted = adapted
                problem = layer_problem(adapted.layer)
                if adapted.note:
                    job.notes.append(adapted.note)
        if problem is not None:
            plan.leave(candidate, "skipped", problem)
    plan.examples.clear()


def _fuse(plan: _Plan) -> None:
    if plan.flow is None or not plan.config.fuse:
        return
    fusions = find_fusions({name: job.plain for name, job in plan.jobs.items()}, plan.modules, plan.flow)
    for name, job in plan.jobs.items():
        job.fusion = fusions[name]
        job.layer = None


def _measure(plan: _Plan) -> None:
    """The speed contract: drop what is not faster, then see again what can be fused among the rest."""
    _fuse(plan)
    measuring = plan.timer is not None and plan.config.only_if_faster
    if measuring:
        for job in plan.jobs.values():
            job.find_inputs(None if plan.flow is None else plan.flow.inputs)
    choose_forms(plan.jobs.values(), plan.config, plan.modules, plan.timer if measuring else None)
    if plan.timer is None or not measuring:
        return
    cases = []
    for job in plan.jobs.values():
        if job.inputs:
            cases.append(job.speed_case(plan.modules, plan.config, job.fusion.activation_module))
    for name, verdict in decide(cases, plan.timer, plan.source.progress).items():
        plan.jobs[name].verdict = verdict
        if not verdict.faster:
            plan.leave(plan.jobs[name].candidate, "kept", verdict.reason, verdict)
    _fuse(plan)


def _balance(plan: _Plan) -> dict[nn.Module, nn.Module]:
    """Fold, equalize and smooth; when that changed any input, calibrate once more on the changed inputs."""
    config, flow = plan.config, plan.flow
    for job in plan.jobs.values():
        job.fold(plan.modules)
    norms: dict[nn.Module, nn.Module] = {}
    if flow is not None and config.equalize and apply_equalization(plan.jobs, plan.modules, flow) == 0:
        logger.warning("quantize: equalize=True found no two layers that follow each other through a ReLU or nothing")
    if flow is not None and config.smoothquant is not None:
        norms = apply_smoothing(plan.jobs, plan.modules, flow, config.smoothquant)
        if not norms:
            logger.warning("quantize: smoothquant found no norm whose output only quantized linears read")
    changed = {name: job for name, job in plan.jobs.items() if job.input_divisor is not None}
    if changed and plan.source.batches is not None:
        for job in changed.values():
            job.start_observing(config)

        def listen(name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
            changed[name].observe(x)

        tracer = FlowTracer({n: job.candidate.module for n, job in changed.items()}, plan.model, (listen,))
        with tracer.recording():
            run_batches(
                plan.model,
                plan.source.batches,
                plan.source.forward_fn,
                around=tracer.run,
                description="calibrating again",
                progress=plan.source.progress,
            )
    return norms


def _commit(plan: _Plan, built: Mapping[str, QuantizedLayer], norms: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put everything in place, try the model once, and write the decisions down."""
    replacements: dict[nn.Module, nn.Module] = dict(norms)
    fused: dict[str, list[str]] = {}
    for name, layer in built.items():
        job = plan.jobs[name]
        replacements[job.candidate.module] = layer
        for removed in job.fusion.removed:
            fused.setdefault(removed, []).append(name)
            module = plan.modules[removed]
            replacements[module] = nn.Identity()
    root = replacements.get(plan.model, plan.model)
    undo = replace_modules(plan.model, replacements)
    try:
        if plan.first_batch and built:
            _try(root, plan)
        for name, layer in built.items():
            plan.decisions[name] = _quantized_decision(plan.jobs[name], layer)
    except BaseException:
        restore_modules(undo)
        raise
    for name, takers in fused.items():
        into = ", ".join(takers)
        plan.decisions[name] = LayerDecision(name, type(plan.modules[name]).__name__, "fused", f"fused into {into}")
    for old, new in replacements.items():
        new.train(plan.training[old])
    return root


def _try(root: nn.Module, plan: _Plan) -> None:
    """Run the quantized model once: what a parent does with its children is only seen when it runs."""
    try:
        run_batch(root, plan.first_batch[0], plan.source.forward_fn)
    except Exception as error:
        error.add_note(
            "raised by the quantized model on the first batch, which the float model had accepted: a parent module "
            "probably uses a layer in a way that int8 layers do not support; pass that layer in ignore=. The model was "
            "not changed"
        )
        raise


def _quantized_decision(job: Job, layer: QuantizedLayer) -> LayerDecision:
    verdict = job.verdict
    reasons = [verdict.reason if verdict is not None else "not measured"]
    if job.fusion.held_back:
        reasons.append(job.fusion.held_back)
    if len(job.candidate.names) > 1:
        reasons.append("shared with " + ", ".join(job.candidate.names[1:]))
    return LayerDecision(
        job.name,
        job.candidate.kind,
        "quantized",
        "; ".join(reasons + job.notes),
        tuple(kind.shape for kind, _ in job.inputs),
        verdict.dense_seconds if verdict is not None else None,
        verdict.quantized_seconds if verdict is not None else None,
        job.fusion.activation,
        layer.kernel_name(),
    )


def _log(decisions: Iterable[LayerDecision]) -> None:
    """One warning for all layers that could not be quantized."""
    skipped = [decision for decision in decisions if decision.action == "skipped"]
    if skipped:
        lines = "".join(f"\n  {d.name or '(the model)'} ({d.kind}): {d.reason}" for d in skipped)
        logger.warning("quantize: %d layers stay float:%s", len(skipped), lines)
