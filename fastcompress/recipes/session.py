"""One phase of a recipe at work on a model: what any training loop calls, ours, Lightning's or Hugging Face's."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastcompress.distillation import Distiller
from fastcompress.models.calibrate import ForwardFn
from fastcompress.pruning import Pruner
from fastcompress.quantization import freeze_batchnorm, freeze_observers, prepare, set_fake_quant

from .recipe import Phase
from .stages import QAT, Distillation, Pruning, steps_of

__all__ = ["Session"]


class Session:
    """Puts the stages of a phase on a model and drives them, step by step.

    Args:
        model: changed in place; its parameters stay the same objects through the phase.
        phase: the stages and their time.
        steps_per_epoch, epochs: of the whole run.
        example_batch: like the loop's, for tracing and taps.
        forward_fn: ``forward_fn(model, batch)`` in place of the batch protocol.
        dense: the model before compression, for the teacher called ``"dense"``.

    Example:
        >>> session = Session(model, phase, 100, 8, batch)
        >>> optimizer = torch.optim.AdamW(session.parameters())
        >>> session.bind_optimizer(optimizer)
        >>> for step, batch in enumerate(loader):
        ...     session.before_step(step)
        ...     with session.watching():
        ...         output = model(batch[0])
        ...     total, parts = session.loss(cross_entropy(output, batch[1]), batch, output)
        ...     optimizer.zero_grad(); total.backward(); session.before_update(); optimizer.step()
        ...     session.after_step()
        >>> model = session.finish()
    """

    def __init__(
        self,
        model: nn.Module,
        phase: Phase,
        steps_per_epoch: int,
        epochs: float,
        example_batch: Any,
        *,
        forward_fn: ForwardFn | None = None,
        dense: nn.Module | None = None,
    ) -> None:
        self.model, self.phase = model, phase
        self._steps_per_epoch, self._epochs = steps_per_epoch, epochs
        self._first = steps_of(phase.start, steps_per_epoch)
        self._step = self._first
        self.pruners = [
            self._pruner(stage, example_batch, forward_fn) for stage in phase.stages if isinstance(stage, Pruning)
        ]
        modules = dict(model.named_modules())
        self._sizes = {
            name: cast(Tensor, modules[name].weight).numel() for pruner in self.pruners for name in pruner.sparsities
        }
        self._qat = next((stage for stage in phase.stages if isinstance(stage, QAT)), None)
        if self._qat is not None:
            prepare(model, self._qat.config, example_batch, state="off", forward_fn=forward_fn, inplace=True)
        self._stage = next((stage for stage in phase.stages if isinstance(stage, Distillation)), None)
        self.distiller: Distiller | None = None
        if self._stage is not None:
            teacher: Any = self._stage.teacher
            if isinstance(teacher, str):
                assert dense is not None
                teacher = copy.deepcopy(dense).requires_grad_(False)
            self.distiller = Distiller(
                teacher, self._stage.losses, self._stage.cache, temperature=self._stage.temperature
            ).bind(model, example_batch, forward_fn)

    def _pruner(self, stage: Pruning, example_batch: Any, forward_fn: ForwardFn | None) -> Pruner:
        config = stage.config(self._steps_per_epoch, self._epochs)
        if self._first > 0:
            # The pruner counts from the start of its phase; scores of gradients need one step of it.
            start = max(int(stage.needs_gradients), config.start_step - self._first)
            end, rewind = config.end_step, config.rewind_step
            config = config.replace(
                start_step=start,
                end_step=None if end is None else max(start, end - self._first),
                rewind_step=None if rewind is None else max(0, rewind - self._first),
            )
        if stage.pattern == "channel":
            return Pruner(self.model, config, example_inputs=example_batch, forward_fn=forward_fn)
        return Pruner(self.model, config)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that is trained: the model's parameters and the distiller's projections."""
        yield from (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        if self.distiller is not None:
            yield from self.distiller.parameters()

    def bind_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell the pruners whose momentum belongs to pruned weights."""
        for pruner in self.pruners:
            pruner.optimizer = optimizer

    def before_step(self, step: int) -> None:
        """Switch on and freeze what is due before optimizer step ``step`` of the whole run, counted from 0.

        A run that is resumed behind these steps finds their effect in the model's state.
        """
        self._step = step
        if self._qat is None:
            return
        start = steps_of(self._qat.start, self._steps_per_epoch)
        freeze = steps_of(self._qat.freezes_at(self._epochs), self._steps_per_epoch)
        if step == start:
            set_fake_quant(self.model, "train")
        # Scales come from the first batch that is rounded, so at least one step passes before they are frozen.
        if step == max(freeze, start + 1):
            freeze_observers(self.model)
            freeze_batchnorm(self.model)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Run the model's forward pass of a step inside this block."""
        if self.distiller is None or not self.distilling:
            yield
            return
        with self.distiller.watching():
            yield

    def loss(self, task: Tensor, batch: Any, output: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to train on, and its parts by name: ``"task"`` and, while a teacher teaches, its losses."""
        if self.distiller is None or self._stage is None or not self.distilling:
            return task, {"task": task.detach()}
        taught = self.distiller.loss(self.model, batch, output)
        total = self._stage.task_weight * task + self._stage.weight * taught["total"]
        return total, {"task": task.detach(), **{n: v.detach() for n, v in taught.items() if n != "total"}}

    @property
    def distilling(self) -> bool:
        """Whether the teacher teaches in the step of the last `before_step`."""
        stage = self._stage
        if stage is None:
            return False
        end = self._epochs if stage.end is None else stage.end
        return steps_of(stage.start, self._steps_per_epoch) <= self._step < steps_of(end, self._steps_per_epoch)

    def before_update(self) -> None:
        """After ``backward``: what DistributedDataParallel does not see is averaged over the processes."""
        if self.distiller is not None and self.distilling:
            self.distiller.average_gradients()

    def after_step(self) -> None:
        """After ``optimizer.step``."""
        for pruner in self.pruners:
            pruner.step()
        if self.distiller is not None and self.distilling:
            self.distiller.update(self.model)

    @property
    def sparsity(self) -> float | None:
        """Masked fraction of the weights that are pruned; None without pruning."""
        if not self.pruners:
            return None
        found = {name: value for pruner in self.pruners for name, value in pruner.sparsities.items()}
        return sum(found[name] * size for name, size in self._sizes.items()) / sum(self._sizes.values())

    def finish(self) -> nn.Module:
        """End the phase: the model with its masks and fake quantization, or the smaller one without its channels."""
        if self.distiller is not None:
            self.distiller.unbind()
        result = self.model
        for pruner in self.pruners:
            result = pruner.finish()
        return result

    def state_dict(self) -> dict[str, Any]:
        """The stages' own state; the model's and the optimizer's are theirs."""
        state: dict[str, Any] = {"pruners": [pruner.state_dict() for pruner in self.pruners]}
        if self.distiller is not None:
            state["distiller"] = self.distiller.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an equal session returned."""
        for pruner, saved in zip(self.pruners, state["pruners"], strict=True):
            pruner.load_state_dict(saved)
        if self.distiller is not None:
            self.distiller.load_state_dict(state["distiller"])
