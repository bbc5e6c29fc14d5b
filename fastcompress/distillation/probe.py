"""One forward that shows what a model returns inside, and leaves no trace in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn, evaluating, run_batch

from .outputs import find_tensor, logits_of
from .taps import Taps
from .wrappers import modules_by_name, unwrapped

__all__ = ["Probe", "Seen", "probe", "run_quietly", "undisturbed"]


@dataclass(frozen=True)
class Seen:
    """A module that returned a floating tensor: its name, the tensor, and whether it is the model's own output."""

    name: str
    value: Tensor
    is_output: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)


@dataclass(frozen=True)
class Probe:
    """What one forward showed: the logits (None if there are none), the taps, and all modules as they ended."""

    logits: Tensor | None
    taps: dict[str, Tensor]
    seen: tuple[Seen, ...]

    def tensor(self, name: str) -> Tensor:
        """What the module called ``name`` returned."""
        return self.taps[name] if name in self.taps else next(s.value for s in reversed(self.seen) if s.name == name)


def probe(
    model: nn.Module, batch: Any, forward_fn: ForwardFn | None, names: Iterable[str], whose: str, logits: bool
) -> Probe:
    """Run ``model`` (the one inside its wrappers) once in eval mode and look at its modules.

    Args:
        names: modules whose output is kept, see `Taps`.
        whose: ``"student"`` or ``"teacher"``, for messages.
        logits: the output must hold logits; otherwise they may be missing.

    Raises:
        TypeError, ValueError, RuntimeError: a name is wrong or did not run, or there are no logits.
    """
    inner = unwrapped(model)
    records: list[tuple[str, Tensor]] = []
    with undisturbed(inner), Taps(inner, names, whose=whose) as taps, _listening(inner, records):
        output = run_quietly(inner, batch, forward_fn)
    try:
        found: Tensor | None = logits_of(output, whose)
    except TypeError:
        if logits:
            raise
        found = None
    seen = tuple(Seen(name, value, _is_part_of(value, found)) for name, value in records)
    return Probe(found, {name: taps[name] for name in taps.names}, seen)


def run_quietly(model: nn.Module, batch: Any, forward_fn: ForwardFn | None) -> Any:
    """The output of ``model`` in eval mode, without gradients; modes and random number generators are put back."""
    with _same_random_numbers(model), evaluating(model):
        return run_batch(model, batch, forward_fn, function="distillation", noun="batch")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put every buffer back afterwards, the tensor and its values: observers and the like count in eval mode too."""
    before = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                module._buffers[name] = buffer
                if buffer is None or value is None:
                    continue
                if buffer.shape != value.shape:
                    buffer.data = value
                elif not torch.equal(buffer, value):
                    buffer.copy_(value)


def _same_random_numbers(model: nn.Module) -> Any:
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    return torch.random.fork_rng(devices=devices)


@contextmanager
def _listening(model: nn.Module, records: list[tuple[str, Tensor]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, module in modules_by_name(model).items():
            # Dropout passes its input on in eval mode, but not in training: no place for a tap.
            if not name or isinstance(module, nn.modules.dropout._DropoutNd):
                continue

            def hook(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                value = find_tensor(output)
                if value is not None and value.is_floating_point():
                    records.append((name, value))

            stack.enter_context(module.register_forward_hook(hook))
        yield


def _is_part_of(value: Tensor, logits: Tensor | None) -> bool:
    """Whether ``value`` is the logits, or a view of the same memory, or as wide and of as many dimensions."""
    if logits is None:
        return False
    if value.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr():
        return True
    dim = 1 if value.dim() == 4 else -1
    return value.dim() == logits.dim() and value.dim() > 1 and value.shape[dim] == logits.shape[dim]
