"""`compress`: train a model through a recipe and finish it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcompress.api import convert as finish_layers
from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.copying import copied
from fastcompress.models.speed import Timer
from fastcompress.report.measure import compare

from .arguments import check_functions, fingerprint
from .checkpoint import Checkpoints
from .data import LossFn, TrainData, cross_entropy
from .history import History
from .loop import EvalFn, Settings, evaluate, run_phase
from .optimizers import LearningRate, OptimizerFactory, OptimizerSource, learning_rate_factor
from .processes import first_timer, world_size
from .progress import Progress
from .recipe import check_steps, phases_of
from .result import CompressionResult
from .run_settings import RunSettings
from .search import Retraining, within_budget
from .seeding import own_random_numbers
from .session import Session
from .stages import Distillation, Stage
from .yaml_file import RecipeFile, read_recipe

__all__ = ["compress"]


def compress(
    model: nn.Module,
    recipe: Stage | Iterable[Stage] | RecipeFile | str | Path,
    train_data: Any,
    *,
    epochs: int | None = None,
    eval_fn: EvalFn | None = None,
    loss_fn: LossFn = cross_entropy,
    optimizer: torch.optim.Optimizer | OptimizerFactory | None = None,
    learning_rate: str | LearningRate | None = None,
    max_drop: float | None = None,
    example_inputs: Any = None,
    forward_fn: ForwardFn | None = None,
    steps_per_epoch: int | None = None,
    autocast: torch.dtype | None = None,
    clip_norm: float | None = None,
    convert: bool = True,
    only_if_faster: bool = True,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    timer: Timer | None = None,
) -> CompressionResult:
    """Prune, quantize and distil a model while it trains, all at the same time, and finish it in fast layers.

    Args:
        model: the trained dense network; it is copied, and run but not traced (pattern ``"channel"`` traces it).
        recipe: `Pruning`, `Distillation` and `QAT` stages from ``fastcompress.recipes``, each with its time in epochs.
            An empty list trains without any: the baseline, with everything else the same. Or the path of a YAML file
            (`fastcompress.recipes.load_recipe`), whose settings hold where an argument is not given.
        train_data: batches: an iterable that can be iterated once an epoch (a DataLoader), or ``train_data(epoch)``. A
            batch is ``(x, y)`` with ``model(x)``, or a dict with ``model(**batch)``.
        epochs: of the run; needed, here or in the file.
        eval_fn: ``eval_fn(model)`` gives a score, higher is better.
        loss_fn: ``loss_fn(output, batch)`` gives the scalar to train on; by default cross-entropy on ``(x, y)``.
        optimizer: a function that makes one from a list of parameters; an optimizer on ``model.parameters()``, whose
            kind and groups are used; None is AdamW with learning rate 1e-3.
        learning_rate: ``"cosine"`` (with a twentieth of warm-up; the default), ``"constant"``, or a function from the
            progress, 0 to 1, to a factor of the optimizer's own rate.
        max_drop: the most that the score may fall. If the recipe costs more, layers are relaxed one by one, the most
            sensitive first, with an epoch of training after each, until it holds; ``given_up`` says which.
        example_inputs: one batch like those of real use, at whose shapes layers are measured; by default the first
            training batch.
        forward_fn: ``forward_fn(model, batch)`` runs the model in place of the batch protocol.
        steps_per_epoch: batches of an epoch; by default the length of ``train_data``.
        autocast: dtype of automatic mixed precision in training, ``torch.bfloat16`` for example.
        clip_norm: largest norm of the gradient.
        convert: finish the model with `fastcompress.convert`; False returns it as it was trained.
        only_if_faster: see `fastcompress.convert`.
        checkpoint_dir: where checkpoints are kept. A run that finds its own there goes on from it, to the same weights
            bit for bit (same machine and number of threads); one of another recipe is refused.
        checkpoint_every: optimizer steps between checkpoints, besides the one after each epoch.
        seed: of the order of the data, and of everything random in the steps; 0 by default.
        progress: show progress bars; by default when stderr is a terminal.
        timer: see `fastcompress.convert`.

    Returns:
        The finished model, the trained one, and the history. Under torchrun every process returns the same.

    Raises:
        TypeError, ValueError: a wrong argument or recipe, empty data, a changed recipe on resuming; ``model`` is never
            changed. TrainingDiverged: the loss is NaN or infinite; the last checkpoint stays.

    Example:
        >>> result = fc.compress(
        ...     model,
        ...     [
        ...         fc.recipes.Pruning(0.9, pattern="4x4", end=6),
        ...         fc.recipes.Distillation("dense", losses=["logits", "feature"]),
        ...         fc.recipes.QAT("W8A8", start=5, freeze_at=7),
        ...     ],
        ...     loader,
        ...     epochs=8,
        ...     eval_fn=accuracy,
        ... )
        >>> result.report("out.html")

    Source: the stages'.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model must be a torch.nn.Module, got {type(model).__name__}")
    given = RunSettings(epochs, learning_rate, max_drop, steps_per_epoch, autocast, clip_norm, checkpoint_every, seed)
    stages, run = read_recipe(recipe, given)
    epochs, learning_rate, seed = run.required()
    if run.max_drop is not None and eval_fn is None:
        raise ValueError("compress: max_drop is a drop of the score that eval_fn gives; pass eval_fn")
    check_functions(loss_fn=loss_fn, eval_fn=eval_fn, forward_fn=forward_fn)
    source = OptimizerSource(optimizer, model)
    with own_random_numbers():
        data = TrainData(train_data, run.steps_per_epoch, seed)
    check_steps(stages, data.steps_per_epoch, epochs)
    settings = Settings(
        epochs,
        data,
        loss_fn,
        eval_fn,
        forward_fn,
        learning_rate_factor(learning_rate),
        run.autocast,
        run.clip_norm,
        seed,
        run.checkpoint_every,
    )
    dense, work = copied(model, "compress").eval(), copied(model, "compress")
    with own_random_numbers():
        optimizer_settings = source.to_json(work)
    described = {
        "stages": [stage.to_json() for stage in stages],
        "epochs": epochs,
        "steps_per_epoch": data.steps_per_epoch,
        "optimizer": optimizer_settings,
        "learning_rate": learning_rate if isinstance(learning_rate, str) else "a function",
        "autocast": str(run.autocast),
        "clip_norm": run.clip_norm,
        "seed": seed,
        "model": fingerprint(model),
    }
    identity = {**described, "teachers": _teachers(stages), "processes": world_size()}
    with own_random_numbers():
        batch = data.first_batch()
        example = batch if example_inputs is None else example_inputs
        history = History()
        with Progress(epochs, progress) as bar:
            checkpoints = Checkpoints(checkpoint_dir, identity)
            trained = _train(work, dense, stages, settings, source, checkpoints, batch, history, bar)
        result = CompressionResult(trained, trained, dense, history, None, None, example, described)

        def finished(source_model: nn.Module) -> nn.Module:
            if not convert:
                return source_model.eval()
            return finish_layers(
                source_model,
                example_inputs=example,
                forward_fn=forward_fn,
                only_if_faster=only_if_faster,
                progress=progress,
                timer=first_timer(timer or compare),
            ).eval()

        result = replace(result, model=finished(trained))
        if eval_fn is not None:
            result = replace(result, dense_score=evaluate(dense, eval_fn), score=evaluate(result.model, eval_fn))
        if run.max_drop is not None:
            retraining = Retraining(stages, settings, source, batch, progress, checkpoints)
            result = within_budget(result, run.max_drop, retraining, finished)
    return result


def _train(
    model: nn.Module,
    dense: nn.Module,
    stages: tuple[Stage, ...],
    settings: Settings,
    source: OptimizerSource,
    checkpoints: Checkpoints,
    batch: Any,
    history: History,
    bar: Progress,
) -> nn.Module:
    """All phases, from where a checkpoint left off."""
    phases = phases_of(stages, settings.epochs)
    saved = checkpoints.load()
    for number, phase in enumerate(phases):
        session = Session(
            model,
            phase,
            settings.data.steps_per_epoch,
            settings.epochs,
            batch,
            forward_fn=settings.forward_fn,
            dense=dense,
        )
        if saved is not None and number < saved["phase"]:
            state = checkpoints.load_phase(number)
            session.model.load_state_dict(state["model"])
            session.load_state_dict(state["session"])
        else:
            here = saved if saved is not None and saved["phase"] == number else None
            optimizer = source.make(session.parameters(), session.model)
            state = run_phase(session, number, optimizer, settings, checkpoints, history, bar, here)
            if number + 1 < len(phases):
                checkpoints.save_phase(number, state)
        model = session.finish()
    return model


def _teachers(stages: tuple[Stage, ...]) -> list[str]:
    """Digests of the networks that teach."""
    return [
        fingerprint(stage.teacher)
        for stage in stages
        if isinstance(stage, Distillation) and isinstance(stage.teacher, nn.Module)
    ]
