"""Checkpoints of a run: written whole or not at all, and only read by the run that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fastcompress.errors import CheckpointError
from fastcompress.formats.atomic import publish, temporary_file

from .processes import barrier, is_first

__all__ = ["Checkpoints"]

_LAST, _PHASE = "last.pt", "phase-{}.pt"


class Checkpoints:
    """The files of one run in a directory; with several processes, the first one writes and all read.

    Tensors and plain values only, read with ``torch.load(…, weights_only=True)``.

    Args:
        directory: made if it does not exist; None keeps nothing.
        identity: what must be the same for a run to go on, as JSON.
    """

    def __init__(self, directory: str | Path | None, identity: Mapping[str, Any]) -> None:
        self._directory = None if directory is None else Path(directory)
        if self._directory is not None and self._directory.exists() and not self._directory.is_dir():
            raise ValueError(f"compress: checkpoint_dir must be a directory, and {self._directory} is a file")
        self._identity = json.loads(json.dumps(identity, default=str))
        if self._directory is not None and is_first():
            self._directory.mkdir(parents=True, exist_ok=True)
        barrier()

    def inside(self, name: str) -> Checkpoints:
        """Those of a part of the run, in a folder of this one's directory."""
        return Checkpoints(None if self._directory is None else self._directory / name, self._identity)

    @property
    def last_path(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        path = None if self._directory is None else self._directory / _LAST
        return path if path is not None and path.exists() else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the newest checkpoint."""
        self._write(_LAST, state)

    def save_phase(self, number: int, state: Mapping[str, Any]) -> None:
        """Keep the state at the end of a phase, from which the model of the next one is made."""
        self._write(_PHASE.format(number), state)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint; None where there is none.

        Raises:
            CheckpointError: a damaged file. ValueError: it belongs to another recipe, model or data.
        """
        return self._read(_LAST)

    def load_phase(self, number: int) -> dict[str, Any]:
        """What `save_phase` wrote."""
        state = self._read(_PHASE.format(number))
        if state is None:
            raise CheckpointError(
                f"{self._directory}: {_PHASE.format(number)} is missing, without which the run cannot go on; delete "
                "the directory to start again"
            )
        return state

    def _write(self, name: str, state: Mapping[str, Any]) -> None:
        if self._directory is not None and is_first():
            with temporary_file(self._directory) as (file, path):
                torch.save({**state, "identity": json.dumps(self._identity)}, file)
                publish(file, path, self._directory / name)
        barrier()

    def _read(self, name: str) -> dict[str, Any] | None:
        if self._directory is None or not (self._directory / name).exists():
            return None
        path = self._directory / name
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            identity = json.loads(state["identity"])
        except Exception as error:
            raise CheckpointError(f"{path}: not a readable checkpoint ({error}); delete it to start again") from error
        changed = sorted(_differences("", identity, self._identity), key=lambda line: line.split(" ")[0].count("."))
        if changed:
            raise ValueError(
                f"compress: the checkpoint in {self._directory} belongs to another run: {'; '.join(changed[:4])}. "
                "Go on with what it was started with, or give another directory"
            )
        return dict(state)


def _differences(place: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(f"{place}.{key}" if place else key, before.get(key), now.get(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(f"{place}[{index}]", old, new)
    elif before != now:
        yield f"{place} was {before!r:.60} and is {now!r:.60}"
