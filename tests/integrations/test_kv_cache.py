"""The int8 key-value cache against NumPy and against generation with the float cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.cache_utils import DynamicCache  # noqa: E402

from fastcompress.integrations.kv_cache import Int8Cache, Int8CacheLayer  # noqa: E402


def _states(tokens: int, seed: int, *, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, tokens, 8, generator=generator).to(dtype)


def _model(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        max_position_embeddings=256,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def _expected(states: torch.Tensor) -> np.ndarray:
    wide = states.float().numpy()
    scale = np.maximum(np.abs(wide).max(-1, keepdims=True) / np.float32(127.0), np.float32(2.0**-100))
    return (np.rint(wide / scale).astype(np.float32) * scale).astype(np.float32)


@pytest.mark.parametrize("pieces", [[5], [1] * 5, [2, 3], [70, 1, 130]])
def test_reads_what_numpy_rounds(pieces: list[int]) -> None:
    layer, total = Int8CacheLayer(), sum(pieces)
    keys, values = _states(total, 1), _states(total, 2)
    at = 0
    for piece in pieces:
        part = slice(at, at + piece)
        got = layer.update(keys[:, :, part], values[:, :, part])
        at += piece
        assert layer.get_seq_length() == at
        for found, states in zip(got, (keys, values), strict=True):
            np.testing.assert_array_equal(found.numpy(), _expected(states)[:, :, :at])
    assert layer.nbytes == 2 * 2 * 3 * total * (8 + 4)


def test_bfloat16_comes_back_as_such() -> None:
    states = _states(4, 3, dtype=torch.bfloat16)
    keys, _ = Int8CacheLayer().update(states, states)
    assert keys.dtype == torch.bfloat16
    assert torch.equal(keys, torch.from_numpy(_expected(states)).to(torch.bfloat16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_tokens_stay_broken_and_alone(value: float) -> None:
    states = _states(4, 4)
    states[1, 2, 3, 5] = value
    keys, _ = Int8CacheLayer().update(states, states)
    assert bool(keys[1, 2, 3].isnan().all())
    keys[1, 2, 3] = 0.0
    assert bool(keys.isfinite().all())


def test_zero_token() -> None:
    keys, _ = Int8CacheLayer().update(torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8))
    assert torch.equal(keys, torch.zeros(1, 1, 1, 8))


def test_crop_select_repeat_reset() -> None:
    layer, states = Int8CacheLayer(), _states(6, 5)
    layer.update(states, states)
    layer.crop(-2)
    assert layer.get_seq_length() == 4
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 3, 2]))
    layer.reorder_cache(torch.tensor([2, 0, 1]))
    more = _states(1, 6, batch=3)
    keys, _ = layer.update(more, more)
    rows = [1, 0, 1]  # of the first batch: repeated 0 0 1 1, selected 0 1 1, reordered 1 0 1
    np.testing.assert_array_equal(keys[:, :, :4].numpy(), _expected(states)[rows][:, :, :4])
    np.testing.assert_array_equal(keys[:, :, 4:].numpy(), _expected(more))
    layer.reset()
    assert layer.get_seq_length() == 0
    with pytest.raises(ValueError, match="must be negative"):
        layer.crop(2)


def test_logits_stay_close_and_pieces_do_not_matter() -> None:
    model, tokens = _model(), torch.arange(40).reshape(1, 40) % 97
    with torch.no_grad():
        plain = model(tokens, past_key_values=DynamicCache(config=model.config)).logits
        whole = model(tokens, past_key_values=Int8Cache(model.config)).logits
        cache, rows = Int8Cache(model.config), []
        for start, end in ((0, 17), (17, 18), (18, 40)):
            rows.append(model(tokens[:, start:end], past_key_values=cache).logits)
    # Half a step of 1/127 on every key and value: far from the float cache's rounding, near in what the model says.
    relative = (whole - plain).norm() / plain.norm()
    assert 1e-6 < float(relative) < 0.01
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generates_as_the_float_cache_does(options: dict[str, Any]) -> None:
    model, tokens = _model(), torch.tensor([[5, 9, 2, 40, 11], [3, 3, 8, 1, 70]])
    arguments = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, **options}
    plain = model.generate(tokens, past_key_values=DynamicCache(config=model.config), **arguments)
    cache = Int8Cache(model.config)
    found = model.generate(tokens, past_key_values=cache, **arguments)
    assert found.shape == plain.shape
    assert float((found == plain).float().mean()) > 0.9
    assert cache.nbytes * 2 < sum(2 * 4 * 2 * 2 * (plain.shape[1]) * 16 for _ in range(3)) * options.get("num_beams", 1)


def test_sliding_layers_keep_their_dtype() -> None:
    config = _model().config
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    config.sliding_window = 8
    kinds = [type(layer).__name__ for layer in Int8Cache(config).layers]
    assert kinds == ["Int8CacheLayer", "DynamicSlidingWindowLayer", "Int8CacheLayer"]
