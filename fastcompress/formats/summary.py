"""What a checkpoint holds, told without the model it belongs to."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from fastcompress.errors import CheckpointError
from fastcompress.formats.reading import open_pair, read_tensor_file
from fastcompress.formats.registry import parse
from fastcompress.record import CompressionRecord

__all__ = ["checkpoint_info"]


def checkpoint_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read both files of a checkpoint, check all of them that needs no model, and sum them up for JSON.

    Raises:
        CheckpointError: the message names the file and the tensor or module.

    Example:
        >>> checkpoint_info("out/minilm-w8a8")["modules"]
        {'QuantLinear': 36, 'Identity': 6}
    """
    directory = Path(path)
    with open_pair(directory) as (manifest, file):
        try:
            record = None if manifest.record is None else CompressionRecord.from_json(manifest.record)
            for name, entry in manifest.modules.items():
                parse(name, entry)
            tensors = read_tensor_file(file, manifest)
        except (OSError, ValueError, OverflowError) as error:
            raise CheckpointError(f"load: {directory / manifest.tensor_file}: {error}") from error
    return {
        "library_version": manifest.library_version,
        "tensor_file": manifest.tensor_file,
        "tensor_file_bytes": manifest.tensor_file_bytes,
        "tensors": len(tensors),
        "dtypes": dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())),
        "modules": dict(Counter(entry.class_name for entry in manifest.modules.values())),
        "scheme": None if record is None else record.scheme,
        "layers": None if record is None else record.counts(),
        "measured_on": None if record is None else dict(record.environment),
    }
