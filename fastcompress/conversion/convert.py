"""Masks to block-sparse layers for a whole model: look, measure, build, and only then change anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.adapters import Adapted, adapt, needs_adapter
from fastcompress.models.calibrate import ForwardFn, evaluating, run_batch, run_batches
from fastcompress.models.flow import Flow, FlowTracer
from fastcompress.models.parents import layer_problem, never_ran, parent_problems
from fastcompress.models.replace import replace_modules, restore_modules
from fastcompress.models.speed import SpeedCase, Timer, Verdict, choose_inputs, decide, default_inputs
from fastcompress.models.targets import Candidate, Target, Wording, module_names, target_tuple, unwanted
from fastcompress.nn import BlockSparse, PackedLayer
from fastcompress.nn.blocks import Form, forms, promising
from fastcompress.nn.mask import Mask, foreign_parametrizations, mask_module, original_weight, remove_mask
from fastcompress.nn.orders import mask_orders
from fastcompress.record import LayerDecision

from .work import Work, weight_problem

__all__ = ["ConvertConfig", "convert_model"]

logger = logging.getLogger("fastcompress")

_WORDING = Wording("convert", "converted")

#: At most this many inputs, of different shapes, are kept to check an adapter.
_MAX_EXAMPLES = 4

_UNDERNEATH = ".parametrizations.weight.original"

Examples = dict[str, list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class ConvertConfig:
    """What `fastcompress.convert` does.

    Attributes:
        targets: convert only these modules: names, ``"re:…"`` patterns (whole name), or classes. None means all.
        ignore: leave these and their masks as they are; the same notation, and stronger than ``targets``.
        only_if_faster: block-sparse only where that is measured faster than dense on this machine.

    Raises:
        TypeError, ValueError: the message names the field, what came and what is allowed.
    """

    targets: tuple[Target, ...] | None = None
    ignore: tuple[Target, ...] = ()
    only_if_faster: bool = True

    def __post_init__(self) -> None:
        if self.targets is not None:
            object.__setattr__(self, "targets", target_tuple("convert", "targets", self.targets))
            if not self.targets:
                raise ValueError("convert: targets is empty; use None for all layers")
        object.__setattr__(self, "ignore", target_tuple("convert", "ignore", self.ignore))
        if not isinstance(self.only_if_faster, bool):
            raise TypeError(f"convert: only_if_faster must be True or False, got {self.only_if_faster!r:.80}")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for the record; classes become ``"module:qualname"``."""

        def shown(entry: Target) -> str:
            return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"

        targets = None if self.targets is None else [shown(entry) for entry in self.targets]
        ignore = [shown(entry) for entry in self.ignore]
        return {"targets": targets, "ignore": ignore, "only_if_faster": self.only_if_faster}


def convert_model(
    model: nn.Module,
    config: ConvertConfig,
    timer: Timer,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    progress: bool | None = None,
) -> tuple[nn.Module, list[LayerDecision]]:
    """Finish the masked layers of ``model`` in place and say what became of each, in the order of its modules.

    Nothing is changed before everything is built; an exception at any point leaves the model as it was.

    Returns:
        The model (another object only where the model itself is a single layer) and the decisions; no decisions where
        there is no mask.
    """
    chosen, decisions = _select(model, config)
    training = {candidate.module: candidate.module.training for candidate in chosen}
    observed = example is not None and bool(chosen)
    with evaluating(model):
        works = {candidate.name: Work(candidate, Adapted(candidate.module)) for candidate in chosen}  # type: ignore[arg-type]
        _find_problems(model, works, observed)
        flow, examples = _run(model, works, example, forward_fn) if observed else (None, {})
        _adapt(model, works, flow, examples)
        _choose(works, flow, config, timer, progress)
        built = {name: work.sparse(work.form) for name, work in works.items() if work.form is not None}
        root = _commit(model, works, built, training, example if observed else None, forward_fn)
    kernels = {name: layer.kernel_name() for name, layer in built.items()}
    decisions |= {name: work.decision(kernels.get(name, "")) for name, work in works.items()}
    _log(decisions)
    return root, [decisions[name] for name, _ in model.named_modules() if name in decisions]


def _select(model: nn.Module, config: ConvertConfig) -> tuple[list[Candidate], dict[str, LayerDecision]]:
    """The masked layers that are meant, and what is said about the others that have a mask."""
    everything = [
        Candidate(names, module)
        for module, names in module_names(model).items()
        if isinstance(module, (nn.Linear, nn.Conv2d, PackedLayer)) or mask_module(module) is not None
    ]
    left_out = unwanted(model, everything, config, _WORDING)
    masked = [candidate for candidate in everything if mask_module(candidate.module) is not None]
    decisions = {
        c.name: LayerDecision(c.name, c.kind, "kept", f"{left_out[c.name]}; it keeps its mask")
        for c in masked
        if c.name in left_out
    }
    chosen = [candidate for candidate in masked if candidate.name not in left_out]
    for candidate in chosen:
        if foreign_parametrizations(candidate.module):
            raise ValueError(
                f"convert: layer {candidate.name!r} ({candidate.kind}) has parametrizations besides its mask; remove "
                "them first with torch.nn.utils.parametrize.remove_parametrizations"
            )
    _check_ties(model, chosen)
    return chosen, decisions


def _check_ties(model: nn.Module, chosen: list[Candidate]) -> None:
    """Refuse to write zeros into a weight that something else, which does not have them, uses too."""
    weights: dict[int, list[Candidate]] = {}
    for candidate in chosen:
        weights.setdefault(id(original_weight(candidate.module)), []).append(candidate)
    places = {f".{name}{_UNDERNEATH}" if name else _UNDERNEATH for c in chosen for name in c.names}
    others = {
        id(parameter): name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if f".{name}" not in places
    }
    for key, group in weights.items():
        first, masks = group[0], [mask_module(candidate.module) for candidate in group]
        differing = [c.name for c, mask in zip(group, masks, strict=True) if not _same(mask, masks[0])]
        other = others.get(key) or next(iter(differing), None)
        if other is not None:
            raise ValueError(
                f"convert: layer {first.name!r} ({first.kind}) shares its weight with {other!r}, which has not the "
                "same mask, so the zeros of one would change the other; give each a weight of its own, give both the "
                "mask, or pass them in ignore="
            )


def _same(a: Mask | None, b: Mask | None) -> bool:
    return a is not None and b is not None and torch.equal(a.mask, b.mask)


def _find_problems(model: nn.Module, works: Mapping[str, Work], observed: bool) -> None:
    parents = parent_problems(model, observed)
    for work in works.values():
        module = work.candidate.module
        work.problem = parents.get(module) or layer_problem(module)


def _run(
    model: nn.Module, works: Mapping[str, Work], example: Any, forward_fn: ForwardFn | None
) -> tuple[Flow, Examples]:
    """Run the model once on the example: which shapes come where, and inputs and outputs for the adapters."""
    own_forward = {name for name, work in works.items() if needs_adapter(work.candidate.module)}
    examples: Examples = {}

    def listen(name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        if name in own_forward:
            kept = examples.setdefault(name, [])
            if len(kept) < _MAX_EXAMPLES and all(x.shape != seen.shape for seen, _ in kept):
                kept.append((x.detach().clone(), output.detach().clone()))

    tracer = FlowTracer({name: work.candidate.module for name, work in works.items()}, model, (listen,))
    with tracer.recording():
        run_batches(
            model,
            [example],
            forward_fn,
            around=tracer.run,
            description="running example_inputs",
            function="convert",
        )
    return tracer.flow, examples


def _adapt(model: nn.Module, works: Mapping[str, Work], flow: Flow | None, examples: Examples) -> None:
    """Find the plain equivalents of subclasses, and what forbids a block-sparse layer."""
    for name, work in works.items():
        module = work.candidate.module
        if work.problem is None and flow is not None:
            work.problem = never_ran(name, model, flow)
        if work.problem is None and needs_adapter(module):
            adapted = adapt(module, examples.get(name, []))
            if isinstance(adapted, str):
                work.problem = adapted
            else:
                work.adapted = adapted
                work.notes += [adapted.note] if adapted.note else []
                work.problem = layer_problem(adapted.layer)
        if work.problem is None:
            work.problem = weight_problem(work.plain)


def _choose(
    works: Mapping[str, Work], flow: Flow | None, config: ConvertConfig, timer: Timer, progress: bool | None
) -> None:
    """Set `Work.form`: by measurement where there are inputs to measure on, otherwise by density."""
    cases: dict[str, tuple[Work, Form, SpeedCase]] = {}
    for work in works.values():
        if work.problem is not None:
            continue
        plain = work.plain
        orders = mask_orders(work.candidate.module, plain.weight)
        if not config.only_if_faster:
            work.tried = forms(plain.weight, plain.weight.dtype, orders=orders)
            work.form = work.tried[0]
            continue
        if flow is not None:
            work.inputs = choose_inputs(flow.inputs[work.name])
        elif isinstance(plain, nn.Linear):
            work.inputs = default_inputs(plain.in_features, plain.weight.dtype)
        work.tried = promising(plain.weight, plain.weight.dtype, orders=orders, measuring=bool(work.inputs))
        if not work.tried:
            best = forms(plain.weight, plain.weight.dtype, orders=orders)[0]
            work.notes.append(f"{best}, too many to gain anything (up to {best.limit:.0%} are expected to)")
        elif not work.inputs:
            work.form = work.tried[0]
            work.notes.append(f"up to {work.form.limit:.0%} are expected to be faster, example_inputs would tell")
        for form in work.tried if work.inputs else ():
            name = f"{work.name} as {form}"
            cases[name] = (work, form, work.speed_case(name, form))
    _measure(cases, timer, progress)


def _measure(cases: Mapping[str, tuple[Work, Form, SpeedCase]], timer: Timer, progress: bool | None) -> None:
    """Of each layer's forms, take the one that gains most, if any does."""
    verdicts = decide([case for _, _, case in cases.values()], timer, progress)
    for name, (work, form, _) in cases.items():
        verdict = verdicts[name]
        if work.verdict is None or _gain(verdict) > _gain(work.verdict):
            work.verdict, work.judged = verdict, form
            work.form = form if verdict.faster else None


def _gain(verdict: Verdict) -> float:
    return verdict.dense_seconds / verdict.quantized_seconds if verdict.quantized_seconds > 0 else float("inf")


def _commit(
    model: nn.Module,
    works: Mapping[str, Work],
    built: Mapping[str, BlockSparse],
    training: Mapping[nn.Module, bool],
    example: Any,
    forward_fn: ForwardFn | None,
) -> nn.Module:
    """Put the sparse layers in place, try the model once, then write down the masks that are left."""
    replacements: dict[nn.Module, nn.Module] = {works[name].candidate.module: layer for name, layer in built.items()}
    root = replacements.get(model, model)
    undo = replace_modules(model, replacements)
    try:
        if example is not None and built:
            run_batch(root, example, forward_fn, function="convert")
    except BaseException as error:
        restore_modules(undo)
        error.add_note(
            "raised by the converted model on example_inputs, which the masked model had accepted: a parent module "
            "probably uses a layer in a way that sparse layers do not support; pass that layer in ignore=. The model "
            "was not changed"
        )
        raise
    for old, new in replacements.items():
        new.train(training[old])
    for name, work in works.items():
        if name not in built:
            remove_mask(work.candidate.module)
    return root


def _log(decisions: Mapping[str, LayerDecision]) -> None:
    """One warning for all layers that could not become sparse."""
    skipped = [decision for decision in decisions.values() if decision.action == "skipped"]
    if skipped:
        lines = "".join(f"\n  {d.name or '(the model)'} ({d.kind}): {d.reason}" for d in skipped)
        logger.warning("convert: %d masked layers stay dense:%s", len(skipped), lines)
