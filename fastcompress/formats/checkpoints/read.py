"""`read_checkpoint`: what other tools quantized, as canonical layers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fastcompress.errors import CheckpointError
from fastcompress.formats.checkpoints.awq import read_awq
from fastcompress.formats.checkpoints.compressed import read_compressed
from fastcompress.formats.checkpoints.content import Checkpoint, StoredLayer
from fastcompress.formats.checkpoints.directory import read_directory
from fastcompress.formats.checkpoints.gguf_file import GGUFFile
from fastcompress.formats.checkpoints.gguf_llama import read_llama
from fastcompress.formats.checkpoints.gptq import read_gptq
from fastcompress.formats.checkpoints.settings import Settings
from fastcompress.formats.checkpoints.table import TensorTable

__all__ = ["read_checkpoint"]

Reader = Callable[[TensorTable, Settings], tuple[dict[str, StoredLayer], dict[str, Tensor]]]

#: ``quant_method`` of the settings → reader.
_READERS: dict[str, Reader] = {
    "gptq": read_gptq,
    "awq": read_awq,
    "compressed-tensors": read_compressed,
    "fastcompress": read_compressed,
}


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a quantized checkpoint: a Hugging Face directory, or one GGUF file.

    Formats: GPTQ (versions 1 and 2, 4 bits, and 8 bits symmetric), AWQ GEMM, compressed-tensors (``pack-quantized`` and
    ``int-quantized``), GGUF of Llama networks with Q4_0, Q4_1, Q8_0 and Q6_K tensors. Directories without quantization
    give floats only.

    Every field is checked before it is used. Memory stays within a small multiple of the file's size. Pickle files
    are never opened.

    Args:
        path: the directory (``config.json``, ``*.safetensors``) or the ``.gguf`` file.

    Raises:
        CheckpointError: the only exception for whatever is wrong with the files; the message names file and tensor.

    Example:
        >>> checkpoint = read_checkpoint("models/llama-gptq")
        >>> checkpoint.layers["model.layers.0.self_attn.q_proj"].canonical.group_size
        128
    """
    function, where = "read_checkpoint", Path(path)
    if where.is_dir():
        return _from_directory(function, where)
    return _from_gguf(function, where)


def _from_gguf(function: str, path: Path) -> Checkpoint:
    try:
        with GGUFFile(path) as file:
            config, layers, tensors = read_llama(file)
    except FileNotFoundError:
        raise CheckpointError(f"{function}: {path}: no such directory or .gguf file") from None
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{function}: {path}: {error}") from None
    return Checkpoint(path, "gguf", config, layers, tensors)


def _from_directory(function: str, path: Path) -> Checkpoint:
    content = read_directory(function, path)
    config = {k: v for k, v in content.config.items() if k not in ("quantization_config", "compression_config")}
    table = TensorTable(function, content.tensors, content.origins, path)
    content.tensors.clear()  # the table has them; what it gives away can be freed
    if content.quantization is None:
        return Checkpoint(path, "none", config, {}, table.rest())
    where = f"{function}: {content.settings_path}"
    try:
        settings = Settings(content.quantization, "quantization")
        method = settings.string("quant_method", allowed=_READERS)
        layers, tensors = _READERS[method](table, settings)
    except CheckpointError:
        raise
    except (ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{where}: {error}") from None
    if not layers:
        raise CheckpointError(f"{where}: quant_method is {method!r}, but no tensor is of a quantized layer")
    return Checkpoint(path, method, config, layers, tensors)
