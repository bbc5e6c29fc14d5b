"""What four-bit weights in groups cost all-MiniLM-L6-v2: cosine of its sentence embeddings with the fp32 network's."""

from __future__ import annotations

import logging
from typing import Any

import torch

import fastcompress as fc
from benchmarks.harness.suite import Context
from examples.real_models import embed, load_minilm, sentences, tokenize

__all__ = ["run"]

_JUDGED, _CALIBRATION = 600, 512

#: Name in the table → what `fc.QuantConfig` gets besides the scheme and groups of 32.
_FORMS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "gptq": {"algorithm": "gptq", "symmetric_weights": False},
}


def run(context: Context) -> None:
    """Measure the ``minilm_w4`` suite."""
    logging.getLogger("fastcompress").setLevel(logging.ERROR)
    model, words = load_minilm()
    judged, calibration = (32, 64) if context.quick else (_JUDGED, _CALIBRATION)
    text, seen = sentences("evaluation", judged), sentences("calibration", calibration)
    data = [tokenize(words, [one]) for one in seen]  # one at a time: what pads a batch would count as text
    expected = embed(model, words, text)
    for name, options in _FORMS.items():
        config = fc.QuantConfig("W4A16", group_size=32, **options)
        with torch.inference_mode(False), torch.no_grad():
            compressed = fc.quantize(model, config, data if name == "gptq" else None, progress=False)
        cosine = torch.sum(expected * embed(compressed, words, text), dim=1)
        note = f"{judged} sentences, minimum {cosine.min():.4f}"
        context.add(f"minilm_w4.{name}", cosine.mean().item(), note=note)
