"""llama.cpp through ``llama-cpp-python``, on the same file with the same number of threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["Llama", "load_llama"]


class Llama:
    """One loaded model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def decode(self, before: str, new: int) -> object:
        """Write ``new`` tokens behind a few, each the likeliest."""
        self._model.reset()
        self._model.eval(self._model.tokenize(before.encode()))
        for _ in range(new):
            self._model.eval([self._model.sample(temp=0.0)])
        return self._model.n_tokens

    def prompt(self, tokens: int) -> object:
        """Read a prompt."""
        self._model.reset()
        self._model.eval(list(range(1000, 1000 + tokens)))
        return self._model.n_tokens


def load_llama(file: Path, threads: int) -> Llama | None:
    """Return the model; None where the package is not installed."""
    try:
        import llama_cpp
    except ImportError:
        return None
    model = llama_cpp.Llama(str(file), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    return Llama(model)
