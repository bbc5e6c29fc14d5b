"""Post-training quantization of a whole model: record, measure, balance, build, and only then change anything."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.config import QuantConfig
from fastcompress.models.adapters import Adapted, adapt, needs_adapter
from fastcompress.models.calibrate import evaluating, run_batches
from fastcompress.models.flow import FlowTracer
from fastcompress.models.parents import layer_problem, never_ran, parent_problems, tied_problems
from fastcompress.models.speed import Timer, decide
from fastcompress.models.targets import Candidate, module_names, unwanted
from fastcompress.models.undo import undone_on_error
from fastcompress.nn import PackedLayer
from fastcompress.quantization.balance import apply_equalization, apply_smoothing
from fastcompress.quantization.candidates import find_candidates, unsupported_layers, unsupported_reason
from fastcompress.quantization.commit import commit, log_skipped
from fastcompress.quantization.embeddings import Embedded, find_embeddings, wanted_embeddings
from fastcompress.quantization.fixed import FixedScales
from fastcompress.quantization.fuse import Fusion, find_fusions, is_foldable
from fastcompress.quantization.group_weights import checked_options, find_weights
from fastcompress.quantization.job import Job
from fastcompress.quantization.plan import Plan, Source, tracked_modules
from fastcompress.quantization.sparse_form import choose_forms
from fastcompress.record import LayerDecision

__all__ = ["Source", "quantize_model"]

logger = logging.getLogger("fastcompress")

#: At most this many inputs, of different shapes, are kept to check an adapter.
_MAX_EXAMPLES = 4


def quantize_model(
    model: nn.Module,
    config: QuantConfig,
    source: Source,
    timer: Timer | None,
    fixed: Mapping[nn.Module, FixedScales] | None = None,
) -> tuple[nn.Module, list[LayerDecision]]:
    """Quantize ``model`` in place and say what was decided about each layer, in the order of its modules.

    Nothing is changed before everything is built; an exception at any point leaves the model as it was.

    Args:
        fixed: layer → its scales, settled already; then only these layers are quantized, with exactly these scales.

    Returns:
        The model (another object only where the model itself is a single layer) and the decisions.
    """
    modules = {names[0]: module for module, names in module_names(model).items()}
    training = {module: module.training for module in modules.values()}
    plan = Plan(model, config, source, timer, modules, training, fixed)
    checked_options(config)
    with evaluating(model), undone_on_error(model):
        candidates = _select(plan)
        _record_run(plan, candidates)
        _adapt(plan, candidates)
        _measure(plan)
        norms = _balance(plan)
        find_weights(plan)
        built = {name: job.quantized(config) for name, job in plan.jobs.items()}
        result = commit(plan, built, norms)
    order = {name: position for position, name in enumerate(plan.modules)}
    log_skipped(source.function, plan.decisions.values())
    return result, sorted(plan.decisions.values(), key=lambda decision: order[decision.name])


def _select(plan: Plan) -> list[Candidate]:
    """The candidates that nothing known before running forbids."""
    model, config = plan.model, plan.config
    everything = find_candidates(model)
    if plan.fixed is None:
        for layer in unsupported_layers(model):
            if not isinstance(layer.module, PackedLayer):
                plan.leave(layer, "skipped", unsupported_reason(layer.module))
    else:
        everything = [candidate for candidate in everything if candidate.module in plan.fixed]
    embeddings = [] if config.embedding_bits is None else list(find_embeddings(model))
    left_out = unwanted(model, [*everything, *(embedded.candidate for embedded, _ in embeddings)], config)
    everything = _without_heads(plan, everything, wanted_embeddings(embeddings, left_out))
    parents = parent_problems(model, _runs(plan.source))
    remaining: list[Candidate] = []
    for candidate in everything:
        module = candidate.module
        problem = parents.get(module) or layer_problem(module)
        if plan.fixed is not None:
            problem = problem or plan.fixed[module].problem
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
        scales = None if plan.fixed is None else plan.fixed[candidate.module]
        plan.jobs[candidate.name] = Job(candidate, Adapted(plain), fixed=scales)
        if candidate.module in notes:
            plan.jobs[candidate.name].notes.append(notes[candidate.module])
    return remaining


def _without_heads(
    plan: Plan, candidates: list[Candidate], embeddings: Iterable[tuple[Embedded, str, str]]
) -> list[Candidate]:
    """Decide about embeddings; the heads of those that are quantized go with them."""
    heads: set[nn.Module] = set()
    for embedded, action, reason in embeddings:
        if action != "quantized":
            plan.leave(embedded.candidate, action, reason)
            continue
        plan.embedded.append(embedded)
        heads.update(head.module for head in embedded.heads)
    return [candidate for candidate in candidates if candidate.module not in heads]


def _runs(source: Source) -> bool:
    return source.batches is not None or source.example is not None


def _record_run(plan: Plan, candidates: list[Candidate]) -> None:
    """Run the model on the calibration data: flow, shapes, observers, and examples for the adapters."""
    source = plan.source
    if not _runs(source):
        return
    own_forward = {c.name for c in candidates if needs_adapter(c.module)}
    for job in plan.jobs.values():
        if job.fixed is None:
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

    tracer = FlowTracer(tracked_modules(plan.model, plan.modules), plan.model, (listen,))
    with tracer.recording():
        if source.batches is not None:
            run_batches(
                plan.model,
                source.batches,
                source.forward_fn,
                around=tracer.run,
                progress=source.progress,
                first=plan.first_batch,
                function=source.function,
            )
        if source.example is not None:
            # Shapes of real use outweigh those of the calibration data; ranges come from the latter alone.
            observing[0] = source.batches is None
            seen, tracer.flow.inputs = tracer.flow.inputs, defaultdict(Counter)
            run_batches(
                plan.model,
                [source.example],
                source.forward_fn,
                around=tracer.run,
                description="running example_inputs",
                function=source.function,
            )
            plan.first_batch[:] = [source.example]
            for name, kinds in seen.items():
                tracer.flow.inputs.setdefault(name, kinds)
    plan.flow = tracer.flow


def _adapt(plan: Plan, candidates: list[Candidate]) -> None:
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
                if job.fixed is not None and not _same_weight(adapted.layer, candidate.module):
                    problem = "its adapter changes the weight, which its fake quantization did not take into account"
                if adapted.note:
                    job.notes.append(adapted.note)
        if problem is not None:
            plan.leave(candidate, "skipped", problem)
    plan.examples.clear()


def _same_weight(layer: nn.Module, module: nn.Module) -> bool:
    a, b = layer.weight, module.weight
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)


def _fuse(plan: Plan) -> None:
    layers: dict[str, nn.Module] = {name: job.plain for name, job in plan.jobs.items()}
    norms = None if plan.fixed is None else {name: _fixed_norm(plan, job) for name, job in plan.jobs.items()}
    fusions: dict[str, Fusion] = {}
    if plan.flow is not None and plan.config.fuse:
        fusions = find_fusions(layers, plan.modules, plan.flow, norms)
    elif norms is not None:
        fusions = {name: Fusion(norm=norm) for name, norm in norms.items()}
    for name, fusion in fusions.items():
        plan.jobs[name].fusion = fusion
        plan.jobs[name].layer = None


def _fixed_norm(plan: Plan, job: Job) -> str | None:
    """Name of the norm that a layer's scales were found with.

    Raises:
        ValueError: it can no longer be folded into the layer.
    """
    assert job.fixed is not None
    norm, flow, name = job.fixed.norm, plan.flow, job.name
    if norm is None:
        return None
    found = next((other for other, module in plan.modules.items() if module is norm), None)
    problem = ""
    if found is None:
        problem = "which is no longer in the model; replace modules (as convert_sync_batchnorm does) before prepare"
    elif not is_foldable(norm, job.plain.weight.shape[0]):
        problem = "which has hooks now, or statistics that are not finite; remove the hooks"
    elif flow is not None and (flow.sole_next(name) != found or flow.sole_source(found) != name):
        problem = "but something else uses the output of one of the two now; prepare the model as it runs"
    if problem or found is None:
        raise ValueError(
            f"{plan.source.function}: layer {name!r} was trained with the {type(norm).__name__} behind it folded in, "
            f"{problem}"
        )
    return found


def _measure(plan: Plan) -> None:
    """The speed contract: drop what is not faster, then see again what can be fused among the rest."""
    _fuse(plan)
    kind = plan.config.kind
    measuring = plan.timer is not None and plan.config.only_if_faster and not kind.weight_only
    if measuring:
        for job in plan.jobs.values():
            job.find_inputs(None if plan.flow is None else plan.flow.inputs)
    if not kind.grouped:
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


def _balance(plan: Plan) -> dict[nn.Module, nn.Module]:
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
