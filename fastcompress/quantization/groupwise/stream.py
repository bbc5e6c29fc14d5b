"""A whole model, block by block: memory for one block's statistics and the hidden states, whatever its depth."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn, as_batches, evaluating, run_batch, track

from .chain import Chain, Replay, find_chain, without_cache
from .checkpoint import LayerResult, StageFiles, fingerprint
from .grid import GroupGrid
from .layers import StageResult, quantize_alone, quantize_stage, set_weight
from .options import ALGORITHMS, GroupwiseOptions
from .stage import Stage

__all__ = ["quantize_weights"]

_FUNCTION = "quantize_weights"

#: Of the arithmetic; a change of it ends the life of files in a checkpoint_dir.
_VERSION = 1


def quantize_weights(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    grid: GroupGrid,
    algorithm: str = "rtn",
    batches: Iterable[Any] | None = None,
    forward_fn: ForwardFn | None = None,
    options: GroupwiseOptions | None = None,
    progress: bool | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> dict[str, LayerResult]:
    """Quantize the weights of linears of a model, each block on what the quantized blocks before it put out.

    Args:
        model: a working copy: its layers get the rounded weights (as new parameters; none is written into), and with
            ``"awq"`` the modules in front of them take the scales.
        layers: name below the model → linear.
        grid: the grid of all of them.
        algorithm: ``"rtn"``, ``"hqq"``, ``"gptq"`` or ``"awq"``; the last two need batches.
        batches: calibration data, all of it kept in memory.
        forward_fn: ``forward_fn(model, batch)`` runs the model in place of the batch protocol.
        options: settings of the algorithm.
        progress: show a bar; None: when it takes long and stderr is a terminal.
        checkpoint_dir: where finished blocks are kept; the same call goes on there, to the same bits.

    Returns:
        Each layer's portable form and report, in the order of ``layers``.

    Raises:
        TypeError, ValueError: an argument is wrong, a weight or an input holds NaN or infinity, or checkpoint_dir is
            another run's. CheckpointError: a file there is damaged. Whatever the model raises is passed on.

    Example:
        >>> found = quantize_weights(copy.deepcopy(model), linears, GroupGrid(), "gptq", batches)
        >>> found["model.layers.0.mlp.down_proj"].report["retries"]
        0

    Source: Frantar et al. 2023, "GPTQ" (arXiv 2210.17323), section 3.3 (blocks one after the other).
    """
    options = GroupwiseOptions() if options is None else options
    _check(model, layers, grid, algorithm, options)
    data: list[Any] = []
    if algorithm in ("gptq", "awq"):
        if batches is None:
            raise ValueError(f"{_FUNCTION}: algorithm {algorithm!r} needs calibration data; pass batches, or use 'hqq'")
        data = list(as_batches(batches, "batches", function=_FUNCTION))
        if not data:
            raise ValueError(f"{_FUNCTION}: batches is empty; give at least one (a used-up iterator is empty)")
    with evaluating(model), without_cache(model):
        run = _Run(model, dict(layers), grid, algorithm, options, data, forward_fn)
        files = None if checkpoint_dir is None else StageFiles(checkpoint_dir, run.key())
        found: dict[str, LayerResult] = {}
        for number, step in enumerate(track(run.steps(), f"{algorithm}: blocks", progress)):
            found |= run.take(step, number, files)
    return {name: found[name] for name in layers}


def _check(
    model: object, layers: Mapping[str, nn.Linear], grid: object, algorithm: str, options: GroupwiseOptions
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{_FUNCTION}: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(grid, GroupGrid):
        raise TypeError(f"{_FUNCTION}: grid must be a GroupGrid, got {type(grid).__name__}")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{_FUNCTION}: algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    if options.search == "output" and algorithm in ("rtn", "hqq"):
        raise ValueError(f"{_FUNCTION}: search='output' needs algorithm 'gptq', got {algorithm!r}; use 'mse'")
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{_FUNCTION}: layers[{name!r}] must be an nn.Linear, got {type(layer).__name__}")
        if "weight" not in layer._parameters:
            raise ValueError(
                f"{_FUNCTION}: layers[{name!r}] has a parametrized weight; remove_parametrizations makes it a plain one"
            )


@dataclass(frozen=True)
class _Step:
    """A stage; ``prefix`` is its root's name with a dot, ``index`` that of its block in the chain."""

    stage: Stage
    prefix: str = ""
    index: int | None = None


class _Run:
    """One call of `quantize_weights`."""

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Linear],
        grid: GroupGrid,
        algorithm: str,
        options: GroupwiseOptions,
        data: list[Any],
        forward_fn: ForwardFn | None,
    ) -> None:
        self.model, self.layers, self.grid = model, layers, grid
        self.algorithm, self.options, self.data, self.forward_fn = algorithm, options, data, forward_fn
        self.replay: Replay
        owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
        self.tied = frozenset(key for key, count in owners.items() if count > 1)

    def key(self) -> str:
        """The fingerprint of all that decides the result."""
        weights: dict[str, Tensor] = dict(self.model.named_parameters())
        weights |= dict(self.model.named_buffers())
        return fingerprint((_VERSION, self.algorithm, self.grid, self.options, list(self.layers)), weights, self.data)

    def forward(self, batch: int) -> Any:
        """Run the whole model."""
        try:
            return run_batch(self.model, self.data[batch], self.forward_fn, function=_FUNCTION)
        except Exception as error:
            error.add_note(f"raised while calibrating, on batch {batch}")
            raise

    def steps(self) -> list[_Step]:
        """The stages in order."""
        if self.algorithm in ("rtn", "hqq"):
            return [_Step(self._alone(name, layer)) for name, layer in self.layers.items()]
        chain = find_chain(self.model, self.layers, partial(self.forward, 0))
        if chain is None:
            return [_Step(self._whole("the model", self.layers))]
        self.replay = Replay(chain)
        return list(self._chained(chain))

    def _chained(self, chain: Chain) -> Iterator[_Step]:
        inside = {id(module) for block in chain.blocks for module in block.modules()}
        rest = {name: layer for name, layer in self.layers.items() if id(layer) not in inside}
        early = {name: layer for name, layer in rest.items() if name in chain.before}
        late = {name: layer for name, layer in rest.items() if name not in chain.before}
        if early:
            yield _Step(self._whole("before the blocks", early))
        prefix = f"{chain.name}." if chain.name else ""
        names = [name for name, _ in self.model.get_submodule(chain.name).named_children()]
        for index, (name, block) in enumerate(zip(names, chain.blocks, strict=True)):
            own = {id(module) for module in block.modules()}
            held = {full: layer for full, layer in self.layers.items() if id(layer) in own}
            stage = Stage(f"{prefix}{name}", block, held, partial(self.replay.run, index), len(self.data))
            yield _Step(stage, f"{prefix}{name}.", index)
        if late:
            yield _Step(self._whole("after the blocks", late))

    def _whole(self, name: str, layers: Mapping[str, nn.Linear]) -> Stage:
        return Stage(name, self.model, layers, self.forward, len(self.data))

    def _alone(self, name: str, layer: nn.Linear) -> Stage:
        return Stage(name, layer, {name: layer}, self.forward, 0)

    def take(self, step: _Step, number: int, files: StageFiles | None) -> dict[str, LayerResult]:
        """Do one step, or take over what a file says of it."""
        if step.index == 0:
            self._capture()
        stored = None if files is None else files.load(number)
        if stored is not None:
            layers, folded = stored
            self._put(layers, folded)
        else:
            try:
                result = self._quantized(step.stage)
            except Exception as error:
                error.add_note(f"raised while quantizing {step.stage.name}")
                raise
            layers = result.layers
            if files is not None:
                files.save(number, layers, {step.prefix + name: value for name, value in result.folded.items()})
        if step.index is not None:
            if step.index == len(self.replay.chain.blocks) - 1:
                self.replay.forget()
            else:
                self.replay.advance(step.index)
        return layers

    def _capture(self) -> None:
        """All batches up to the first block."""
        for batch in range(len(self.data)):
            self.replay.capture(partial(self.forward, batch))

    def _quantized(self, stage: Stage) -> StageResult:
        if self.algorithm in ("rtn", "hqq"):
            made = {
                name: quantize_alone(name, layer, self.grid, self.algorithm, self.options)
                for name, layer in stage.layers.items()
            }
            return StageResult(made)
        return quantize_stage(stage, self.grid, self.algorithm, self.options, self.tied)

    def _put(self, layers: Mapping[str, LayerResult], folded: Mapping[str, Tensor]) -> None:
        for name, value in folded.items():
            owner, _, key = name.rpartition(".")
            self.model.get_submodule(owner)._parameters[key] = nn.Parameter(value, requires_grad=False)
        for name, result in layers.items():
            set_weight(self.layers[name], result.canonical)
