"""Where AWQ's scales go: the module in front of a group of linears whose output can be divided without a trace.

Whether it can is tried, not guessed: with powers of two as scales every product and sum is the same to the last bit if
the scales cancel, so the stage runs once with them and once without, and every other result must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastcompress.quantization.channels import all_finite, scale_inputs, scale_outputs

from .stage import Stage

__all__ = ["Producer", "fold_into", "producers", "replaced"]

#: Modules that are tried for one group, from the nearest on.
_TRIES = 4


@dataclass(frozen=True)
class Producer:
    """A module that makes a group's input.

    Attributes:
        name: below the stage's root.
        module: a norm with one weight per channel, or a linear.
        channel: int64 ``[in]``: which of its output channels reaches each input of the group.
    """

    name: str
    module: nn.Module
    channel: Tensor


def producers(
    stage: Stage, groups: Sequence[list[str]], finished: frozenset[str], tied: frozenset[int]
) -> dict[str, Producer]:
    """First name of a group → the module that takes its scales; groups without one are not there.

    Args:
        stage: runs the model's part.
        groups: linears that read one tensor.
        finished: names of linears that are quantized already and cannot take anything.
        tied: ids of parameters that several modules share, which nothing may change.
    """
    trace = _Trace(stage)
    base = trace.run()
    found: dict[str, Producer] = {}
    for group in groups:
        readers = [stage.layers[name] for name in group]
        for candidate in trace.candidates(readers[0]):
            module = candidate.module
            fixed = any(module is stage.layers.get(name) for name in finished) or module in readers
            shared = any(id(p) in tied for part in (module, *readers) for p in part.parameters(recurse=False))
            if not fixed and not shared and _cancels(trace, base, candidate, readers):
                found[group[0]] = candidate
                break
    return found


def fold_into(producer: Producer, scale: Tensor) -> dict[str, nn.Parameter] | None:
    """The producer's parameters with which its output is divided by ``scale [in]``; None if they overflow."""
    module = producer.module
    channels = module.get_parameter("weight").shape[0]
    divisor = torch.ones(channels, device=scale.device).index_copy_(0, producer.channel, scale)
    made = {}
    for name in ("weight", "bias"):
        parameter = getattr(module, name, None)
        if isinstance(parameter, Tensor):
            made[name] = nn.Parameter(scale_outputs(parameter, 1.0 / divisor.double()), requires_grad=False)
    return made if all_finite(list(made.values())) else None


@contextmanager
def replaced(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The module with other parameters for a while."""
    before = {name: module._parameters[name] for name in parameters}
    try:
        module._parameters.update(parameters)
        yield
    finally:
        module._parameters.update(before)


class _Trace:
    """Runs of the stage on its first batch, with what its modules with weights read and made."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._modules = {
            module: name
            for name, module in stage.root.named_modules()
            if isinstance(module, nn.Linear) or _is_norm(module)
        }
        self._order: list[nn.Module] = []
        self._input: dict[nn.Module, Tensor] = {}
        self._output: dict[nn.Module, list[Tensor]] = {}

    def run(self) -> dict[nn.Module | None, list[Tensor]]:
        """Every tensor that came out: of each module, and (None) of the stage itself."""
        self._order, self._input, self._output = [], {}, {}
        with ExitStack() as stack:
            for module in self._modules:
                stack.callback(module.register_forward_hook(self._heard, with_kwargs=True).remove)
            leaves = tree_leaves(self._stage.run(0))
        seen: dict[nn.Module | None, list[Tensor]] = {None: [leaf for leaf in leaves if isinstance(leaf, Tensor)]}
        for module, outputs in self._output.items():
            seen[module] = outputs
        return seen

    def _heard(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(x, Tensor) and isinstance(output, Tensor):
            if module not in self._output:
                self._order.append(module)
            self._input[module] = x
            self._output.setdefault(module, []).append(output)

    def candidates(self, reader: nn.Linear) -> list[Producer]:
        """Modules in front of the reader that may make its input, the likeliest first."""
        if reader not in self._input:
            return []
        x, inputs = self._input[reader], reader.in_features
        made = [module for module in self._order if any(out is x for out in self._output[module])]
        if made:
            return [self._producer(made[-1], torch.arange(inputs, device=x.device))]
        # Behind a view or an operation: whatever fits, from the nearest on.
        before = self._order[: self._order.index(reader)]
        fitting = ((module, self._channel(module, inputs)) for module in reversed(before))
        return [self._producer(module, channel) for module, channel in fitting if channel is not None][:_TRIES]

    def _producer(self, module: nn.Module, channel: Tensor) -> Producer:
        return Producer(self._modules[module], module, channel)

    def _channel(self, module: nn.Module, inputs: int) -> Tensor | None:
        """Which output of ``module`` each input would be: the same, or that of the head that it is repeated from."""
        weight = module.get_parameter("weight")
        out, index = weight.shape[0], torch.arange(inputs, device=weight.device)
        if out == inputs:
            return index
        if inputs % out or not isinstance(module, nn.Linear):
            return None
        parent = self._stage.root.get_submodule(self._modules[module].rpartition(".")[0])
        head = getattr(parent, "head_dim", None)
        if not isinstance(head, int) or head < 1 or out % head:
            return None
        return index // head // (inputs // out) * head + index % head


def _is_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1


def _cancels(
    trace: _Trace, base: Mapping[nn.Module | None, list[Tensor]], producer: Producer, readers: Sequence[nn.Linear]
) -> bool:
    """Whether dividing the producer's output and multiplying the readers' weights changes nothing else."""
    if producer.module._parameters.get("weight") is None:
        return False
    generator = torch.Generator().manual_seed(0)
    channels = producer.module.get_parameter("weight").shape[0]
    powers = torch.randint(-4, 5, (channels,), generator=generator).to(producer.channel.device)
    scale = torch.exp2(powers.float())[producer.channel]
    made = fold_into(producer, scale)
    if made is None:
        return False
    with ExitStack() as stack:
        stack.enter_context(replaced(producer.module, made))
        for reader in readers:
            weight = nn.Parameter(scale_inputs(reader, scale), requires_grad=False)
            stack.enter_context(replaced(reader, {"weight": weight}))
        changed = trace.run()
    others = [module for module in base if module is not producer.module]
    return set(changed) == set(base) and all(_equal(base[module], changed[module]) for module in others)


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
