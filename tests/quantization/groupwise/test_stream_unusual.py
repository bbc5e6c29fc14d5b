"""Streaming through models that are no plain chain of blocks, or in half precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.quantization.groupwise import (
    GroupGrid,
    GroupwiseOptions,
    InputStatistics,
    gptq,
    quantize_weights,
    rtn,
)
from fastcompress.quantization.groupwise.chain import find_chain

from .problems import AGREEING, Stack, agreeing, linears, mlp, normal, tiny_llama, tokens, vectors

GRID = GroupGrid(4, 16)

#: The paper's algorithm, with which single layers are compared.
PLAIN = GroupwiseOptions(search="minmax", sweeps=0)


class Repeated(Stack):
    """The same blocks twice: no chain."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in [*self.blocks, *self.blocks]:
            x = block(x)
        out: Tensor = self.last(x)
        return out


class Remembering(Stack):
    """Each block call depends on earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.register_forward_hook(self._drift)
        self.calls = 0

    def _drift(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.calls += 1
        return output + 0.001 * self.calls


class Sideways(Stack):
    """Something happens between the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        out: Tensor = self.last(x)
        return out


@pytest.mark.parametrize("make", [Repeated, Remembering, Sideways])
@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_what_is_no_chain_is_one_block(make: Callable[[], nn.Module], algorithm: str) -> None:
    model, batches = make(), vectors()
    layers = linears(model)
    with torch.no_grad():
        assert find_chain(model, layers, lambda: model(batches[0])) is None
    assert list(quantize_weights(model, layers, GRID, algorithm, batches)) == list(layers)


def test_layers_that_never_run_are_rounded() -> None:
    model = Stack()
    model.spare = nn.Linear(24, 24)
    original = model.spare.weight.detach().clone()
    found = quantize_weights(model, linears(model), GRID, "gptq", vectors())
    assert "no input" in found["spare"].report["note"]
    assert torch.equal(found["spare"].canonical.dequantize(), rtn(original, GRID).dequantize())


class Experts(nn.Module):
    """Which linears share an input depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x) + self.b(x if float(x[0, 0]) > 0 else 2.0 * x)
        return out


def test_inputs_that_are_not_always_shared() -> None:
    positive, negative = normal(40, 16), normal(40, 16, seed=1)
    positive[0, 0], negative[0, 0] = 1.0, -1.0
    model = Experts()
    b = model.b.weight.detach().clone()
    found = quantize_weights(model, linears(model), GRID, "gptq", [positive, negative], options=PLAIN)
    collector = InputStatistics.of(positive).hessian + InputStatistics.of(2.0 * negative).hessian
    assert torch.equal(
        found["b"].canonical.dequantize(), gptq(b, InputStatistics(collector, b[0], 80), GRID).dequantize()
    )


def test_many_passes_where_hessians_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcompress.quantization.groupwise import stage

    monkeypatch.setattr(stage, "_HESSIAN_ELEMS", 1)
    model, batches = mlp(), [normal(50, 24, seed=s) for s in range(3)]
    third = model[2].weight.detach().clone()
    found = quantize_weights(model, linears(model), GRID, "gptq", batches, options=PLAIN)
    front = copy.deepcopy(mlp())
    front[0].weight = nn.Parameter(found["0"].canonical.dequantize())
    with torch.no_grad():
        x = torch.cat([front[1](front[0](b)) for b in batches])
    assert agreeing(gptq(third, InputStatistics.of(x), GRID).dequantize(), found["2"]) > AGREEING
    awq_model = mlp()
    assert list(quantize_weights(awq_model, linears(awq_model), GRID, "awq", batches)) == ["0", "2", "4"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algorithm", ["hqq", "gptq", "awq"])
def test_half_precision_models(dtype: torch.dtype, algorithm: str) -> None:
    model = tiny_llama(layers=2).to(dtype)
    found = quantize_weights(model, linears(model), GRID, algorithm, tokens())
    for name, layer in linears(model).items():
        assert layer.weight.dtype == dtype
        assert torch.equal(layer.weight, found[name].canonical.dequantize().to(dtype))
