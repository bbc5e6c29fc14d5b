"""The demo's text-generation section: a language model, dense and with four-bit weights, writing the same answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastcompress as fc
from examples.smollm2 import PROMPT, gguf_file, load_smollm2, tokenizer, write
from fastcompress.report.size import size_bytes

__all__ = ["Written", "print_text", "run_text"]

#: Tokens that are written, and those of the prompt that is timed.
_NEW, _PROMPT_TOKENS = 48, 128

#: Name → how the model is made.
_FORMS: dict[str, Callable[[], Any]] = {
    "dense, fp32": load_smollm2,
    "dense, bf16": lambda: load_smollm2(torch.bfloat16),
    "W4A16": lambda: fc.load_pretrained(gguf_file()),
    "W4A8": lambda: fc.load_pretrained(gguf_file(), input_mode="dynamic_symmetric"),
}


@dataclass(frozen=True)
class Written:
    """One form of the model: its size, its speed in tokens per second, and its answer."""

    name: str
    nbytes: int
    decode: float
    prompt: float
    text: str


def run_text(quick: bool, progress: Progress) -> list[Written]:
    """Load every form, let it answer, and time all of them in turn."""
    rounds = 2 if quick else 5
    task = progress.add_task("SmolLM2-135M-Instruct", total=2 * len(_FORMS) + rounds, what="load")
    models: dict[str, Any] = {}
    for name, make in _FORMS.items():
        progress.update(task, what=f"load ({name})")
        models[name] = make()
        progress.advance(task)
    texts = {}
    for name, model in models.items():
        progress.update(task, what=f"write ({name})")
        texts[name] = write(model, tokens=_NEW)
        progress.advance(task)
    decode: dict[str, list[float]] = {name: [] for name in models}
    prompt: dict[str, list[float]] = {name: [] for name in models}
    progress.update(task, what="time all in turn")
    for _ in range(rounds):
        for name, model in models.items():
            decode[name].append(_decode_seconds(model))
            prompt[name].append(_prompt_seconds(model))
        progress.advance(task)
    progress.update(task, what="done")
    return [
        Written(
            name,
            size_bytes(model),
            _NEW / statistics.median(decode[name]),
            _PROMPT_TOKENS / statistics.median(prompt[name]),
            texts[name],
        )
        for name, model in models.items()
    ]


def print_text(written: list[Written], console: Console) -> None:
    """Print the table and the answers."""
    table = Table(title=f"SmolLM2-135M-Instruct from its Q4_1 file, transformers, {torch.get_num_threads()} threads")
    for header in ("weights", "size", "decode", f"prompt of {_PROMPT_TOKENS}"):
        table.add_column(header, justify="left" if header == "weights" else "right")
    dense = [form for form in written if form.name.startswith("dense")]
    fastest = max(form.decode for form in dense), max(form.prompt for form in dense)
    for form in written:
        times = ("", "")
        if form not in dense:
            times = f" ({form.decode / fastest[0]:.2f}×)", f" ({form.prompt / fastest[1]:.2f}×)"
        decode, prompt = f"{form.decode:.0f} tokens/s{times[0]}", f"{form.prompt:.0f} tokens/s{times[1]}"
        table.add_row(form.name, f"{form.nbytes / 1e6:.0f} MB", decode, prompt)
    console.print()
    console.print(table)
    console.print(f"{PROMPT!r}", highlight=False)
    for form in written:
        console.print(f"  {form.name}: {form.text!r}", highlight=False)


@torch.inference_mode()
def _decode_seconds(model: Any) -> float:
    start = time.perf_counter()
    ids = tokenizer()("The sky is blue because", return_tensors="pt")
    model.generate(**ids, max_new_tokens=_NEW, min_new_tokens=_NEW, do_sample=False, pad_token_id=0)
    return time.perf_counter() - start


@torch.inference_mode()
def _prompt_seconds(model: Any) -> float:
    tokens = torch.arange(1000, 1000 + _PROMPT_TOKENS).unsqueeze(0)
    start = time.perf_counter()
    model(tokens, logits_to_keep=1)
    return time.perf_counter() - start
