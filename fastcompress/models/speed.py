"""The speed contract: which layers are worth replacing, decided by measuring each distinct one at its shapes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import track
from fastcompress.models.flow import InputKind

__all__ = [
    "DEFAULT_TOKENS",
    "Inputs",
    "SpeedCase",
    "Timer",
    "Verdict",
    "choose_inputs",
    "decide",
    "default_inputs",
    "mean_seconds",
]

#: ``timer({"dense": f, "int8": g})`` → seconds of one call of each (`fastcompress.report.measure.compare`).
#: The second name says what competes: ``"int8"``, ``"sparse int8"`` (with ``"int8"``), or ``"sparse"``.
Timer: TypeAlias = Callable[[Mapping[str, Callable[[], Any]]], Mapping[str, float]]

#: What a layer is measured on, with weights (how often each came).
Inputs: TypeAlias = tuple[tuple[InputKind, int], ...]

#: Numbers of tokens at which a linear is measured when nothing is known about its inputs.
DEFAULT_TOKENS = (1, 128)

#: At most this many shapes of one layer are measured.
_MAX_SHAPES = 3


@dataclass(frozen=True)
class SpeedCase:
    """One layer to decide about.

    Attributes:
        name: the layer's name.
        key: equal for layers that take the same time; they are measured once.
        inputs: what it is measured on, with weights (how often each came).
        dense: the float layer together with all that the compressed layer takes over.
        compressed: makes the compressed layer; called only when it is measured.
        group: name of the activation module that this layer takes over, which others may share; None without one.
        label: what the compressed layer is, for the timer and for the reason.
    """

    name: str
    key: tuple[Any, ...]
    inputs: Inputs
    dense: Callable[[Tensor], Tensor]
    compressed: Callable[[], nn.Module]
    group: str | None = None
    label: str = "int8"


@dataclass(frozen=True)
class Verdict:
    """Measured seconds of one call, averaged over the inputs by weight, and what follows from it."""

    faster: bool
    dense_seconds: float
    quantized_seconds: float
    reason: str


def default_inputs(in_features: int, dtype: torch.dtype) -> Inputs:
    """What a linear is measured on when no data was given: 1 and 128 tokens."""
    return tuple((InputKind((tokens, in_features), dtype), 1) for tokens in DEFAULT_TOKENS)


def choose_inputs(seen: Counter[InputKind]) -> Inputs:
    """The few inputs that stand for all that were seen: the most frequent, the largest and the smallest."""
    kinds = [kind for kind in seen if 0 not in kind.shape]
    if len(kinds) <= _MAX_SHAPES:
        return tuple((kind, seen[kind]) for kind in kinds)
    by_size = sorted(kinds, key=lambda kind: (_elems(kind), kind.shape))
    frequent = max(by_size, key=lambda kind: seen[kind])
    chosen = dict.fromkeys((frequent, by_size[-1], by_size[0]))
    return tuple((kind, seen[kind]) for kind in chosen)


def _elems(kind: InputKind) -> int:
    product = 1
    for size in kind.shape:
        product *= size
    return product


def decide(cases: Sequence[SpeedCase], timer: Timer, progress: bool | None = None) -> dict[str, Verdict]:
    """Measure every distinct case and decide: name → `Verdict`.

    A layer is replaced when the compressed one takes less time, averaged over its inputs. When all layers of a group
    together take less time, those among them that alone do not are replaced too: the shared activation can only go away
    as one.
    """
    measured: dict[tuple[Any, ...], tuple[float, float]] = {}
    distinct = {(case.key, case.inputs): case for case in cases}
    for key, case in track(list(distinct.items()), "measuring layers", progress):
        measured[key] = _measure(case, timer)
    times = {case.name: measured[case.key, case.inputs] for case in cases}
    verdicts = {case.name: _verdict(case.label, *times[case.name]) for case in cases}
    for group, members in _groups(cases).items():
        dense, quantized = (sum(times[name][i] for name in members) for i in (0, 1))
        if quantized >= dense:
            continue
        for name in members:
            if not verdicts[name].faster:
                verdicts[name] = Verdict(True, *times[name], _group_reason(group, dense, quantized))
    return verdicts


def mean_seconds(functions: Mapping[str, Callable[[Tensor], Any]], inputs: Inputs, timer: Timer) -> dict[str, float]:
    """Name → seconds of one call, averaged over ``inputs`` by their weights; all functions see the same tensors."""
    total = sum(weight for _, weight in inputs)
    result = dict.fromkeys(functions, 0.0)
    with torch.no_grad():
        for kind, weight in inputs:
            x = kind.make()
            seconds = timer({name: partial(function, x) for name, function in functions.items()})
            for name in functions:
                result[name] += seconds[name] * weight / total
    return result


def _measure(case: SpeedCase, timer: Timer) -> tuple[float, float]:
    seconds = mean_seconds({"dense": case.dense, case.label: case.compressed()}, case.inputs, timer)
    return seconds["dense"], seconds[case.label]


def _verdict(label: str, dense: float, compressed: float) -> Verdict:
    faster = compressed < dense
    ratio = dense / compressed if compressed > 0 else float("inf")
    reason = f"{label} measured {ratio:.2f}× as fast as dense here" + ("" if faster else ", dense is kept")
    return Verdict(faster, dense, compressed, reason)


def _group_reason(group: str, dense: float, quantized: float) -> str:
    ratio = dense / quantized if quantized > 0 else float("inf")
    return f"int8 so that all layers before the shared {group} fuse it: {ratio:.2f}× as fast for all of them together"


def _groups(cases: Iterable[SpeedCase]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        if case.group is not None:
            groups[case.group].append(case.name)
    return {group: members for group, members in groups.items() if len(members) > 1}
