"""What the callbacks share: a recipe put on a network whose loop belongs to somebody else."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastcompress.distillation import SelfDistillation
from fastcompress.models.calibrate import ForwardFn
from fastcompress.quantization.fake_quantizer import FakeQuantizer
from fastcompress.recipes import Session, Stage, check_recipe, load_recipe, phases_of
from fastcompress.recipes.recipe import check_steps
from fastcompress.recipes.seeding import own_random_numbers

__all__ = [
    "PROJECTIONS",
    "Recipe",
    "add_projections",
    "added_parameters",
    "attached",
    "first_batch",
    "make_session",
    "missing_from",
    "outputs_of",
    "stages_of",
]

Recipe = Stage | Iterable[Stage] | str | Path

#: The submodule that holds the distiller's projections while a trainer trains them.
PROJECTIONS = "fastcompress_projections"


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe or of a YAML file, whose other settings are the trainer's business.

    Raises:
        TypeError, ValueError: something else than stages.
    """
    if isinstance(recipe, (str, Path)):
        return tuple(load_recipe(recipe).stages)
    return check_recipe(recipe, math.inf)


def make_session(
    model: nn.Module,
    stages: tuple[Stage, ...],
    steps_per_epoch: int,
    epochs: float,
    example_batch: Any,
    forward_fn: ForwardFn | None,
) -> Session:
    """Put the stages on ``model``, in place; the caller's random numbers stay as they were.

    Args:
        steps_per_epoch: optimizer steps, not batches.
        epochs: of the run, which may be a fraction.

    Raises:
        TypeError, ValueError: a recipe that does not fit the run, or that makes another model of this one.
    """
    stages = check_recipe(stages, epochs)
    check_steps(stages, steps_per_epoch, epochs)
    phases = phases_of(stages, epochs)
    if len(phases) > 1:
        raise ValueError(
            "CompressionCallback: pattern 'channel' makes a smaller model in the middle of the run, which a trainer "
            "cannot follow; prune channels with fastcompress.compress or fastcompress.prune, and train the result"
        )
    with own_random_numbers():
        dense = copy.deepcopy(model).eval()
        return Session(model, phases[0], steps_per_epoch, epochs, example_batch, forward_fn=forward_fn, dense=dense)


def add_projections(owner: nn.Module, session: Session) -> None:
    """Make the distiller's projections a part of ``owner``, so that they are trained, moved and averaged with it."""
    assert session.distiller is not None
    owner.add_module(PROJECTIONS, nn.ParameterList(session.distiller.parameters()))
    own_teacher = session.distiller.teacher_model if isinstance(session.distiller.teacher, SelfDistillation) else None
    if owner is session.model and own_teacher is not None:
        # A teacher that follows the student must have the same tensors.
        own_teacher.add_module(PROJECTIONS, copy.deepcopy(getattr(owner, PROJECTIONS)).requires_grad_(False))


def added_parameters(session: Session) -> dict[str, nn.Parameter]:
    """Name → what the recipe has added to train: learned scales, and projections of the distiller."""
    added = {
        f"{name}.{own}": parameter
        for name, module in session.model.named_modules()
        if isinstance(module, FakeQuantizer)
        for own, parameter in module.named_parameters(recurse=False)
    }
    if session.distiller is not None:
        added |= {f"projection {i}": parameter for i, parameter in enumerate(session.distiller.parameters())}
    return added


def missing_from(optimizer: Any, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Names of the parameters that an optimizer does not hold."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [name for name, parameter in parameters.items() if id(parameter) not in known]


def attached(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """``loss`` itself, with gradients of zero for parameters that it does not depend on.

    DistributedDataParallel waits for a gradient of each.
    """
    for parameter in parameters:
        loss = loss + 0.0 * parameter.sum()
    return loss


@contextmanager
def outputs_of(network: nn.Module) -> Iterator[list[Any]]:
    """What ``network`` returns inside the block."""
    outputs: list[Any] = []

    def remember(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output)

    hook = network.register_forward_hook(remember)
    try:
        yield outputs
    finally:
        hook.remove()


def first_batch(loader: Iterable[Any]) -> Any:
    """The first batch of a training loader; the caller's random numbers stay as they were.

    Raises:
        ValueError: it is empty.
    """
    with own_random_numbers():
        for batch in loader:
            return batch
    raise ValueError("CompressionCallback: the training loader is empty; it gave no batch")
