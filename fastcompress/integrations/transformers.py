"""A recipe as a callback of Hugging Face's Trainer (``pip install fastcompress[transformers]``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastcompress.models.calibrate import ForwardFn
from fastcompress.recipes import Distillation, Session

from .session import (
    PROJECTIONS,
    Recipe,
    add_projections,
    added_parameters,
    first_batch,
    make_session,
    missing_from,
    outputs_of,
    stages_of,
)
from .trainer import check_finite, check_trainer, gradient_norm, length_of, loss_divisor, replaced
from .trainer_checkpoints import TrainerCheckpoints, check_restored

try:
    from accelerate.utils import send_to_device
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
except ImportError as error:
    raise ImportError(
        "fastcompress.integrations.transformers needs transformers and accelerate: "
        "pip install 'fastcompress[transformers]'"
    ) from error

__all__ = ["CompressionCallback"]


class CompressionCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not checked
    """Prunes, quantizes and distils while Hugging Face's Trainer trains, on one device.

    A callback cannot change the loss and hears of ``train`` when the optimizer exists already, so `attach` replaces
    methods of that one Trainer object: ``train`` first puts the stages on the model, in place; ``compute_loss`` adds
    the teacher's loss while the model is in training mode, and refuses NaN; ``get_decay_parameter_names`` leaves
    learned scales out. When ``train`` is over, also by an exception, they are what they were. Evaluation during
    training sees the pruned and fake-quantized model. Steps are those of the optimizer, however many batches each has.

    The stages' state is part of Trainer's checkpoints, so ``resume_from_checkpoint=`` goes on where it left off (with
    an equal recipe, attached to a Trainer of an equal model). Call `finish` after ``train``, then
    `fastcompress.convert`.

    Args:
        recipe: stages, or the path of a YAML file; times are in epochs. Pattern ``"channel"`` is not possible.
        example_batch: one batch like those of training; by default the first one of the training loader.
        forward_fn: ``forward_fn(model, batch)`` runs the teacher, and both networks on the example, in place of
            ``model(**batch)``; ``compute_loss`` runs the student.

    Raises:
        TypeError, ValueError: a wrong recipe here; what does not fit the run is said when ``train`` begins, before
            anything was trained. TrainingDiverged: from ``train``, if the loss or the gradient is NaN or infinite.

    Example:
        >>> trainer = Trainer(model, TrainingArguments("out", num_train_epochs=8), train_dataset=data)
        >>> callback = CompressionCallback([fc.recipes.Pruning(0.9, "4x4"), fc.recipes.QAT(start=5)]).attach(trainer)
        >>> trainer.train()
        >>> fast = fc.convert(callback.finish(), example_inputs=batch)
    """

    def __init__(self, recipe: Recipe, *, example_batch: Any = None, forward_fn: ForwardFn | None = None) -> None:
        super().__init__()
        self.stages = stages_of(recipe)
        self.example_batch, self.forward_fn = example_batch, forward_fn
        self.session: Session | None = None
        self._trainer: Any = None
        self._replaced: Any = None
        self._training = False
        self._steps_per_epoch = self._steps = 0
        self._checkpoints: TrainerCheckpoints | None = None
        self._saved: dict[str, Any] | None = None

    def attach(self, trainer: Any) -> CompressionCallback:
        """Bind to a Trainer, before its ``train``; as a callback it is added if it is not one yet.

        Returns:
            The callback itself.

        Raises:
            TypeError: no Trainer. RuntimeError: attached already, or the Trainer has another recipe.
        """
        if not isinstance(trainer, Trainer):
            raise TypeError(f"CompressionCallback.attach: trainer must be a Trainer, got {type(trainer).__name__}")
        if self._trainer is not None:
            raise RuntimeError(
                f"CompressionCallback.attach: attached to {'this' if trainer is self._trainer else 'another'} Trainer "
                "already; a callback goes with one Trainer, make another"
            )
        callbacks = trainer.callback_handler.callbacks
        if any(isinstance(other, CompressionCallback) and other is not self for other in callbacks):
            raise RuntimeError(
                "CompressionCallback.attach: the Trainer has another CompressionCallback; give one recipe all stages, "
                "or take the other out with trainer.remove_callback"
            )
        if not any(callback is self for callback in callbacks):
            trainer.add_callback(self)
        self._trainer = trainer
        self._replaced = replaced(trainer, train=self._with_stages(trainer.train))
        self._replaced.__enter__()
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Check the optimizer, and take over the stages' state if the run is resumed."""
        session = self._running()
        missing = missing_from(optimizer, added_parameters(session))
        if missing:
            raise ValueError(
                f"CompressionCallback: the optimizer leaves out what the recipe has added to train "
                f"({', '.join(missing[:3])}); let Trainer make it (optimizer_cls_and_kwargs= in place of optimizers=)"
            )
        if state.max_steps != self._steps:
            raise RuntimeError(
                f"CompressionCallback: this Trainer makes {state.max_steps} optimizer steps where its arguments and "
                f"the length of the data give {self._steps}, so the recipe's times would be wrong"
            )
        session.bind_optimizer(optimizer)
        if self._saved is not None:
            check_restored(self._saved, session.model)
            session.load_state_dict(self._saved["session"])
            self._saved = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch on and freeze what is due."""
        self._running().before_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse gradients that would destroy the weights."""
        session = self._running()
        if self._trainer.accelerator.scaler is None:  # a scaler of float16 leaves such steps out by itself
            norm = gradient_norm([*session.model.parameters()])
            check_finite(norm, "the gradient's norm", state.global_step, self._steps_per_epoch, {})
        session.before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the masks, while the gradients are still there."""
        self._running().after_step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the stages' state to Trainer's checkpoint."""
        session = self._running()
        assert self._checkpoints is not None
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        self._checkpoints.save(folder, session.state_dict(), session.model)

    def finish(self) -> nn.Module:
        """End the recipe and return the model with its masks and fake quantization, for `fastcompress.convert`.

        Raises:
            RuntimeError: ``train`` has not run.
        """
        if self.session is None:
            raise RuntimeError("CompressionCallback: trainer.train has not begun; the stages are put on there")
        model: Any = self.session.model
        if hasattr(model, PROJECTIONS):
            delattr(model, PROJECTIONS)
        # Mixed precision has put a wrapper around forward, and unwrapping leaves the class's own one in its place.
        self._trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if getattr(vars(model).get("forward"), "__func__", None) is type(model).forward:
            del model.forward
        return self.session.finish()

    def _running(self) -> Session:
        if self._training and self.session is not None:
            return self.session
        if self.session is not None:
            raise RuntimeError(
                "CompressionCallback: a callback goes with one train of one Trainer; make another for the next, and "
                "take this one out with trainer.remove_callback(callback)"
            )
        raise RuntimeError("CompressionCallback: call callback.attach(trainer) before trainer.train()")

    def _with_stages(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """``train`` of a model with the stages on."""

        def wrapper(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
            trainer = self._trainer
            checkpoint = _checkpoint_of(resume_from_checkpoint, trainer.args.output_dir)
            self._put_on(checkpoint)
            self._training = True
            try:
                with replaced(
                    trainer,
                    compute_loss=self._taught(trainer.compute_loss),
                    get_decay_parameter_names=self._undecayed(trainer.get_decay_parameter_names),
                ):
                    return train(checkpoint, *args, **kwargs)
            finally:
                self._training = False
                self._replaced.__exit__(None, None, None)

        return wrapper

    def _put_on(self, checkpoint: str | None) -> None:
        trainer, model = self._trainer, self._trainer.model
        check_trainer(trainer, self.stages)
        loader = trainer.get_train_dataloader()
        self._steps_per_epoch, self._steps = length_of(trainer, loader)
        self._checkpoints = TrainerCheckpoints(self.stages, self._steps_per_epoch, self._steps, model)
        if checkpoint is not None:
            self._saved = self._checkpoints.load(Path(checkpoint))
        batch = self.example_batch
        if batch is None:
            # The loader underneath: accelerate's counts what is taken from it.
            batch = first_batch(getattr(loader, "base_dataloader", loader))
        device = trainer.args.device
        model.to(device)
        for stage in self.stages:
            if isinstance(stage, Distillation) and isinstance(stage.teacher, nn.Module):
                stage.teacher.to(device)
        epochs = self._steps / self._steps_per_epoch
        batch = send_to_device(batch, device)
        self.session = make_session(model, self.stages, self._steps_per_epoch, epochs, batch, self.forward_fn)
        if self.session.distiller is not None:
            add_projections(model, self.session)

    def _taught(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        """``compute_loss`` with the teacher's loss added, in training."""

        def wrapper(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not model.training:
                return compute_loss(model, inputs, *args, **kwargs)
            session, trainer = self._running(), self._trainer
            parts: dict[str, Any] = {}
            if not session.distilling:
                result = compute_loss(model, inputs, *args, **kwargs)
                loss, *rest = result if isinstance(result, tuple) else (result,)
            else:
                # A copy, as compute_loss may take the labels out.
                batch = dict(inputs) if isinstance(inputs, Mapping) else inputs
                with session.watching(), outputs_of(session.model) as outputs:
                    result = compute_loss(model, inputs, *args, **kwargs)
                loss, *rest = result if isinstance(result, tuple) else (result,)
                if not outputs:
                    raise RuntimeError(
                        "CompressionCallback: compute_loss did not call the model as a function, so the teacher has "
                        "nothing to compare with"
                    )
                # Where the loss is divided for accumulation already, the teacher's must be too.
                divisor = loss_divisor(trainer, kwargs.get("num_items_in_batch", args[1] if len(args) > 1 else None))
                with trainer.accelerator.autocast():
                    loss, parts = session.loss(loss * divisor, batch, outputs[-1])
                loss = loss / divisor
            check_finite(
                float(loss.detach().mean()), "the loss", trainer.state.global_step, self._steps_per_epoch, parts
            )
            return (loss, *rest) if isinstance(result, tuple) else loss

        return wrapper

    def _undecayed(self, names: Callable[..., Any]) -> Callable[..., Any]:
        """Names of the parameters that weight decay applies to, without learned scales and the projections' biases."""

        def wrapper(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            added = {id(p) for p in added_parameters(self._running()).values() if p.dim() < 2}
            left_out = {name for name, p in model.named_parameters() if id(p) in added}
            return [name for name in names(model, *args, **kwargs) if name not in left_out]

        return wrapper


def _checkpoint_of(given: Any, output_dir: str) -> str | None:
    """The path that ``resume_from_checkpoint`` means, as Trainer reads it."""
    if given is True:
        found = get_last_checkpoint(output_dir)
        if found is None:
            raise ValueError(f"CompressionCallback: there is no checkpoint to go on from in {output_dir}")
        return str(found)
    return None if given is None or given is False else str(given)
