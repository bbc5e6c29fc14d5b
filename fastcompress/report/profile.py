"""Where a forward pass spends its time, by layer."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastcompress.models.calibrate import evaluating, run_batch
from fastcompress.models.flow import InputKind

__all__ = ["Profile", "layer_seconds"]


@dataclass(frozen=True)
class Profile:
    """Where forward passes spent their time.

    Attributes:
        seconds: name → median seconds per pass of a layer, all its calls together; 0.0 without calls.
        total: median seconds of the whole pass.
        inputs: name → how often each kind of input came in one pass.
    """

    seconds: Mapping[str, float]
    total: float
    inputs: Mapping[str, Counter[InputKind]]


def layer_seconds(model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Any, runs: int = 5) -> Profile:
    """Time ``layers`` inside whole forward passes, through hooks that are removed afterwards.

    Args:
        model: the model; it is run in eval mode without gradients.
        layers: the modules of it to time, by name; none of them may contain another.
        example_inputs: one batch, as in `quantize`.
        runs: passes to take the median of, after one that does not count.

    """
    inputs: dict[str, Counter[InputKind]] = {name: Counter() for name in layers}
    started: dict[str, float] = {}
    spent: dict[str, float] = defaultdict(float)

    def before(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            if not totals and arguments and isinstance(arguments[0], Tensor):  # in the pass that does not count
                inputs[name][InputKind.of(arguments[0])] += 1
            started[name] = time.perf_counter()

        return hook

    def after(name: str) -> Any:
        def hook(*_: Any) -> None:
            spent[name] += time.perf_counter() - started[name]

        return hook

    samples: dict[str, list[float]] = {name: [] for name in layers}
    totals: list[float] = []
    handles = []
    try:
        for name, module in layers.items():
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after(name)))
        with evaluating(model):
            for turn in range(runs + 1):
                spent.clear()
                begin = time.perf_counter()
                run_batch(model, example_inputs)
                total = time.perf_counter() - begin
                if turn == 0:
                    continue
                totals.append(total)
                for name, values in samples.items():
                    values.append(spent[name])
    finally:
        for handle in handles:
            handle.remove()
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    return Profile(seconds, statistics.median(totals), inputs)
