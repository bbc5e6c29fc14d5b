"""`load`: a saved model into a fresh or existing float model, checked completely before anything changes."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from fastcompress.errors import CheckpointError
from fastcompress.formats.convert import apply, build_layers, fill_slots
from fastcompress.formats.manifest import MANIFEST_NAME
from fastcompress.formats.plan import make_plan
from fastcompress.formats.reading import open_pair, read_tensor_file
from fastcompress.record import CompressionRecord

__all__ = ["load"]


def load(path: str | os.PathLike[str], model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Load what `save` wrote into the directory ``path``.

    Args:
        path: the directory.
        model: what the original constructor returns: a float model of the same architecture, trained or not (it may be
            on the meta device). Quantized layers, folded and fused modules are put in place by name; all other tensors
            are replaced by the file's, with the file's dtype, on the device where they were.
        inplace: convert ``model`` itself and return it. Otherwise a converted copy is returned and ``model`` keeps its
            values; the copy shares no tensor with it and costs no memory for tensors that the file replaces.

    Everything is checked before the model is touched: both checksums, every size, offset, dtype and shape, scales and
    zero points, and that every name exists in the model. Memory is bounded by the file's size. Nothing is measured
    again: the decisions of `quantize` are part of the file. Weights are packed for this machine's instruction set.

    Raises:
        TypeError: ``model`` is not a module.
        CheckpointError: the message names the file and the tensor or module; ``model`` is unchanged.

    Example:
        >>> model = fc.load("out/minilm-w8a8", model=MiniLM(config))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"load: model must be a torch.nn.Module, got {type(model).__name__}; construct the original model first"
        )
    directory = Path(path)
    with open_pair(directory) as (manifest, file):
        try:
            record = None if manifest.record is None else CompressionRecord.from_json(manifest.record)
            plan = make_plan(model, manifest)
        except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f"load: {directory / MANIFEST_NAME}: {error}") from error
        try:
            tensors = read_tensor_file(file, manifest)
            layers = build_layers(model, plan, manifest, tensors)
            values = fill_slots(plan, manifest, tensors)
            return apply(model, plan, layers, values, record, inplace)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"load: {directory / manifest.tensor_file}: {error}") from error
