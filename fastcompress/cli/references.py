"""What the command line's arguments stand for: ``module:callable``, or a Hugging Face directory for models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torch import nn

from fastcompress.formats import load
from fastcompress.references import call_reference as called
from fastcompress.references import find_reference as imported

__all__ = ["called", "imported", "loaded", "model", "optional"]


def optional(reference: str | None) -> Any:
    """The same, or None without a reference."""
    return None if reference is None else called(reference)


def model(reference: str) -> nn.Module:
    """The model of ``module:callable`` or of a Hugging Face directory, in eval mode."""
    if (Path(reference) / "config.json").is_file():
        return _hugging_face(Path(reference))
    made = called(reference)
    if not isinstance(made, nn.Module):
        raise TypeError(f"{reference!r} returned a {type(made).__name__}, not a torch.nn.Module")
    return made.eval()


def loaded(options: argparse.Namespace) -> nn.Module:
    """The model, with the checkpoint if one is named."""
    made = model(options.model)
    return made if options.checkpoint is None else load(options.checkpoint, made, inplace=True)


def _hugging_face(directory: Path) -> nn.Module:
    """The class that the directory's configuration names; local files only, no code from the directory."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{directory} is a Hugging Face directory; install transformers to load it") from error
    try:
        names = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("architectures") or [
            "AutoModel"
        ]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{directory}: config.json is not a JSON object ({error})") from error
    kind = getattr(transformers, str(names[0]), None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise ValueError(f"{directory}: transformers has no model class {str(names[0])!r:.80}")
    made: nn.Module = kind.from_pretrained(directory, local_files_only=True)
    return made.eval()
