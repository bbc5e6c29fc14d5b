"""One masked layer on its way to a finished one: what is known about it, and what it can become."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fastcompress.models.adapters import Adapted
from fastcompress.models.copying import plain_copy
from fastcompress.models.speed import Inputs, SpeedCase, Verdict
from fastcompress.models.targets import Candidate
from fastcompress.nn import BlockSparse, SparseConv2d, SparseLinear
from fastcompress.nn.blocks import Form, misfit
from fastcompress.record import LayerDecision

__all__ = ["Work", "weight_problem"]

_WRITTEN = "its zeros are written into the dense weight"


def weight_problem(layer: nn.Linear | nn.Conv2d) -> str | None:
    """Why no block-sparse kernel takes the weight of a plain layer, or None."""
    return misfit(layer.weight.shape, getattr(layer, "groups", 1), layer.weight.dtype)


@dataclass(eq=False)
class Work:
    """One masked layer.

    Attributes:
        candidate: the module and its names.
        adapted: the plain layer that equals it.
        inputs: what it is measured on; empty when it is not.
        tried: the block-sparse forms in question, the most promising first.
        form: the one that it takes; None for the dense layer.
        verdict, judged: what measuring said about the best form, and that form; None when nothing was measured.
        problem: why it cannot be block-sparse; None when it can.
    """

    candidate: Candidate
    adapted: Adapted
    inputs: Inputs = ()
    tried: list[Form] = field(default_factory=list)
    form: Form | None = None
    verdict: Verdict | None = None
    judged: Form | None = None
    problem: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def plain(self) -> nn.Linear | nn.Conv2d:
        """The equal plain layer; its weight reads with the zeros."""
        return self.adapted.layer

    def sparse(self, form: Form) -> BlockSparse:
        """The block-sparse layer of one form, in eval mode."""
        if isinstance(self.plain, nn.Conv2d):
            options = self.adapted.padding_options
            return SparseConv2d.from_float(self.plain, block_size=form.block, orders=form.orders, **options).eval()
        return SparseLinear.from_float(self.plain, block_size=form.block, orders=form.orders).eval()

    def speed_case(self, name: str, form: Form) -> SpeedCase:
        """What is measured: the dense layer with its zeros in place against the block-sparse one."""
        plain = self.plain
        key = (
            *(self.candidate.kind, tuple(plain.weight.shape), plain.weight.dtype, plain.bias is not None),
            *self.adapted.geometry,
            *(form.block, round(form.density, 2), form.reordered),
        )
        # A mask is computed anew with every call: the dense layer to beat has its zeros in place.
        bare = plain_copy(plain)
        pads = self.adapted.padding is not None or self.adapted.same_padding
        dense: Any = replace(self.adapted, layer=bare) if pads else bare

        def run(x: Tensor) -> Tensor:
            return dense(x)

        return SpeedCase(name, key, self.inputs, run if pads else bare, lambda: self.sparse(form), label="sparse")

    def decision(self, kernel: str) -> LayerDecision:
        """The record's entry; ``kernel`` is empty for a dense layer."""
        verdict = self.verdict
        reasons = [verdict.reason] if verdict is not None else []
        if self.form is not None:
            action = "sparse"
            reasons += [] if verdict is not None else ["not measured"]
            reasons.append(str(self.form))
        elif self.problem is not None:
            action = "skipped"
            reasons += [self.problem, _WRITTEN]
        else:
            action = "kept"
            reasons += [*([] if self.judged is None else [str(self.judged)]), *self.notes, _WRITTEN]
        if self.form is not None:
            reasons += self.notes
        if len(self.candidate.names) > 1:
            reasons.append("shared with " + ", ".join(self.candidate.names[1:]))
        return LayerDecision(
            self.name,
            self.candidate.kind,
            action,
            "; ".join(reasons),
            tuple(kind.shape for kind, _ in self.inputs),
            None if verdict is None else verdict.dense_seconds,
            None if verdict is None else verdict.quantized_seconds,
            kernel=kernel,
        )
