"""SmolLM2-135M-Instruct from its Q4_1 file: decoding and prompts through transformers, and llama.cpp beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import fastcompress as fc
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from benchmarks.peers.llama_peer import load_llama
from examples.smollm2 import gguf_file, load_smollm2, tokenizer
from fastcompress.report.size import size_bytes

__all__ = ["run"]

_MODES = {"W4A16": "dynamic_16bit", "W4A8": "dynamic_symmetric"}
_PROMPT_TOKENS = 128
_BEFORE = "The sky is blue because"


def run(context: Context) -> None:
    """Measure the ``smollm2`` suite."""
    with context.part("SmolLM2-135M-Instruct"):
        ours = {scheme: fc.load_pretrained(gguf_file(), input_mode=mode) for scheme, mode in _MODES.items()}
        models = {**ours, "fp32": load_smollm2(), "bf16": load_smollm2(torch.bfloat16)}
        nbytes = gguf_file().stat().st_size
        loaded = size_bytes(ours["W4A16"])
        context.add("smollm2.bytes", loaded / nbytes, note=f"{loaded / 1e6:.1f} of {nbytes / 1e6:.1f} MB")
        llama = load_llama(gguf_file(), torch.get_num_threads())
        new = 8 if context.quick else 32
        decode: dict[str, Callable[[], object]] = {name: partial(_decode, model, new) for name, model in models.items()}
        prompt: dict[str, Callable[[], object]] = {name: partial(_prompt, model) for name, model in models.items()}
        if llama is not None:
            decode["llama.cpp"] = partial(llama.decode, _BEFORE, new)
            prompt["llama.cpp"] = partial(llama.prompt, _PROMPT_TOKENS)
        _rows(context, "decode", decode, new, "tokens/s")
        _rows(context, "prompt", prompt, _PROMPT_TOKENS, "tokens/s")


def _rows(context: Context, kind: str, calls: Mapping[str, Callable[[], object]], tokens: int, unit: str) -> None:
    times = interleave(calls, context.budget)
    rates = ", ".join(f"{name} {tokens / timing.median:.0f}" for name, timing in times.items())
    for scheme in _MODES:
        key = f"smollm2.{scheme}.{kind}"
        context.add_ratio(key, times, "bf16", scheme, f"{unit}: {rates}")
        context.add_ratio(f"{key}.fp32", times, "fp32", scheme)
        if "llama.cpp" in times:
            context.add_ratio(f"{key}.llama", times, "llama.cpp", scheme)
        else:
            context.skip(f"{key}.llama", "package llama-cpp-python is not installed")


def _decode(model: Any, new: int) -> object:
    ids = tokenizer()(_BEFORE, return_tensors="pt")
    return model.generate(**ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)


def _prompt(model: nn.Module) -> object:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 40_000, (1, _PROMPT_TOKENS), generator=generator)
    return model(tokens, logits_to_keep=1)
