"""Teacher outputs on disk, sample by sample, so that the teacher runs once per sample and not once per epoch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.choices import check_choice

from .cache_files import SUFFIX, own_files, read_entry, write_entry
from .checks import whole_number
from .fingerprint import Fingerprint
from .samples import Samples

__all__ = ["CacheStats", "TeacherCache"]


@dataclass(frozen=True)
class CacheStats:
    """What a `TeacherCache` object has done since it was made, in samples, and what the directory takes."""

    hits: int
    misses: int
    stored: int
    corrupt: int
    total_bytes: int

    @property
    def hit_rate(self) -> float:
        """Hits per sample asked for, in [0, 1]; 0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class TeacherCache:
    """Keeps a frozen teacher's outputs on disk under the content of each sample.

    The key is a hash of the sample's bytes, dtypes and shapes; entries of one teacher lie under a hash of its weights,
    layers, tapped modules, autocast and device. So a shuffled loader hits; augmented samples and a changed teacher
    miss. A hit returns bit for bit what was computed when the sample was stored. Files are safetensors with a checksum,
    written whole or not at all; a damaged one is computed again. Python code is not part of the key: `clear` after
    changing a teacher's ``forward`` or a ``forward_fn``.

    Args:
        directory: where the files are; made when the first one is written.
        max_bytes: the files together take at most this much; when it is reached no more are added. (Discarding old ones
            would not help: every epoch asks for every sample once, the oldest first.) None means no limit. Several
            processes on one directory each count what they found at the start and what they wrote themselves.
        recompute: what runs when some samples of a batch are missing: ``"batch"``, the whole batch, so that the missing
            ones get the bits they would have without a cache; or ``"missing"``, these alone, which is cheaper and, as
            matrix products of another size round differently, may differ in the last bits.

    Raises:
        TypeError, ValueError: the message names the argument, what came and what is allowed.

    Example:
        >>> cache = TeacherCache("teacher-cache", max_bytes=2 * 1024**3)
        >>> distiller = Distiller(teacher, ["logits"], cache=cache)
        >>> cache.stats.hit_rate
    """

    def __init__(
        self, directory: str | os.PathLike[str], max_bytes: int | None = None, recompute: str = "batch"
    ) -> None:
        if not isinstance(directory, (str, os.PathLike)) or not str(directory):
            raise TypeError(f"TeacherCache: directory must be a path, got {directory!r:.80}")
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"TeacherCache: directory {str(self.directory)!r} is a file; give a directory")
        if max_bytes is not None:
            whole_number("TeacherCache", "max_bytes", max_bytes, 1)
        check_choice("TeacherCache", "recompute", recompute, ("batch", "missing"))
        self.max_bytes = max_bytes
        self.recompute = recompute
        self._fingerprint = Fingerprint()
        self._hits = self._misses = self._stored = self._corrupt = 0
        self._bytes: int | None = None
        self._writable = True
        self._warned: set[str] = set()

    @property
    def stats(self) -> CacheStats:
        """Hits, misses and size so far."""
        return CacheStats(self._hits, self._misses, self._stored, self._corrupt, self._total_bytes())

    def clear(self) -> None:
        """Remove all files of the cache; others in the directory stay."""
        for entry in list(own_files(self.directory)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
        self._bytes, self._writable = None, True

    def outputs(
        self,
        model: nn.Module,
        names: Sequence[str],
        samples: Samples,
        compute: Callable[[Any], dict[str, Tensor]],
        forward_fn: ForwardFn | None = None,
    ) -> dict[str, Tensor]:
        """The outputs called ``names`` of ``model`` for a batch, from the files where they are, else from ``compute``.

        Raises:
            ValueError: an output's first dimension is not the batch. Whatever ``compute`` raises is passed on.
        """
        if samples.size == 0:
            return compute(samples.batch)
        device = next((parameter.device for parameter in model.parameters()), samples.device)
        folder = self.directory / self._fingerprint.of(model, names, device, forward_fn)
        paths = [folder / key[:2] / f"{key}{SUFFIX}" for key in samples.hashes()]
        found = [self._read(path, frozenset(names)) for path in paths]
        missing = [index for index, entry in enumerate(found) if entry is None]
        self._hits += samples.size - len(missing)
        self._misses += len(missing)
        if missing:
            alone = self.recompute == "missing"
            fresh = compute(samples.subset(missing) if alone and len(missing) < samples.size else samples.batch)
            _check_batch(fresh, len(missing) if alone else samples.size)
            for place, index in enumerate(missing):
                # A copy: a row on its own would keep the whole batch alive, and its file would hold all of it.
                found[index] = {name: value[place if alone else index].cpu().clone() for name, value in fresh.items()}
                self._write(paths[index], found[index])
        entries = [entry for entry in found if entry is not None]
        if any(entry[name].shape != entries[0][name].shape for entry in entries for name in names):
            return compute(samples.batch)  # stored from batches in which the teacher returned other shapes
        return {name: torch.stack([entry[name] for entry in entries]).to(device) for name in names}

    def _read(self, path: Path, names: frozenset[str]) -> dict[str, Tensor] | None:
        try:
            return read_entry(path, names)
        except ValueError as error:
            self._corrupt += 1
            self._warn("corrupt", f"{path} cannot be used ({error}); it is computed again, as others like it will be")
            return None

    def _write(self, path: Path, tensors: dict[str, Tensor] | None) -> None:
        if not self._writable or tensors is None:
            return
        try:
            others = self._total_bytes() - (path.stat().st_size if path.exists() else 0)
            size = write_entry(path, tensors, None if self.max_bytes is None else self.max_bytes - others)
        except OSError as error:
            self._writable = False
            self._warn("write", f"cannot write {path} ({error}); going on without adding to the cache")
            return
        if size is None:
            self._warn(
                "full", f"{self.directory} holds max_bytes={self.max_bytes}; what is missing is computed each time"
            )
            return
        self._stored += 1
        self._bytes = others + size

    def _total_bytes(self) -> int:
        if self._bytes is None:
            self._bytes = sum(entry.stat().st_size for entry in own_files(self.directory))
        return self._bytes

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"TeacherCache: {message}", stacklevel=2)


def _check_batch(outputs: dict[str, Tensor], size: int) -> None:
    for name, value in outputs.items():
        if value.dim() == 0 or value.shape[0] != size:
            raise ValueError(
                f"TeacherCache: the teacher's output {name!r} has shape {list(value.shape)} for a batch of {size}; "
                "only outputs whose first dimension is the batch can be cached"
            )
