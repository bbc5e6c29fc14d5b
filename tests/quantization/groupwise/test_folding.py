"""Where AWQ's scales may go, and that a network with them computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.quantization.channels import scale_inputs
from fastcompress.quantization.groupwise.folding import fold_into, producers
from fastcompress.quantization.groupwise.stage import Stage, reader_groups

from .problems import linears, mlp, normal, tiny_bert, tiny_llama, tokens


def found_in(
    model: nn.Module, batch: Any, finished: frozenset[str] = frozenset(), leave_out: str = "-"
) -> dict[str, str]:
    """First linear of each group → the module that takes its scales."""
    layers = {name: layer for name, layer in linears(model).items() if leave_out not in name}
    run = (lambda _: model(**batch)) if isinstance(batch, dict) else (lambda _: model(batch))
    stage = Stage("the model", model, layers, run, 1)
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    tied = frozenset(key for key, count in owners.items() if count > 1)
    with torch.no_grad():
        return {k: p.name for k, p in producers(stage, reader_groups(stage), finished, tied).items()}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llama(kv_heads: int) -> None:
    found = found_in(tiny_llama(layers=1, kv_heads=kv_heads), tokens(1)[0])
    layer = "model.layers.0"
    assert found == {
        f"{layer}.self_attn.q_proj": f"{layer}.input_layernorm",
        f"{layer}.self_attn.o_proj": f"{layer}.self_attn.v_proj",
        f"{layer}.mlp.gate_proj": f"{layer}.post_attention_layernorm",
        f"{layer}.mlp.down_proj": f"{layer}.mlp.up_proj",
        "lm_head": "model.norm",
    }


def test_bert_has_residuals_behind_its_norms() -> None:
    found = found_in(tiny_bert(layers=2), tokens(1)[0])
    layers = [f"encoder.layer.{i}.attention" for i in range(2)]
    assert found == {f"{layer}.output.dense": f"{layer}.self.value" for layer in layers}


def test_only_homogeneous_activations_let_a_scale_through() -> None:
    assert found_in(mlp(), normal(30, 24)) == {"2": "0"}  # ReLU, not GELU


def test_a_tied_head_takes_nothing() -> None:
    assert "lm_head" not in found_in(tiny_llama(layers=1, tied=True), tokens(1)[0])


def test_a_reader_that_stays_float_forbids_it() -> None:
    found = found_in(tiny_llama(layers=1), tokens(1)[0], leave_out="gate_proj")
    assert "model.layers.0.mlp.up_proj" not in found
    assert "model.layers.0.mlp.down_proj" in found


def test_a_finished_producer_stays_as_it_is() -> None:
    found = found_in(tiny_llama(layers=1), tokens(1)[0], finished=frozenset({"model.layers.0.mlp.up_proj"}))
    assert "model.layers.0.mlp.down_proj" not in found


class PlusOne(nn.Module):
    """A norm whose weight is an offset from one, as Gemma's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight)


def test_a_norm_that_adds_one_takes_nothing() -> None:
    torch.manual_seed(0)
    assert found_in(nn.Sequential(PlusOne(16), nn.Linear(16, 8)), normal(10, 16)) == {}
    assert found_in(nn.Sequential(nn.RMSNorm(16), nn.Linear(16, 8)), normal(10, 16)) == {"1": "0"}
    assert found_in(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8)), normal(10, 16)) == {"1": "0"}


class Leaks(nn.Module):
    """What the norm makes is also returned."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        return self.linear(x), x


def test_a_value_that_is_used_elsewhere_cannot_be_divided() -> None:
    torch.manual_seed(0)
    assert found_in(Leaks(), normal(10, 16)) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_is_the_same_afterwards(dtype: torch.dtype) -> None:
    model, batch = tiny_llama(layers=1).to(dtype), tokens(1)[0]
    layers = linears(model)
    stage = Stage("the model", model, layers, lambda _: model(**batch), 1)
    with torch.no_grad():
        before = model(**batch).logits
        groups = reader_groups(stage)
        parameters = {id(p): p.clone() for p in model.parameters()}
        found = producers(stage, groups, frozenset(), frozenset())
        assert all(torch.equal(p, parameters[id(p)]) for p in model.parameters())  # trying leaves no trace
        assert len(found) == 5
        for group in groups:
            producer = found[group[0]]
            # Powers of two: the same bits.
            size = producer.module.get_parameter("weight").shape[0]
            scale = torch.exp2(torch.arange(size).remainder(5).float() - 2.0)[producer.channel]
            made = fold_into(producer, scale)
            assert made is not None
            producer.module._parameters.update(made)
            for name in group:
                layers[name].weight = nn.Parameter(scale_inputs(layers[name], scale))
        assert torch.equal(model(**batch).logits, before)


def test_scales_that_overflow_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)).half()
    x = normal(4, 8).half()
    stage = Stage("the model", model, {"1": model[1]}, lambda _: model(x), 1)
    with torch.no_grad():
        producer = producers(stage, [["1"]], frozenset(), frozenset())["1"]
        assert fold_into(producer, torch.full((8,), 1e-6)) is None
