"""A recipe's state in the checkpoints of Hugging Face's Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fastcompress.recipes import Distillation, Stage
from fastcompress.recipes.arguments import fingerprint
from fastcompress.recipes.checkpoint import Checkpoints
from fastcompress.recipes.stages import DENSE_TEACHER

__all__ = ["TrainerCheckpoints", "check_restored"]

#: The folder inside Trainer's ``checkpoint-…`` that holds the state of a recipe.
_FOLDER = "fastcompress"


class TrainerCheckpoints:
    """Reads and writes the state of one run; what belongs to another run is refused.

    Args:
        stages: the recipe.
        steps_per_epoch, steps: of the optimizer.
        dense: the model before compression.
    """

    def __init__(self, stages: Sequence[Stage], steps_per_epoch: int, steps: int, dense: nn.Module) -> None:
        given = [stage.teacher for stage in stages if isinstance(stage, Distillation)]
        teachers = [dense if teacher == DENSE_TEACHER else teacher for teacher in given]
        self._identity = {
            "stages": [stage.to_json() for stage in stages],
            "steps_per_epoch": steps_per_epoch,
            "steps": steps,
            "teachers": [fingerprint(teacher) for teacher in teachers if isinstance(teacher, nn.Module)],
        }

    def save(self, checkpoint: Path, state: dict[str, Any], model: nn.Module) -> None:
        """Add the recipe's state to a checkpoint of Trainer's, which holds ``model``."""
        self._files(checkpoint).save({"session": state, "weights": fingerprint(model)})

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """What `save` added.

        Raises:
            ValueError: there is nothing, or it belongs to another recipe. CheckpointError: a damaged file.
        """
        state = self._files(checkpoint).load() if (checkpoint / _FOLDER).is_dir() else None
        if state is None:
            raise ValueError(
                f"CompressionCallback: {checkpoint} has no folder {_FOLDER!r}, so it was written without the recipe, "
                "or not to its end; go on from another checkpoint, or without resume_from_checkpoint"
            )
        return state

    def _files(self, checkpoint: Path) -> Checkpoints:
        return Checkpoints(checkpoint / _FOLDER, self._identity)


def check_restored(state: dict[str, Any], model: nn.Module) -> None:
    """Raise unless Trainer has brought back all weights, masks and scales; it passes over names that it does not find.

    Raises:
        ValueError: see above.
    """
    if state["weights"] != fingerprint(model):
        raise ValueError(
            "CompressionCallback: the model is not as it was when the checkpoint was written: its weights are of "
            "another time, or not all there; go on from another checkpoint"
        )
