"""A part of the model that is calibrated and quantized at once, and what its linears read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .statistics import InputStatistics, StatisticsCollector

__all__ = ["Reader", "Stage", "collect", "listening", "parts", "reader_groups"]

#: Hessians of at most this many elements are kept at once (1 GiB); more take another pass over the data.
_HESSIAN_ELEMS = 1 << 28

#: ``reader(name, input)``: a linear is about to run.
Reader = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Stage:
    """A block of the model, or all of it.

    Attributes:
        name: for messages and progress.
        root: the module that holds everything the stage runs.
        layers: the linears to quantize, by name.
        run: runs the root on a batch, by number.
        batches: how many there are.
    """

    name: str
    root: nn.Module
    layers: Mapping[str, nn.Linear]
    run: Callable[[int], Any]
    batches: int


@contextmanager
def listening(layers: Mapping[str, nn.Module], reader: Reader) -> Iterator[None]:
    """``reader`` hears of each call of these layers."""
    with ExitStack() as stack:
        for name, layer in layers.items():

            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                x = args[0] if args else kwargs.get("input")
                if isinstance(x, Tensor):
                    reader(name, x)

            stack.enter_context(_removed(layer.register_forward_pre_hook(hook, with_kwargs=True)))
        yield


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def reader_groups(stage: Stage) -> list[list[str]]:
    """The linears that read the same tensor, in the order in which they run; learned from the first batch.

    Those that do not run in it are not there.
    """
    calls: dict[str, list[tuple[int, int]]] = {}
    alive: list[Tensor] = []  # or another tensor might get the same address

    def reader(name: str, x: Tensor) -> None:
        alive.append(x)
        calls.setdefault(name, []).append((id(x), x._version))

    with listening(stage.layers, reader):
        stage.run(0)
    groups: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for name, seen in calls.items():
        groups.setdefault(tuple(seen), []).append(name)
    return list(groups.values())


def parts(stage: Stage, groups: Sequence[list[str]], sequential: bool = False) -> Iterator[list[list[str]]]:
    """The groups in runs whose Hessians fit into memory together; one by one if ``sequential``."""
    part: list[list[str]] = []
    elems = 0
    for group in groups:
        size = stage.layers[group[0]].in_features ** 2
        if part and (sequential or elems + size > _HESSIAN_ELEMS):
            yield part
            part, elems = [], 0
        part.append(group)
        elems += size
    if part:
        yield part


def collect(stage: Stage, groups: Sequence[list[str]]) -> dict[str, InputStatistics]:
    """The input statistics of every linear in the groups, over all batches.

    Those of a group share one. Where a later batch shows that they do not read the same tensor after all, the pass is
    made again with each on its own.

    Raises:
        ValueError: an input held NaN or infinity.
    """
    found = _collected(stage, groups)
    if found is None:
        found = _collected(stage, [[name] for group in groups for name in group])
    assert found is not None, "a group of one is always the same"
    return found


def _collected(stage: Stage, groups: Sequence[list[str]]) -> dict[str, InputStatistics] | None:
    leader = {name: group[0] for group in groups for name in group}
    collectors = {
        group[0]: StatisticsCollector(stage.layers[group[0]].in_features, stage.layers[group[0]].weight.device)
        for group in groups
    }
    reads: dict[str, list[tuple[int, int]]] = {}
    alive: list[Tensor] = []

    def reader(name: str, x: Tensor) -> None:
        if not shared[name]:
            collectors[name].update(x)
            return
        alive.append(x)
        reads.setdefault(name, []).append((id(x), x._version))
        if leader[name] == name:
            collectors[name].update(x)

    shared = {name: len(group) > 1 for group in groups for name in group}
    with listening({name: stage.layers[name] for name in leader}, reader):
        for batch in range(stage.batches):
            reads.clear()
            alive.clear()
            stage.run(batch)
            if any(reads.get(name) != reads.get(first) for name, first in leader.items() if shared[name]):
                return None
    for name, collector in collectors.items():
        if not collector.finite:
            raise ValueError(
                f"quantize_weights: the input of {name!r} held NaN or infinity in calibration; repair the model or the "
                "calibration data, or leave the layer out"
            )
    finished = {name: collector.finished() for name, collector in collectors.items()}
    return {name: finished[first] for name, first in leader.items()}
