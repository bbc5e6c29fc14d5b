"""BERT-base with random weights, 90% of its 16x4 blocks zero, dynamic int8, one sequence of 128 tokens."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

import fastcompress as fc
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from fastcompress.nn import SparseQuantLinear

__all__ = ["run"]

SPARSITY = 0.9


def run(context: Context) -> None:
    """Measure the ``bert_sparse`` suite."""
    with context.part("BERT-base, 90% 16x4, dynamic, 1×128"):
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        layers = 1 if context.quick else 12
        model = BertModel(BertConfig(num_hidden_layers=layers), add_pooling_layer=False).eval()
        inputs = {"input_ids": torch.randint(1000, 20000, (1, 128)), "attention_mask": torch.ones(1, 128).long()}
        dense = fc.quantize(model, "W8A8-dynamic", example_inputs=inputs)
        sparse = fc.quantize(zero_blocks(model), "W8A8-dynamic", example_inputs=inputs)
        names = {"fp32": model, "dense int8": dense, "sparse int8": sparse}
        times = interleave({name: partial(each, **inputs) for name, each in names.items()}, context.budget)
        count = sum(isinstance(module, SparseQuantLinear) for module in sparse.modules())
        linears = sum(times_of_linears(sparse, inputs).values())
        milliseconds = ", ".join(f"{name} {seen.median * 1e3:.2f}" for name, seen in times.items())
        note = (
            f"ms: {milliseconds}; {count} block-sparse layers take {linears * 1e3:.2f} ms, attention and norms the rest"
        )
        context.add_ratio("bert_sparse.eager", times, "fp32", "sparse int8", note)
        context.add_ratio("bert_sparse.dense_int8", times, "dense int8", "sparse int8")


def zero_blocks(model: nn.Module) -> nn.Module:
    """Return a copy with 90% of the 16x4 blocks of every linear set to zero, at random."""
    pruned = copy.deepcopy(model)
    for module in pruned.modules():
        if isinstance(module, nn.Linear):
            out_features, in_features = module.weight.shape
            keep = torch.rand(out_features // 16, in_features // 4) >= SPARSITY
            module.weight.data.mul_(keep.repeat_interleave(16, 0).repeat_interleave(4, 1))
    return pruned


def times_of_linears(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return layer name → seconds per call, from `fc.explain`."""
    rows = fc.explain(model, inputs).rows
    return {row.name: row.seconds for row in rows if row.seconds is not None}
