"""Whole models: the blocks one after the other against a plain computation, chains found and not, memory, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import run_batch
from fastcompress.quantization.groupwise import (
    GroupGrid,
    GroupwiseOptions,
    InputStatistics,
    LayerResult,
    gptq,
    quantize_weights,
    rtn,
)
from fastcompress.quantization.groupwise.chain import find_chain

from .problems import (
    AGREEING,
    Block,
    Stack,
    agreeing,
    linears,
    mlp,
    normal,
    tiny_bert,
    tiny_llama,
    tiny_vit,
    tokens,
    vectors,
)

GRID = GroupGrid(4, 16)

#: The paper's algorithm, with which single layers are compared.
PLAIN = GroupwiseOptions(search="minmax", sweeps=0)


def images(batches: int = 2) -> list[dict[str, Tensor]]:
    return [{"pixel_values": normal(2, 3, 16, 16, seed=seed)} for seed in range(batches)]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]], str | None]] = {
    "llama": (tiny_llama, tokens, "model.layers"),
    "llama tied": (lambda: tiny_llama(tied=True), tokens, "model.layers"),
    "bert": (tiny_bert, tokens, "encoder.layer"),
    "vit": (tiny_vit, images, "layers"),
    "stack": (Stack, vectors, "blocks"),
    "mlp": (mlp, lambda: [normal(50, 24, seed=seed) for seed in range(3)], None),
}


def stored(results: Any) -> list[Tensor]:
    return [t for r in results.values() for t in (r.canonical.dequantize(), r.canonical.bias) if t is not None]


def read_by(model: nn.Module, layers: dict[str, nn.Linear], batches: list[Any]) -> dict[str, Tensor]:
    """All inputs of these layers in full runs of the model."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2)))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in batches:
            run_batch(model, batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items() if parts}


@pytest.mark.parametrize("name", MODELS)
def test_the_chain_is_found(name: str) -> None:
    make, data, container = MODELS[name]
    model, batch = make(), data()[0]
    with torch.no_grad():
        chain = find_chain(model, linears(model), lambda: run_batch(model, batch))
    assert (chain is None) == (container is None)
    assert chain is None or chain.name.endswith(str(container))


@pytest.mark.parametrize("name", MODELS)
def test_blocks_one_after_the_other_are_the_whole_computation(name: str) -> None:
    """Full runs of the model, with everything in front already quantized, must give the same integers."""
    make, data, container = MODELS[name]
    model, batches = make(), data()
    expected, layers = copy.deepcopy(model), linears(model)
    found = quantize_weights(model, layers, GRID, "gptq", batches, options=PLAIN)
    assert list(found) == list(layers)

    mine = linears(expected)
    order = _stages(expected, mine, container)
    checked = 0
    for names in order:
        inputs = read_by(expected, {n: mine[n] for n in names}, batches)
        for n in names:
            if n in inputs:
                # One pass over all rows in place of one per batch, one linear in place of all that share the input.
                weight = gptq(mine[n].weight, InputStatistics.of(inputs[n]), GRID).dequantize()
            else:
                weight = rtn(mine[n].weight, GRID).dequantize()
            assert agreeing(weight, found[n]) > AGREEING, n
            mine[n].weight = nn.Parameter(found[n].canonical.dequantize())
            checked += 1
    assert checked == len(layers)
    for n, layer in layers.items():
        assert torch.equal(layer.weight, found[n].canonical.dequantize())


def _stages(model: nn.Module, layers: dict[str, nn.Linear], container: str | None) -> list[list[str]]:
    """Names in front of the chain, of each block, and behind it."""
    if container is None:
        return [list(layers)]
    prefix = next(n for n, _ in model.named_modules() if n.endswith(container)) + "."
    blocks: dict[str, list[str]] = {}
    for n in layers:
        if n.startswith(prefix):
            blocks.setdefault(n.removeprefix(prefix).split(".")[0], []).append(n)
    rest = [n for n in layers if not n.startswith(prefix)]
    early = [n for n in rest if n == "first"]
    return [early, *blocks.values(), [n for n in rest if n not in early]]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("algorithm", ["rtn", "hqq", "gptq", "awq"])
def test_every_algorithm_on_every_model(name: str, algorithm: str) -> None:
    make, data, _ = MODELS[name]
    model, batches = make(), data()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    model.train()
    layers = linears(model)
    found = quantize_weights(model, layers, GRID, algorithm, batches if algorithm in ("gptq", "awq") else None)
    assert model.training
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    model.eval()
    for n, result in found.items():
        assert result.report["algorithm"] == algorithm or "note" in result.report
        assert torch.equal(layers[n].weight, result.canonical.dequantize())
    if algorithm != "awq":
        quantized = {f"{n}.weight" for n in layers}
        assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items() if n not in quantized)
    with torch.no_grad():
        run_batch(model, batches[0])


@pytest.mark.parametrize("name", ["llama", "llama tied", "bert", "vit", "stack", "mlp"])
def test_data_lowers_the_models_error(name: str) -> None:
    make, data, _ = MODELS[name]
    batches = data()

    def error(algorithm: str) -> float:
        model, original = make(), make()
        quantize_weights(model, linears(model), GRID, algorithm, batches)
        with torch.no_grad():
            pairs = [(first(run_batch(model, b)), first(run_batch(original, b))) for b in batches]
        return sum(float((a - b).square().sum()) for a, b in pairs)

    nearest = error("rtn")
    assert error("gptq") < nearest
    assert error("awq") < nearest


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def test_the_embedding_of_a_tied_head_stays() -> None:
    model = tiny_llama(tied=True)
    embedding = model.model.embed_tokens.weight.clone()
    quantize_weights(model, linears(model), GRID, "gptq", tokens())
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert not torch.equal(model.lm_head.weight, embedding)


def test_key_value_caches_do_not_grow_into_the_replay() -> None:
    model = tiny_llama()
    model.config.use_cache = True
    uncached = tiny_llama()
    uncached.config.use_cache = False
    a = quantize_weights(model, linears(model), GRID, "gptq", tokens())
    b = quantize_weights(uncached, linears(uncached), GRID, "gptq", tokens())
    assert model.config.use_cache is True
    assert all(torch.equal(x, y) for x, y in zip(stored(a), stored(b), strict=True))
    with_fn = tiny_llama()
    c = quantize_weights(with_fn, linears(with_fn), GRID, "gptq", tokens(), lambda m, b: m(**b, use_cache=True))
    assert all(torch.equal(x, y) for x, y in zip(stored(a), stored(c), strict=True))


class Alternating(nn.Module):
    """Blocks that get different arguments each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Shifted(16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, shift=torch.full((1,), float(index)))
        return x


class Shifted(Block):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + shift)


def test_blocks_with_arguments_of_their_own() -> None:
    torch.manual_seed(0)
    model, batches = Alternating().eval(), [normal(30, 16, seed=s) for s in range(2)]
    expected = copy.deepcopy(model)
    with torch.no_grad():
        chain = find_chain(model, linears(model), lambda: model(batches[0]))
    assert chain is not None
    assert not chain.uniform
    found = quantize_weights(model, linears(model), GRID, "gptq", batches, options=PLAIN)
    layer = expected.blocks[0].up
    x = read_by(expected, {"up": layer}, batches)["up"]
    assert torch.equal(
        found["blocks.0.up"].canonical.dequantize(), gptq(layer.weight, InputStatistics.of(x), GRID).dequantize()
    )
    quantized = copy.deepcopy(expected)
    for name, other in linears(quantized).items():
        if not name.startswith("blocks.2"):
            other.weight = nn.Parameter(found[name].canonical.dequantize())
    last = quantized.blocks[2].up
    x = read_by(quantized, {"up": last}, batches)["up"]
    assert agreeing(gptq(last.weight, InputStatistics.of(x), GRID).dequantize(), found["blocks.2.up"]) > AGREEING


def test_statistics_inside_a_block_are_renewed() -> None:
    model, reference, batches = Stack(), Stack(), vectors()
    options = GroupwiseOptions(sequential=True, search="minmax", sweeps=0)
    found = quantize_weights(model, linears(model), GRID, "gptq", batches, options=options)
    original = reference.blocks[1].down.weight.detach().clone()
    for name, layer in linears(reference).items():
        layer.weight = nn.Parameter(found[name].canonical.dequantize())
    seen: list[Tensor] = []
    reference.blocks[1].down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            reference(batch)
    expected = gptq(original, InputStatistics.of(torch.cat(seen)), GRID).dequantize()
    assert agreeing(expected, found["blocks.1.down"]) > AGREEING


def test_scaled_weights_can_be_rounded_by_gptq() -> None:
    """Less error than to nearest, and the same modules take the scales."""
    batches = tokens()

    def run(algorithm: str, **options: Any) -> tuple[dict[str, LayerResult], float]:
        model = tiny_llama()
        found = quantize_weights(model, linears(model), GRID, algorithm, batches, options=GroupwiseOptions(**options))
        return found, sum(float(r.report["relative_error"]) for r in found.values())

    nearest, both = run("awq"), run("awq", awq_rounding="gptq")
    assert both[1] < 0.7 * nearest[1]
    name = "model.layers.0.mlp.gate_proj"
    assert nearest[0][name].report["folded_into"] == both[0][name].report["folded_into"]
    assert both[0][name].report["retries"] == 0


def test_refusals_change_nothing() -> None:
    model, batches = Stack(), vectors()
    layers = linears(model)
    before = [p.clone() for p in model.parameters()]
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "needs calibration data", {"algorithm": "gptq"}),
        (ValueError, "batches is empty", {"algorithm": "awq", "batches": []}),
        (ValueError, "algorithm must be one of", {"algorithm": "best"}),
        (ValueError, "search='output'", {"algorithm": "rtn", "options": GroupwiseOptions(search="output")}),
        (TypeError, "grid must be", {"grid": 4}),
        (TypeError, "layers\\['x'\\]", {"layers": {"x": nn.Conv2d(1, 1, 1)}}),
        (TypeError, "model must be", {"model": "model"}),
        (TypeError, "batches", {"algorithm": "gptq", "batches": 5}),
    ]
    for kind, words, changed in cases:
        arguments: dict[str, Any] = {"model": model, "layers": layers, "grid": GRID, **changed}
        with pytest.raises(kind, match=words):
            quantize_weights(**arguments)
    for bad in (float("nan"), float("inf")):
        poisoned = [batches[0], batches[1].clone()]
        poisoned[1][3, 2] = bad
        for algorithm in ("gptq", "awq"):
            with pytest.raises(ValueError, match="the input of 'first' held NaN"):
                quantize_weights(model, layers, GRID, algorithm, poisoned)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    with torch.no_grad():
        model.last.weight[0, 0] = float("nan")
    for algorithm in ("rtn", "hqq", "gptq", "awq"):
        with pytest.raises(ValueError, match=r"the weight of .* holds NaN"):
            quantize_weights(copy.deepcopy(model), linears(model), GRID, algorithm, batches)


def test_options_out_of_range() -> None:
    for name, value in (
        ("search", "best"),
        ("hqq_p", 0.0),
        ("dampening", 2.0),
        ("block_cols", 0),
        ("awq_steps", True),
        ("awq_rounding", "best"),
    ):
        with pytest.raises(ValueError, match=name):
            GroupwiseOptions(**{name: value})
