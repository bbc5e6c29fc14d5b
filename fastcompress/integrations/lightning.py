"""A recipe as a callback of Lightning's Trainer (``pip install fastcompress[lightning]``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn
from fastcompress.recipes import Session
from fastcompress.recipes.processes import world_size

from .session import (
    PROJECTIONS,
    Recipe,
    add_projections,
    added_parameters,
    attached,
    first_batch,
    make_session,
    missing_from,
    outputs_of,
    stages_of,
)

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl
    except ImportError as error:
        raise ImportError(
            "fastcompress.integrations.lightning needs Lightning: pip install 'fastcompress[lightning]'"
        ) from error

__all__ = ["CompressionCallback"]


class CompressionCallback(pl.Callback):  # type: ignore[misc]  # Lightning is not checked
    """Prunes, quantizes and distils while Lightning trains.

    The stages are put on before ``configure_optimizers`` is called. Their state is part of Lightning's checkpoints, so
    ``ckpt_path=`` goes on where it left off. Call `finish` after ``trainer.fit``, then `fastcompress.convert`.

    For automatic optimization with one optimizer. A teacher's loss is added to what ``training_step`` returns; it
    compares with what ``network`` returned last in that step, so the step must call it as a function.
    ``configure_optimizers`` must take all of ``self.parameters()`` where a recipe adds some (learned scales,
    projections of feature losses).

    Args:
        recipe: stages, or the path of a YAML file; times are in epochs. Pattern ``"channel"`` is not possible.
        network: name of the submodule that is compressed; None is the LightningModule itself.
        example_batch: one batch like those of training; by default the first one of the training loader.
        forward_fn: ``forward_fn(network, batch)``; by default a tensor is ``network(x)``, a dict ``network(**x)``, a
            tuple or list its first element.

    Raises:
        TypeError, ValueError: a wrong recipe here; what does not fit the run is said when ``fit`` begins, before
            anything was trained.

    Example:
        >>> callback = CompressionCallback([fc.recipes.Pruning(0.9, "4x4"), fc.recipes.QAT(start=5)], network="model")
        >>> Trainer(max_epochs=8, callbacks=[callback]).fit(module, loader)
        >>> fast = fc.convert(callback.finish(), example_inputs=batch)
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        network: str | None = None,
        example_batch: Any = None,
        forward_fn: ForwardFn | None = None,
    ) -> None:
        super().__init__()
        if network is not None and not isinstance(network, str):
            raise TypeError(
                f"CompressionCallback: network must be the name of a submodule or None, got {network!r:.80}"
            )
        self.stages = stages_of(recipe)
        self.network, self.example_batch, self.forward_fn = network, example_batch, forward_fn
        self.session: Session | None = None
        self._module: Any = None
        self._updated = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the stages on."""
        if stage != "fit":
            return
        if self.session is not None:
            raise RuntimeError("CompressionCallback: a callback goes with one fit; make another for the next")
        if not pl_module.automatic_optimization:
            raise ValueError(
                "CompressionCallback: manual optimization hides the steps; drive a fastcompress.recipes.Session in "
                "training_step instead"
            )
        network = self._network_of(pl_module)
        steps, epochs = _length(trainer)
        batch = first_batch(trainer.train_dataloader) if self.example_batch is None else self.example_batch
        self.session = make_session(network, self.stages, steps, epochs, batch, self.forward_fn)
        self._module = pl_module
        if self.session.distiller is not None:
            add_projections(pl_module, self.session)
            pl_module.training_step = self._taught(pl_module.training_step, network)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the optimizer, which was made since."""
        session = self._session()
        if len(trainer.optimizers) != 1:
            raise ValueError(f"CompressionCallback: needs one optimizer, the module has {len(trainer.optimizers)}")
        missing = missing_from(trainer.optimizers[0], added_parameters(session))
        if missing:
            raise ValueError(
                f"CompressionCallback: configure_optimizers leaves out what the recipe has added to train "
                f"({', '.join(missing[:3])}); give the optimizer all of self.parameters()"
            )
        session.bind_optimizer(trainer.optimizers[0])
        teacher = None if session.distiller is None else session.distiller.teacher_model
        if teacher is not None:
            teacher.to(pl_module.device)
        self._updated = trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Switch on and freeze what is due."""
        self._session().before_step(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Average what DistributedDataParallel does not see."""
        self._session().before_update()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the masks, if this batch ended an optimizer step."""
        if trainer.global_step > self._updated:
            self._updated = trainer.global_step
            self._session().after_step()

    def state_dict(self) -> dict[str, Any]:
        """The stages' state, for Lightning's checkpoint."""
        return {} if self.session is None else self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self.session is not None:
            self.session.load_state_dict(state_dict)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give ``training_step`` back."""
        pl_module.__dict__.pop("training_step", None)

    def finish(self) -> nn.Module:
        """End the recipe and return the network with its masks and fake quantization, for `fastcompress.convert`.

        Raises:
            RuntimeError: ``fit`` has not run.
        """
        session = self._session()
        if hasattr(self._module, PROJECTIONS):
            delattr(self._module, PROJECTIONS)
        return session.finish()

    def _session(self) -> Session:
        if self.session is None:
            raise RuntimeError("CompressionCallback: trainer.fit has not begun; the stages are put on there")
        return self.session

    def _network_of(self, pl_module: Any) -> nn.Module:
        if self.network is None:
            return pl_module  # type: ignore[no-any-return]
        try:
            return pl_module.get_submodule(self.network)  # type: ignore[no-any-return]
        except AttributeError:
            children = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise ValueError(
                f"CompressionCallback: network {self.network!r} is no submodule of {type(pl_module).__name__}; it has "
                f"{children}"
            ) from None

    def _taught(self, step: Callable[..., Any], network: nn.Module) -> Callable[..., Any]:
        """``training_step`` with the teacher's loss added."""

        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            session = self._session()
            if not session.distilling:
                result = step(batch, *args, **kwargs)
                loss = _loss_of(result)
                if world_size() == 1 or loss is None:
                    return result
                return _with_loss(result, attached(loss, getattr(self._module, PROJECTIONS)))
            with session.watching(), outputs_of(network) as outputs:
                result = step(batch, *args, **kwargs)
            loss = _loss_of(result)
            if loss is None:
                return result
            if not outputs:
                raise RuntimeError(
                    "CompressionCallback: training_step did not call "
                    f"{'self' if self.network is None else 'self.' + self.network} as a function, so the teacher has "
                    "nothing to compare with; name the submodule that it calls in network="
                )
            return _with_loss(result, session.loss(loss, batch, outputs[-1])[0])

        return training_step


def _loss_of(result: Any) -> Tensor | None:
    return result.get("loss") if isinstance(result, Mapping) else result


def _with_loss(result: Any, loss: Tensor) -> Any:
    return {**result, "loss": loss} if isinstance(result, Mapping) else loss


def _length(trainer: Any) -> tuple[int, float]:
    """Optimizer steps of an epoch, and epochs."""
    trainer.fit_loop.setup_data()  # makes the training loader, whose length is unknown before
    total = trainer.estimated_stepping_batches
    batches = trainer.num_training_batches
    if not math.isfinite(total) or not math.isfinite(batches):
        raise ValueError(
            "CompressionCallback: the recipe's times need a run of known length; give Trainer max_epochs or max_steps, "
            "and limit_train_batches where the loader has no length"
        )
    steps = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    return steps, total / steps
