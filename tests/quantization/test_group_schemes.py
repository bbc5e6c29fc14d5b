"""`quantize` with weights in groups: which layers, which weights, what is measured, what the record says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import GroupQuantLinear, QuantEmbedding
from fastcompress.record import record_of
from tests.errors.expect import error
from tests.formats.models import Snapshot
from tests.nn.group_cases import product, quantized
from tests.ops.cases import rng
from tests.quantization.groupwise.problems import tiny_bert, tiny_llama, tokens

#: Scheme → weight_bits and input_mode of its layers.
SCHEMES = {"W4A8": (4, "dynamic_symmetric"), "W4A16": (4, "dynamic_16bit"), "W8A16": (8, "dynamic_16bit")}

Functions = Mapping[str, Callable[[], Any]]


def wins(functions: Functions) -> dict[str, float]:
    return {name: 2.0 if name == "dense" else 1.0 for name in functions}


def loses(functions: Functions) -> dict[str, float]:
    return {name: 1.0 if name == "dense" else 2.0 for name in functions}


def never(functions: Functions) -> dict[str, float]:
    raise AssertionError("this scheme must not be measured")


def mlp(width: int = 40) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, width), nn.ReLU(), nn.Linear(width, 8)).eval()


def quantize(model: nn.Module, scheme: Any, *data: Any, **options: Any) -> Any:
    return fc.quantize(model, scheme, *data, progress=False, **options)


def action(model: nn.Module, name: str) -> tuple[str, str]:
    record = record_of(model)
    assert record is not None
    return record[name].action, record[name].reason


def scheme_timer(scheme: str) -> Any:
    return wins if scheme == "W4A8" else never


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("group_size", [None, -1, 8, 32])
@pytest.mark.parametrize("data", [(), ([torch.randn(4, 24, generator=rng(1))],)])
def test_results_are_numpy_s(scheme: str, group_size: int | None, data: Any) -> None:
    """With data the ReLU moves into the first layer; the bits are the same."""
    bits, mode = SCHEMES[scheme]
    model = mlp()
    q = quantize(model, scheme, *data, group_size=group_size, timer=scheme_timer(scheme))
    x = torch.randn(5, 24, generator=rng(2))
    size = {None: 128 if bits == 4 else None, -1: None}.get(group_size, group_size)
    rows = x
    for index in (0, 2):
        layer = q[index]
        assert isinstance(layer, GroupQuantLinear)
        assert (layer.weight_bits, layer.input_mode) == (bits, mode)
        w = quantized(model[index].weight, bits, None if size is None else min(size, layer.in_features))
        np.testing.assert_array_equal(layer.weight.numpy(), w.floats)
        y = torch.from_numpy(product(rows, w, mode, model[index].bias))
        rows = torch.relu(y)
    assert torch.equal(q(x), y)


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_options_of_the_weights(scale_dtype: str, symmetric: bool) -> None:
    model = mlp()
    config = fc.QuantConfig("W4A16", group_size=8, symmetric_weights=symmetric, scale_dtype=scale_dtype)
    q = quantize(model, config)
    dtype = getattr(torch, scale_dtype)
    assert q.state_dict()["0.weight_scale"].dtype == dtype
    assert ("0.weight_zero_point" in q.state_dict()) == (not symmetric)
    for index in (0, 2):
        w = quantized(model[index].weight, 4, 8, symmetric, dtype)
        np.testing.assert_array_equal(q[index].weight.numpy(), w.floats)


def test_w4a8_obeys_the_stopwatch() -> None:
    data = [torch.randn(4, 24, generator=rng(1))]
    kept = quantize(mlp(), "W4A8", data, timer=loses)
    assert type(kept[0]) is nn.Linear
    assert type(kept[1]) is nn.ReLU
    assert action(kept, "0") == ("kept", "four-bit measured 0.50× as fast as dense here, dense is kept")
    taken = quantize(mlp(), "W4A8", data, timer=wins)
    assert isinstance(taken[0], GroupQuantLinear)
    assert action(taken, "0") == ("quantized", "four-bit measured 2.00× as fast as dense here")
    forced = quantize(mlp(), "W4A8", data, timer=never, only_if_faster=False)
    assert isinstance(forced[0], GroupQuantLinear)


@pytest.mark.parametrize("scheme", ["W4A16", "W8A16"])
@pytest.mark.parametrize("only_if_faster", [None, True, False])
def test_weight_only_schemes_always_replace(scheme: str, only_if_faster: bool | None) -> None:
    q = quantize(mlp(), scheme, timer=never, only_if_faster=only_if_faster)
    assert isinstance(q[0], GroupQuantLinear)
    assert action(q, "0") == ("quantized", "for its size, not measured")
    record = record_of(q)
    assert record is not None
    assert record.scheme == scheme
    assert record["0"].dense_seconds is None
    assert record["0"].kernel == q[0].kernel_name()
    text = str(fc.explain(q))
    assert f"{scheme}: 2 quantized" in text
    assert f"linear_{'w4' if scheme == 'W4A16' else 'w8'}" in text
    assert "for its size, not measured" in text
    assert fc.verify(q) == ["0", "2"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_convolutions_are_kept_with_a_reason(scheme: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)).eval()
    x = torch.randn(2, 3, 6, 6, generator=rng(1))
    for data in ((), ([x],)):
        q = quantize(net, scheme, *data, timer=scheme_timer(scheme))
        assert type(q[0]) is nn.Conv2d
        assert isinstance(q[4], GroupQuantLinear)
        assert action(q, "0") == ("kept", f"{scheme} quantizes linear layers only")
        assert f"{scheme} quantizes linear layers only" in str(fc.explain(q))
        features = net[:4](x)
        expected = product(features, quantized(net[4].weight, *_layout(scheme)), SCHEMES[scheme][1], net[4].bias)
        np.testing.assert_array_equal(q(x).detach().numpy(), expected)


def _layout(scheme: str) -> tuple[int, int]:
    return SCHEMES[scheme][0], 128


def test_targets_and_ignore() -> None:
    one = quantize(mlp(), "W4A16", targets="0")
    assert isinstance(one[0], GroupQuantLinear)
    assert type(one[2]) is nn.Linear
    other = quantize(mlp(), "W4A16", ignore="re:0")
    assert type(other[0]) is nn.Linear
    assert isinstance(other[2], GroupQuantLinear)
    with pytest.raises(ValueError, match="nothing"):
        quantize(mlp(), "W4A16", targets="nothing")


def test_bert() -> None:
    model = tiny_bert(2)
    config = fc.QuantConfig("W4A16", group_size=32, embedding_bits=8, ignore=("re:.*position_embeddings",))
    q = quantize(model, config)
    assert type(q.embeddings.position_embeddings) is nn.Embedding
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            layer = q.get_submodule(name)
            np.testing.assert_array_equal(layer.weight.numpy(), quantized(module.weight, 4, 32).floats)
        elif isinstance(module, nn.Embedding) and "position" not in name:
            layer = q.get_submodule(name)
            assert isinstance(layer, QuantEmbedding)
            np.testing.assert_array_equal(layer.weight.numpy(), quantized(module.weight, 8, 32).floats)
    with torch.no_grad():
        batch = tokens(1)[0]
        for found, expected in zip(q(**batch)[:2], in_numpy(model)(**batch)[:2], strict=True):
            assert torch.equal(found, expected)


class NumpyLinear(nn.Module):
    """What a W4A16 layer with groups of 32 computes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weights, self.bias = quantized(layer.weight, 4, 32), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = product(x.reshape(-1, x.shape[-1]), self.weights, "dynamic_16bit", self.bias)
        return torch.from_numpy(rows).view(*x.shape[:-1], -1)


def in_numpy(model: nn.Module) -> Any:
    """The float model with its linears and two of its embeddings as `quantize` must make them."""
    result = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            result.set_submodule(name, NumpyLinear(module))
        elif isinstance(module, nn.Embedding) and "position" not in name:
            rows: Any = result.get_submodule(name)
            rows.weight.data = torch.from_numpy(quantized(module.weight, 8, 32).floats)
    return result


def test_gpt2_has_transposed_weights() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    small = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    model = GPT2LMHeadModel(small).eval()
    q = quantize(model, fc.QuantConfig("W4A16", group_size=16, embedding_bits=4))
    conv = model.transformer.h[0].attn.c_attn
    layer = q.transformer.h[0].attn.c_attn
    assert isinstance(layer, GroupQuantLinear)
    w = quantized(conv.weight.t().contiguous(), 4, 16)
    np.testing.assert_array_equal(layer.weight.numpy(), w.floats)
    x = torch.randn(3, 32, generator=rng(1))
    np.testing.assert_array_equal(layer(x).numpy(), product(x, w, "dynamic_16bit", conv.bias))
    record = record_of(q)
    assert record is not None
    assert record["transformer.h.0.attn.c_attn"].kind == "Conv1D"
    assert q.lm_head.packed.data_ptr() == q.transformer.wte.packed.data_ptr()
    with torch.no_grad():
        assert q(**tokens(1)[0]).logits.shape == (2, 12, 64)


def test_a_tied_head_without_embedding_bits_stays_float() -> None:
    model = tiny_llama(layers=1, tied=True)
    q = quantize(model, "W4A16", group_size=32)
    assert type(q.lm_head) is nn.Linear
    assert q.lm_head.weight is q.model.embed_tokens.weight
    assert action(q, "lm_head") == (
        "skipped",
        "its weight is tied to model.embed_tokens (Embedding), which stays float",
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_head_shares_the_embedding_s_rows(bits: int) -> None:
    model = tiny_llama(layers=1, tied=True)
    q = quantize(model, fc.QuantConfig("W4A16", group_size=32, embedding_bits=bits))
    embed, head = q.model.embed_tokens, q.lm_head
    assert isinstance(embed, QuantEmbedding)
    assert isinstance(head, GroupQuantLinear)
    assert (embed.weight_bits, head.weight_bits) == (bits, bits)
    assert head.packed.data_ptr() == embed.packed.data_ptr()
    w = quantized(model.lm_head.weight, bits, 32)
    np.testing.assert_array_equal(embed.weight.numpy(), w.floats)
    x = torch.randn(3, 32, generator=rng(1))
    np.testing.assert_array_equal(head(x).numpy(), product(x, w, "dynamic_16bit"))
    assert action(q, "lm_head") == ("quantized", "shares the weight of model.embed_tokens")
    assert "lm_head" in fc.verify(q)
    shapes = {row.name: row.shape for row in fc.explain(q).rows}
    assert (shapes["model.embed_tokens"], shapes["lm_head"]) == ("64×32", "32→64")
    with torch.no_grad():
        assert bool(q(**tokens(1)[0]).logits.isfinite().all())


def test_an_ignored_tied_embedding_keeps_its_head_float() -> None:
    model = tiny_llama(layers=1, tied=True)
    config = fc.QuantConfig("W4A16", group_size=32, embedding_bits=8, ignore=("model.embed_tokens",))
    q = quantize(model, config)
    assert type(q.model.embed_tokens) is nn.Embedding
    assert type(q.lm_head) is nn.Linear
    assert q.lm_head.weight is q.model.embed_tokens.weight


def test_an_ignored_tied_head_keeps_working() -> None:
    model = tiny_llama(layers=1, tied=True)
    config = fc.QuantConfig("W4A16", group_size=32, embedding_bits=8, ignore=("lm_head",))
    q = quantize(model, config)
    assert type(q.lm_head) is nn.Linear
    assert torch.equal(q.lm_head.weight, model.lm_head.weight)
    with torch.no_grad():
        assert bool(q(**tokens(1)[0]).logits.isfinite().all())


def test_shared_modules_and_shared_weights() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(16, 16)
    q = quantize(nn.Sequential(shared, nn.ReLU(), shared), "W4A16")
    assert q[0] is q[2]
    assert action(q, "0") == ("quantized", "for its size, not measured; shared with 2")
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    second.weight = first.weight
    q = quantize(nn.Sequential(first, second), "W4A16")
    assert torch.equal(q[0].weight, q[1].weight)
    for layer, bias in ((q[0], first.bias), (q[1], second.bias)):
        assert torch.equal(layer.bias, bias)
    assert action(q, "0")[1] == (
        "for its size, not measured; shared its parameters with 1; each has its own quantized weights now"
    )


@pytest.mark.parametrize("algorithm", ["rtn", "hqq"])
@pytest.mark.parametrize(
    ("scheme", "symmetric"),
    [("W4A8", True), ("W4A8", False), ("W4A16", True), ("W4A16", False), ("W8A16", True)],
)
def test_pruned_weights_stay_zero(scheme: str, algorithm: str, symmetric: bool) -> None:
    model = mlp(64)
    pruned = fc.prune(model, 0.75, "unstructured")
    options = {"algorithm": algorithm, "symmetric_weights": symmetric}
    q = quantize(pruned, fc.QuantConfig(scheme, **options), timer=scheme_timer(scheme))
    for index in (0, 2):
        assert isinstance(q[index], GroupQuantLinear)
        mask = pruned[index].weight == 0
        assert mask.float().mean() > 0.7
        assert bool((q[index].weight[mask] == 0).all())


def test_what_quantize_refuses() -> None:
    for scheme in ("W4A16", "W8A16", "W4A8"):
        for algorithm in ("gptq", "awq"):
            with pytest.raises(ValueError, match=f"algorithm '{algorithm}' needs calibration_data"):
                quantize(mlp(), scheme, algorithm=algorithm)
    message = "QuantConfig: group_size must be None, -1 (the whole row) or a multiple of 8, got 12"
    with error(ValueError, message):
        quantize(mlp(), "W4A16", group_size=12)
    with error(ValueError, "QuantConfig: algorithm 'x' is unknown; valid are 'rtn', 'hqq', 'gptq', 'awq'"):
        quantize(mlp(), "W4A16", algorithm="x")
    with pytest.raises(ValueError, match="yielded no batches"):
        quantize(mlp(), "W4A16", [], algorithm="gptq")
    for options, kind, says in (
        ({"scale_dtype": "float64"}, ValueError, "scale_dtype 'float64' is unknown"),
        ({"scale_dtype": torch.bfloat16}, TypeError, "scale_dtype must be one of"),
        ({"embedding_bits": 3}, ValueError, "embedding_bits must be None, 4 or 8, got 3"),
        ({"symmetric_weights": 1}, TypeError, "symmetric_weights must be True or False, got 1"),
        ({"group_size": "8"}, TypeError, "group_size must be None, -1 or a multiple of 8, got '8'"),
        ({"algorithm_options": 3}, TypeError, "algorithm_options must map option names to values"),
    ):
        with pytest.raises(kind, match=says):
            fc.QuantConfig("W4A16", **options)  # type: ignore[arg-type]
    with error(ValueError, "QuantConfig: symmetric_weights=False is for four bits; int8 weights have no zero points"):
        fc.QuantConfig("W8A16", symmetric_weights=False)
    for option in ({"group_size": 32}, {"algorithm": "gptq"}, {"embedding_bits": 8}, {"symmetric_weights": False}):
        with pytest.raises(ValueError, match=r"belongs to schemes with groups \(W4A8, W4A16, W8A16\).*leave it out"):
            fc.QuantConfig("W8A8", **option)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"x": 1}, ValueError, "algorithm_options has no 'x'; there are search, "),
        ({"sweeps": -1}, ValueError, "sweeps must be a whole number from 0 on, got -1"),
        ({"checkpoint_dir": 3}, TypeError, "checkpoint_dir"),
    ],
)
def test_wrong_options_change_nothing(options: dict[str, Any], kind: type[Exception], says: str) -> None:
    model = mlp()
    before = Snapshot(model)
    with pytest.raises(kind, match=says):
        quantize(
            model,
            fc.QuantConfig("W4A16", algorithm="gptq", algorithm_options=options),
            [torch.randn(8, 24)],
            inplace=True,
        )
    before.assert_unchanged(model)


def test_weights_that_are_not_finite_stay_float() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    q = quantize(model, "W4A16")
    assert isinstance(q[0], GroupQuantLinear)
    assert type(q[2]) is nn.Linear
    assert action(q, "2") == ("skipped", "its weight holds NaN or infinity")
