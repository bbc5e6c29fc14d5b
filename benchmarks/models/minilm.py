"""all-MiniLM-L6-v2 with its real weights, dynamic int8: speed at two batch sizes, agreement of the embeddings."""

from __future__ import annotations

import torch

import fastcompress as fc
from benchmarks.harness.suite import Context
from benchmarks.models.rows import speed_rows
from examples.real_models import embed, load_minilm, sentences
from examples.schemes import MINILM
from fastcompress import QuantConfig
from fastcompress.nn import QuantLinear

__all__ = ["run"]

SENTENCES = 600


def run(context: Context) -> None:
    """Measure the ``minilm`` suite."""
    model, tokenizer = load_minilm()
    torch.manual_seed(0)
    for batch in (1,) if context.quick else (1, 32):
        with context.part(f"all-MiniLM-L6-v2, dynamic, {batch}×128"):
            tokens = torch.randint(1000, 20000, (batch, 128))
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            quantized = fc.quantize(model, MINILM, example_inputs=inputs)
            speed_rows(context, f"minilm.{batch}×128", model, quantized, inputs, "fp32 eager")
    with context.part("all-MiniLM-L6-v2, agreement"):
        text = sentences("evaluation", 16 if context.quick else SENTENCES)
        expected = embed(model, tokenizer, text)
        for key, config in (("", MINILM), ("_all", QuantConfig("W8A8-dynamic"))):
            # In int8 whether or not it is faster here: agreement must not depend on the machine.
            quantized = fc.quantize(model, config, only_if_faster=False)
            cosine = torch.sum(expected * embed(quantized, tokenizer, text), dim=1)
            layers = sum(isinstance(module, QuantLinear) for module in quantized.modules())
            note = f"{len(text)} sentences, {layers} linears in int8"
            context.add(f"minilm.mean_cosine{key}", cosine.mean().item(), note=note)
            context.add(f"minilm.min_cosine{key}", cosine.min().item(), note=note)
