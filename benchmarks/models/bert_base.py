"""BERT-base with random weights (speed does not depend on them), dynamic int8, one sequence of 128 tokens."""

from __future__ import annotations

import torch

import fastcompress as fc
from benchmarks.harness.suite import Context
from benchmarks.models.rows import speed_rows

__all__ = ["run"]


def run(context: Context) -> None:
    """Measure the ``bert_base`` suite."""
    with context.part("BERT-base, dynamic, 1×128"):
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        layers = 1 if context.quick else 12
        model = BertModel(BertConfig(num_hidden_layers=layers), add_pooling_layer=False).eval()
        inputs = {"input_ids": torch.randint(1000, 20000, (1, 128)), "attention_mask": torch.ones(1, 128).long()}
        quantized = fc.quantize(model, "W8A8-dynamic", example_inputs=inputs)
        speed_rows(context, "bert_base.1×128", model, quantized, inputs, "fp32 eager")
