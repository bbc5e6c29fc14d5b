"""`load_pretrained`: a checkpoint on disk as a transformers model that runs on our kernels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcompress.errors import CheckpointError
from fastcompress.formats.checkpoints import Checkpoint, read_checkpoint
from fastcompress.formats.checkpoints.directory import read_json
from fastcompress.formats.checkpoints.placing import fill_tensors, place_layers, with_input_mode
from fastcompress.integrations.hf_ties import keep_ties

__all__ = ["load_pretrained", "materialize_buffers"]

_FUNCTION = "load_pretrained"
_INPUT_MODES = (None, "dynamic_16bit", "dynamic_symmetric")
#: Settings that would make transformers fetch or run code; the model's own defaults are used instead.
_UNSAFE_KEYS = ("auto_map", "attn_implementation", "experts_implementation", "torch_dtype", "dtype", "architectures")
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MAX_BUFFER_BYTES = 1 << 28
#: Heads and experts that may share one tensor, of plausible configurations.
_PARTS_PER_TENSOR = 64
_GENERATION_NAME = "generation_config.json"


def load_pretrained(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    input_mode: str | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load a quantized Hugging Face directory or a ``.gguf`` file straight into a transformers model with our layers.

    No dense copy of a quantized weight is made. An output head tied to a quantized embedding shares its memory. The
    formats are those of `fastcompress.formats.checkpoints.read_checkpoint`; directories of float weights work too.

    Args:
        path: the directory, or the file.
        dtype: of activations and float weights; by default what ``config.json`` says, float32 for GGUF.
        input_mode: of four-bit layers: ``"dynamic_16bit"`` (W4A16) or ``"dynamic_symmetric"`` (W4A8: int8 by token,
            twice as fast with many tokens); None keeps what the checkpoint says.
        device: where the model goes.

    Returns:
        The model, in evaluation mode, without gradients.

    Raises:
        ImportError: transformers is not installed.
        TypeError, ValueError: a wrong argument.
        CheckpointError: the only exception for whatever is wrong with the files; the message names file and tensor.

    Example:
        >>> model = fc.load_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=20)
    """
    if dtype is not None and dtype not in _FLOATS.values():
        raise ValueError(f"{_FUNCTION}: dtype must be one of {', '.join(_FLOATS)}, got {dtype}")
    if input_mode not in _INPUT_MODES:
        raise ValueError(
            f"{_FUNCTION}: input_mode must be 'dynamic_16bit', 'dynamic_symmetric' or None, got {input_mode!r}"
        )
    _transformers()
    where = Path(path)
    checkpoint = read_checkpoint(where)
    target = torch.device(device)
    try:
        kind = dtype or _stored_dtype(checkpoint.config)
        model: Any = _empty_model(checkpoint, kind)
        tied = dict(getattr(model, "all_tied_weights_keys", {}))
        tied = {key: source for key, source in tied.items() if not _both_stored(checkpoint, key, source)}
        layers = {name: with_input_mode(stored, input_mode) for name, stored in checkpoint.layers.items()}
        checkpoint = replace(checkpoint, layers={})  # packing frees them one by one
        placed = place_layers(model, layers, tied, kind)
        fill_tensors(model, checkpoint, placed, tied, kind, target)
        for layer in placed.layers.values():
            layer.to(target)
        keep_ties(model, {key: source for key, source in tied.items() if key not in placed.tied})
        if hasattr(model, "tie_weights"):
            model.tie_weights(recompute_mapping=False)
        materialize_buffers(model, target)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{_FUNCTION}: {where}: {error}") from error
    _read_generation(model, where)
    if placed.layers and hasattr(model, "save_pretrained"):
        from fastcompress.integrations.hf_quantizer import FastCompressConfig

        FastCompressConfig.attach(model)
    return model.eval()  # type: ignore[no-any-return]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{_FUNCTION} needs transformers: pip install 'fastcompress[transformers]'") from error
    return transformers


def _stored_dtype(config: Mapping[str, Any]) -> torch.dtype:
    name = config.get("dtype", config.get("torch_dtype"))
    if name is None:
        return torch.float32
    if not isinstance(name, str) or name not in _FLOATS:
        raise ValueError(f"config.json: dtype must be one of {', '.join(_FLOATS)}, is {name!r:.60}")
    return _FLOATS[name]


def _check_counts(config: Mapping[str, Any], tensors: int, where: str = "config.json") -> None:
    """Every layer has tensors of its own, so a number of layers beyond theirs would only build modules for years."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_counts(value, tensors, f"{where}: {key}")
            continue
        limit = tensors if "layer" in key else _PARTS_PER_TENSOR * tensors
        counts = any(word in key for word in ("layer", "expert", "head"))
        if counts and isinstance(value, int) and value > limit:
            raise ValueError(f"{where}: {key}: is {value}, the checkpoint has {tensors} tensors")


def _empty_model(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The architecture on the meta device."""
    transformers = _transformers()
    config = {k: v for k, v in checkpoint.config.items() if k not in _UNSAFE_KEYS and not k.startswith("_")}
    _check_counts(config, len(checkpoint.layers) + len(checkpoint.tensors))
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ValueError(f"config.json: model_type: {kind!r:.60} is not known to this transformers")
    model_class = _model_class(checkpoint.config.get("architectures"))
    try:
        parsed = transformers.CONFIG_MAPPING[kind].from_dict(config)
        with torch.device("meta"):
            if model_class is None:
                return transformers.AutoModelForCausalLM.from_config(parsed, dtype=dtype)  # type: ignore[no-any-return]
            return model_class._from_config(parsed, dtype=dtype)  # type: ignore[no-any-return]
    except Exception as error:  # the file's values drive somebody else's constructors, which raise anything
        raise ValueError(f"config.json: transformers cannot build a {kind} from it: {error}") from error


def _model_class(architectures: Any) -> Any:
    """The class that the configuration names, if it is one of transformers' models."""
    transformers = _transformers()
    if architectures is None:
        return None
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise ValueError("config.json: architectures: must be a list of class names")
    found = getattr(transformers, architectures[0], None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise ValueError(f"config.json: architectures: {architectures[0]!r:.80} is no model of this transformers")
    return found


def _both_stored(checkpoint: Checkpoint, target: str, source: str) -> bool:
    """Whether the file has two tied parameters separately, and they differ: then they are not tied."""
    quantized = {key.removesuffix(".weight") in checkpoint.layers for key in (target, source)}
    if True in quantized:
        stored = [
            key.removesuffix(".weight") in checkpoint.layers or key in checkpoint.tensors for key in (target, source)
        ]
        return all(stored)
    first, second = checkpoint.tensors.get(target), checkpoint.tensors.get(source)
    return first is not None and second is not None and not torch.equal(first, second)


def materialize_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that no file holds (rotary frequencies, positions), as transformers does after loading.

    Raises:
        ValueError: they are too large to be honest, or something is left without a value.
    """
    pending = []
    for module in model.modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None and buffer.is_meta:
                pending.append((module, key, buffer))
    nbytes = sum(buffer.numel() * buffer.element_size() for _, _, buffer in pending)
    if nbytes > _MAX_BUFFER_BYTES:
        raise ValueError(f"config.json: the model's buffers take {nbytes} bytes, {_MAX_BUFFER_BYTES} are allowed")
    owners = {id(module) for module, _, _ in pending}
    for module, key, buffer in pending:
        module._buffers[key] = torch.empty_like(buffer, device=device)
    for module in model.modules():
        module._is_hf_initialized = id(module) not in owners
        for tensor in module._parameters.values():
            if tensor is not None:
                tensor._is_hf_initialized = True  # keeps transformers from drawing random numbers into it
    model.initialize_weights()
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise ValueError(f"tensor {left[0]!r}: neither the file nor transformers gives it a value")


def _read_generation(model: Any, path: Path) -> None:
    if not path.is_dir() or not (path / _GENERATION_NAME).exists() or not hasattr(model, "generation_config"):
        return
    body = read_json(_FUNCTION, path, _GENERATION_NAME)
    try:
        model.generation_config = _transformers().GenerationConfig.from_dict(body)
    except Exception as error:  # as above
        raise CheckpointError(f"{_FUNCTION}: {path / _GENERATION_NAME}: {error}") from error
