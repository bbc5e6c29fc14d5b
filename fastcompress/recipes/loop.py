"""The training loop of one phase."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.errors import TrainingDiverged
from fastcompress.models.calibrate import ForwardFn, run_batch

from .checkpoint import Checkpoints
from .data import LossFn, TrainData
from .history import EpochRow, History
from .optimizers import LearningRate, set_rate
from .processes import averaged, everywhere, from_first, share_buffers, wrapped
from .progress import Progress
from .seeding import seed_step
from .session import Session

__all__ = ["EvalFn", "Settings", "evaluate", "run_phase"]

#: ``eval_fn(model)`` gives the score, higher is better; the model is in eval mode, without gradients.
EvalFn = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Settings:
    """What is the same through a run; see `compress`."""

    epochs: int
    data: TrainData
    loss_fn: LossFn
    eval_fn: EvalFn | None
    forward_fn: ForwardFn | None
    rate: LearningRate
    autocast: torch.dtype | None
    clip_norm: float | None
    seed: int
    checkpoint_every: int | None


def evaluate(model: nn.Module, eval_fn: EvalFn) -> float:
    """The model's score; its mode is left as it was. With several processes it is what the first one found.

    Raises:
        TypeError, ValueError: ``eval_fn`` returned no number.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            score: Any = eval_fn(model)
    finally:
        for module, mode in training.items():
            module.training = mode
    if isinstance(score, Tensor) and score.numel() == 1:
        score = score.item()
    if isinstance(score, bool) or not isinstance(score, Real):
        raise TypeError(f"compress: eval_fn must return a number, higher is better, got {type(score).__name__}")
    if math.isnan(score):
        raise ValueError("compress: eval_fn returned NaN, which cannot be compared; return a number, higher is better")
    return from_first([float(score)])[0]


class _PhaseLoop:
    """Optimizer, position and sums of a phase."""

    def __init__(
        self,
        session: Session,
        number: int,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        checkpoints: Checkpoints,
        history: History,
        progress: Progress,
    ) -> None:
        self.session, self.number, self.optimizer, self.settings = session, number, optimizer, settings
        self.checkpoints, self.history, self.progress = checkpoints, history, progress
        self.steps_per_epoch = settings.data.steps_per_epoch
        self.step = round(session.phase.start) * self.steps_per_epoch
        self.sums: dict[str, float] = {}
        self.forward = wrapped(session.model)
        self.parameters = list(session.parameters())
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]

    def state(self) -> dict[str, Any]:
        return {
            "phase": self.number,
            "step": self.step,
            "sums": dict(self.sums),
            "history": self.history.to_json(),
            "model": self.session.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "session": self.session.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.session.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.session.load_state_dict(state["session"])
        self.step, self.sums = state["step"], dict(state["sums"])
        self.history.rows[:] = History.from_json(state["history"]).rows

    def run(self) -> None:
        self.session.model.train()
        for epoch in range(self.step // self.steps_per_epoch, round(self.session.phase.end)):
            self._epoch(epoch)

    def _epoch(self, epoch: int) -> None:
        began = time.perf_counter()
        settings, last = self.settings, (epoch + 1) * self.steps_per_epoch
        batches = settings.data.epoch(epoch)
        self.progress.begin(epoch, self.steps_per_epoch, self.step - epoch * self.steps_per_epoch)
        for step in range(epoch * self.steps_per_epoch, last):
            seed_step(settings.seed, step)
            try:
                batch = next(batches)
            except StopIteration:
                raise ValueError(
                    f"compress: train_data ended after {step % self.steps_per_epoch} batches of epoch {epoch + 1}, "
                    f"expected {self.steps_per_epoch}"
                ) from None
            if step < self.step:
                continue  # done before the run was resumed; drawn again for the order's sake
            self._train(step, batch)
            self.step = step + 1
            every = settings.checkpoint_every
            if every is not None and self.step % every == 0 and self.step != last:
                self.sums = averaged(self.sums)
                self._save()
        self._close_epoch(epoch, time.perf_counter() - began)

    def _train(self, step: int, batch: Any) -> None:
        settings, session = self.settings, self.session
        set_rate(self.optimizer, settings.rate(step / (settings.epochs * self.steps_per_epoch)))
        session.before_step(step)
        for parameter in self.parameters:  # also those that the optimizer leaves out
            parameter.grad = None
        with self._autocast(), session.watching():
            output = run_batch(self.forward, batch, settings.forward_fn, function="compress")
            total, parts = session.loss(_checked(settings.loss_fn(output, batch)), batch, output)
        value = float(total.detach())
        # All processes stop together, or the others would wait for this one's gradients.
        if not everywhere(math.isfinite(value)):
            raise TrainingDiverged(self._diverged(f"the loss is {value}", step, parts))
        total.backward()  # type: ignore[no-untyped-call]
        session.before_update()
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if not everywhere(math.isfinite(norm)):
            raise TrainingDiverged(self._diverged(f"the gradient's norm is {float(norm)}", step, parts))
        if settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.trained, settings.clip_norm, norm)
        self.optimizer.step()
        session.after_step()
        for name, part in {**parts, "total": total.detach()}.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(part)
        self.progress.advance(value, session.sparsity)

    def _autocast(self) -> Any:
        if self.settings.autocast is None:
            return contextlib.nullcontext()
        device = next(self.session.model.parameters()).device.type
        return torch.autocast(device, dtype=self.settings.autocast)

    def _save(self) -> None:
        """Write a checkpoint, unless the last update has left weights that nothing can go on from."""
        finite = all(bool(torch.isfinite(p.detach()).all()) for p in self.trained if p.is_floating_point())
        if not everywhere(finite):
            raise TrainingDiverged(
                f"compress: weights are NaN or infinite after step {self.step}; {self._kept()}. Use a smaller learning "
                "rate, or clip_norm=1.0"
            )
        self.checkpoints.save(self.state())

    def _diverged(self, what: str, step: int, parts: dict[str, Tensor]) -> str:
        listed = ", ".join(f"{name} {float(part):g}" for name, part in parts.items())
        return (
            f"compress: {what} at step {step + 1} (epoch {step // self.steps_per_epoch + 1}; {listed}); the weights "
            f"were not changed by this step, and {self._kept()}. Use a smaller learning rate, or clip_norm=1.0"
        )

    def _kept(self) -> str:
        path = self.checkpoints.last_path
        return "there is no checkpoint (checkpoint_dir)" if path is None else f"the last good checkpoint is {path}"

    def _close_epoch(self, epoch: int, seconds: float) -> None:
        eval_fn = self.settings.eval_fn
        share_buffers(self.session.model)
        score = None if eval_fn is None else evaluate(self.session.model, eval_fn)
        losses = {name: total / self.steps_per_epoch for name, total in averaged(self.sums).items()}
        (seconds,) = from_first([seconds])
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.history.rows.append(EpochRow(epoch + 1, self.step, losses, self.session.sparsity, score, rate, seconds))
        self.progress.end(self.history.rows[-1])
        self.sums = {}
        self._save()


def _checked(loss: Any) -> Tensor:
    """What ``loss_fn`` returned, if it can be trained on."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"compress: loss_fn must return a tensor with one element, got {got}; take the mean")
    if not loss.requires_grad:
        raise ValueError(
            "compress: the loss has no gradient; compute it from the model's output, without detach, item or no_grad"
        )
    return loss


def run_phase(
    session: Session,
    number: int,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    checkpoints: Checkpoints,
    history: History,
    progress: Progress,
    saved: dict[str, Any] | None,
) -> dict[str, Any]:
    """Train one phase, from the start or from a checkpoint of it; returns the state at its end.

    Raises:
        TrainingDiverged: the loss is NaN or infinite.
    """
    session.bind_optimizer(optimizer)
    loop = _PhaseLoop(session, number, optimizer, settings, checkpoints, history, progress)
    if saved is not None:
        loop.restore(saved)
    loop.run()
    return loop.state()
