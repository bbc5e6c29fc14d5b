"""What one call of `quantize_model` works on and knows so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.config import QuantConfig
from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.flow import Flow
from fastcompress.models.speed import Timer, Verdict
from fastcompress.models.targets import Candidate
from fastcompress.quantization.candidates import find_candidates
from fastcompress.quantization.embeddings import Embedded
from fastcompress.quantization.fixed import FixedScales
from fastcompress.quantization.job import Job
from fastcompress.record import LayerDecision

__all__ = ["Plan", "Source", "tracked_modules"]


@dataclass(frozen=True)
class Source:
    """Where a model's inputs come from.

    Attributes:
        batches: calibration batches, or None.
        example: one batch that is like those of real use, or None.
        forward_fn: runs the model on a batch in place of the batch protocol.
        progress: show progress bars; None decides by stderr.
        function: the public function that messages speak for.
    """

    batches: Iterable[Any] | None = None
    example: Any = None
    forward_fn: ForwardFn | None = None
    progress: bool | None = None
    function: str = "quantize"


@dataclass
class Plan:
    """All that is known so far about one call of `quantize_model`.

    Attributes:
        fixed: layer → the scales that it must have; None for a call that finds scales itself, for every candidate.
        jobs: what is going to be quantized, by name.
        embedded: the embeddings that are, with the heads that share their weight.
    """

    model: nn.Module
    config: QuantConfig
    source: Source
    timer: Timer | None
    modules: dict[str, nn.Module]
    training: dict[nn.Module, bool]
    fixed: Mapping[nn.Module, FixedScales] | None = None
    decisions: dict[str, LayerDecision] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    embedded: list[Embedded] = field(default_factory=list)
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


def tracked_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """What the tracer follows among ``modules``: the layers, and every other module that has nothing inside."""
    layers = {candidate.module for candidate in find_candidates(model)}
    inside = {child for layer in layers for child in layer.modules() if child is not layer}
    return {
        name: module
        for name, module in modules.items()
        if module not in inside
        and not isinstance(module, torch.jit.ScriptModule)
        and (module in layers or next(module.children(), None) is None)
    }
