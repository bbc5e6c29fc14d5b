"""transformers' own from_pretrained and save_pretrained with our layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.errors import CheckpointError
from tests.formats.checkpoints.gguf_writer import llama
from tests.formats.checkpoints.layers import real_layers
from tests.formats.checkpoints.test_pretrained import CONFIG, FORMATS, TOKENS, float_model, written_model
from tests.formats.checkpoints.writers import save_directory

transformers = pytest.importorskip("transformers")

from fastcompress.integrations.hf_quantizer import FastCompressConfig  # noqa: E402

pytestmark = pytest.mark.skipif(not real_layers(), reason="the native module has no kernels for all of these layers")


def float_directory(path: Path, **changes: Any) -> Path:
    float_model(**changes).save_pretrained(path)
    return path


def load(path: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result


def quantized_linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, fc.nn.GroupQuantLinear)]


@pytest.mark.parametrize("scheme", ["W4A16", "W4A8", "W8A16"])
def test_quantize_on_load_save_and_load(tmp_path: Path, scheme: str) -> None:
    source = float_directory(tmp_path / "float")
    config = FastCompressConfig(scheme, group_size=32)
    model = load(source, quantization_config=config)
    assert len(quantized_linears(model)) == 14
    # What from_pretrained gives is what quantize gives.
    by_hand: Any = fc.quantize(float_model(), scheme, group_size=32, only_if_faster=False)
    assert torch.equal(logits(model), logits(by_hand))
    model.save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert saved["quant_method"] == "fastcompress"
    assert saved["scheme"] == scheme
    again, info = load(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert quantized_linears(again) == quantized_linears(model)
    assert torch.equal(logits(again), logits(model))
    assert again.lm_head.weight is again.model.embed_tokens.weight
    again.save_pretrained(tmp_path / "again")
    first, second = (path.joinpath("model.safetensors").read_bytes() for path in (tmp_path / "out", tmp_path / "again"))
    assert first == second


def test_base_model(tmp_path: Path) -> None:
    """AutoModel of a directory that the whole network was saved to."""
    model = load(float_directory(tmp_path / "float"), quantization_config=FastCompressConfig("W4A16", group_size=32))
    model.save_pretrained(tmp_path / "out")
    base, info = transformers.AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        assert torch.equal(base(TOKENS).last_hidden_state, model.model(TOKENS).last_hidden_state)


def test_load_pretrained_reads_it(tmp_path: Path) -> None:
    model = load(float_directory(tmp_path / "float"), quantization_config=FastCompressConfig("W4A16", group_size=32))
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(fc.load_pretrained(tmp_path / "out")), logits(model))


def test_quantized_embedding_and_tied_head(tmp_path: Path) -> None:
    config = FastCompressConfig("W4A16", group_size=32, embedding_bits=8)
    model = load(float_directory(tmp_path / "float"), quantization_config=config)
    assert isinstance(model.model.embed_tokens, fc.nn.QuantEmbedding)
    model.save_pretrained(tmp_path / "out")
    again, info = load(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert again.lm_head.packed.data_ptr() == again.model.embed_tokens.packed.data_ptr()
    assert torch.equal(logits(again), logits(model))
    again.tie_weights()  # as generate and resize do; nothing of ours may break
    assert torch.equal(logits(fc.load_pretrained(tmp_path / "out")), logits(model))


def test_minima_survive(tmp_path: Path) -> None:
    """A GGUF file's Q4_1 has minima, which only our own directories hold."""
    (tmp_path / "m.gguf").write_bytes(llama(1, kinds=("Q4_1", "Q8_0"), vocabulary=48).to_bytes())
    model: Any = fc.load_pretrained(tmp_path / "m.gguf")
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_save_what_quantize_made(tmp_path: Path) -> None:
    model: Any = fc.quantize(float_model(), "W8A8-dynamic", only_if_faster=False)
    FastCompressConfig.attach(model).save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_act_order_survives(tmp_path: Path) -> None:
    written, _ = written_model(FORMATS["gptq"])
    model: Any = fc.load_pretrained(save_directory(written, tmp_path / "in", config=CONFIG))
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_sparse_layers_are_refused(tmp_path: Path) -> None:
    model: Any = fc.quantize(float_model(), "W4A16", group_size=32)
    down = model.model.layers[0].mlp
    weight = torch.zeros(64, 96)
    weight[:16] = 1.0
    linear = nn.Linear(96, 64, bias=False)
    linear.weight.data = weight
    down.down_proj = fc.nn.SparseLinear.from_float(linear)
    with pytest.raises(ValueError, match=r"SparseLinear has no place.*fastcompress\.save"):
        FastCompressConfig.attach(model)


def test_ignore(tmp_path: Path) -> None:
    config = FastCompressConfig("W4A16", group_size=32, ignore="re:.*down_proj")
    model = load(float_directory(tmp_path / "float"), quantization_config=config)
    assert len(quantized_linears(model)) == 12
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_bfloat16(tmp_path: Path) -> None:
    source = float_directory(tmp_path / "float")
    options = {"dtype": torch.bfloat16}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, quantization_config=FastCompressConfig("W4A16", group_size=32), **options
    )
    model.save_pretrained(tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options)
    assert logits(again).dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(model))


def test_shards(tmp_path: Path) -> None:
    model = load(float_directory(tmp_path / "float"), quantization_config=FastCompressConfig("W8A16"))
    model.save_pretrained(tmp_path / "out", max_shard_size="40KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_damaged_directory(tmp_path: Path) -> None:
    model = load(float_directory(tmp_path / "float"), quantization_config=FastCompressConfig("W4A16", group_size=32))
    model.save_pretrained(tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(tmp_path / "out")


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="needs calibration data"):
        FastCompressConfig("W8A8")
    with pytest.raises(ValueError, match="scheme"):
        FastCompressConfig("W3A3")
    with pytest.raises(TypeError, match="no_such_option"):
        FastCompressConfig("W4A16", no_such_option=1)
    with pytest.raises(ValueError, match="goes with a scheme"):
        FastCompressConfig(None, group_size=32)
    with pytest.raises(ValueError, match="options"):
        FastCompressConfig.from_dict({"scheme": "W4A16", "options": {"x": 3}})
    with pytest.raises(ValueError, match="options"):
        FastCompressConfig.from_dict({"options": 3})
