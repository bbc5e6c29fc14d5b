"""`save`: a model as one safetensors file and one JSON file, replaced atomically as a pair."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.errors import CheckpointError
from fastcompress.formats import atomic, registry, structure
from fastcompress.formats.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModuleEntry,
    is_tensor_file,
    tensor_file_name,
)
from fastcompress.formats.tensorfile import DTYPE_NAMES, write_tensors
from fastcompress.nn import PackedLayer
from fastcompress.record import record_of
from fastcompress.report.environment import library_version

__all__ = ["save"]


def _modules(model: nn.Module) -> tuple[dict[str, ModuleEntry], dict[str, str]]:
    """Manifest entries of all modules on the allow-list, and the further names of shared ones."""
    entries: dict[str, ModuleEntry] = {}
    aliases: dict[str, str] = {}
    first_name: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        try:
            entry = registry.describe(module)
        except ValueError as error:
            raise CheckpointError(f"save: module {name!r}: {error}") from error
        if entry is None:
            if type(module).__module__.split(".")[0] == "fastcompress":
                raise CheckpointError(f"save: module {name!r}: {type(module).__name__} has no place in the file format")
            continue
        # Sharing matters for what is built at load; a plain layer's sharing is the constructor's business.
        if registry.CODECS[entry.class_name].owns_tensors and id(module) in first_name:
            aliases[name] = first_name[id(module)]
        else:
            first_name[id(module)] = name
            entries[name] = entry
    return entries, aliases


def _identity(tensor: Tensor) -> tuple[Any, ...] | None:
    """Equal for two names of one tensor; None when the tensor has no memory to compare."""
    if tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _shared_blobs(model: nn.Module, state: Mapping[str, Any]) -> dict[str, str]:
    """Names of tensors that a packed layer unpacks from the same blob as one before it → that one's names."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, PackedLayer):
            continue
        source = first.setdefault(module.packed.data_ptr(), name)
        for key in module.canonical_entries() if source != name else ():
            aliases[structure.join(name, key)] = structure.join(source, key)
    return {name: source for name, source in aliases.items() if name in state and source in state}


def _tensors(model: nn.Module, module_aliases: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict, each shared tensor once, and the further names of shared ones."""
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CheckpointError(f"save: module {name!r}: extra state of {type(module).__name__} cannot be saved")
    state = model.state_dict(keep_vars=True)
    placed = {slot.name for slot in structure.slots(model)}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = _shared_blobs(model, state)
    first_name: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"save: tensor {name!r}: the state dict holds a {type(value).__name__}, not a tensor")
        if name.rpartition(".")[0] in module_aliases or name in aliases:
            continue
        if value.layout is not torch.strided or value.is_meta or value.dtype not in DTYPE_NAMES:
            raise CheckpointError(
                f"save: tensor {name!r}: {value.layout}, {value.dtype} on {value.device} cannot be saved; "
                "allowed are dense tensors with values, of dtype " + ", ".join(str(dtype) for dtype in DTYPE_NAMES)
            )
        key = _identity(value)
        # Unpacked weights are made for this state dict and freed after it: never one storage with another name.
        if key is not None and name in placed:
            if key in first_name:
                aliases[name] = first_name[key]
                continue
            first_name[key] = name
        tensors[name] = value
    return tensors, aliases


def _check_names(model: nn.Module, stored: set[str]) -> None:
    """Hooks may rename what ``state_dict`` returns; then `load`, which assigns by name, could not put it back."""
    owned = {name for name, module in model.named_modules(remove_duplicate=False) if registry.owns_tensors(module)}
    plain = {name for name in stored if name.rpartition(".")[0] not in owned}
    for name in sorted(plain ^ {slot.name for slot in structure.slots(model)}):
        raise CheckpointError(
            f"save: tensor {name!r}: the model's state dict does not match its parameters and buffers (a hook "
            "changes names); remove the hook before saving"
        )


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[Path]:
    """Make ``path`` a locked directory; remove it again if it is new and nothing was saved."""
    created = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.directory_lock(path):
            yield path
        if created:
            atomic.fsync_directory(path.parent)
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _undo(tensor_file: Path) -> Iterator[None]:
    """Remove ``tensor_file`` again when the block fails, unless it was there before (then the old JSON may name it)."""
    existed = tensor_file.exists()
    try:
        yield
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):
                tensor_file.unlink()
        raise


def _remove_leftovers(directory: Path, keep: str) -> None:
    """Delete earlier saves' tensor files and the temporary files of saves that were killed."""
    for entry in os.listdir(directory):
        if atomic.is_temporary(entry) or (is_tensor_file(entry) and entry != keep):
            with contextlib.suppress(OSError):
                (directory / entry).unlink()


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save ``model`` into the directory ``path``: canonical tensors, layer configurations and the compression record.

    Two files are written: ``model-<hash>.safetensors``, named after its content, and ``fastcompress.json``, which names
    it and carries both checksums. The rename of the JSON file is the one moment at which the old checkpoint turns into
    the new one: a crash at any time leaves the old pair or the new pair, never a mixture. Shared tensors are stored
    once. Nothing is pickled, so attributes of the model other than parameters and persistent buffers are not saved.

    Raises:
        TypeError: ``model`` is not a module.
        CheckpointError: something in the model has no place in the file, or the disk refused; what was there before
            is untouched.

    Example:
        >>> fc.save(quantized, "out/minilm-w8a8")
        >>> model = fc.load("out/minilm-w8a8", model=MiniLM(config))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save: model must be a torch.nn.Module, got {type(model).__name__}")
    directory = Path(path)
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"save: {directory} is a file; give the name of a directory")
    entries, module_aliases = _modules(model)
    tensors, tensor_aliases = _tensors(model, module_aliases)
    _check_names(model, {*tensors, *tensor_aliases})
    record = record_of(model)
    try:
        with _directory(directory), atomic.temporary_file(directory) as (file, temporary):
            nbytes, sha256 = write_tensors(file, tensors)
            manifest = Manifest(
                library_version=library_version(),
                tensor_file=tensor_file_name(sha256),
                tensor_file_bytes=nbytes,
                tensor_file_sha256=sha256,
                modules=entries,
                module_aliases=module_aliases,
                tensors={name: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()},
                tensor_aliases=tensor_aliases,
                record=None if record is None else record.to_json(),
            )
            text = manifest.to_bytes()
            Manifest.from_bytes(text)  # what could not be read back is not written
            with _undo(directory / manifest.tensor_file):
                atomic.publish(file, temporary, directory / manifest.tensor_file)
                with atomic.temporary_file(directory) as (json_file, json_temporary):
                    json_file.write(text)
                    atomic.publish(json_file, json_temporary, directory / MANIFEST_NAME)
            _remove_leftovers(directory, keep=manifest.tensor_file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"save: {directory}: {error}; the checkpoint that was there is unchanged") from error
