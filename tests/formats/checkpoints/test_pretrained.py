"""`load_pretrained`: a transformers network with the file's weights, nothing dense, nothing left on meta."""

from __future__ import annotations

import json
import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastcompress as fc
from fastcompress.errors import CheckpointError
from fastcompress.formats.checkpoints.placing import Placed
from fastcompress.integrations import pretrained
from tests.formats.checkpoints import writers
from tests.formats.checkpoints.gguf_writer import llama
from tests.formats.checkpoints.layers import use_layers
from tests.formats.checkpoints.test_gguf import llama3_factors, smollm2
from tests.formats.checkpoints.writers import Written, save_directory
from tests.formats.test_fuzz import ODD

transformers = pytest.importorskip("transformers")

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 48, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": True, "dtype": "float32",
}  # fmt: skip
#: Damaged configurations; transformers itself takes 20 ms for each.
CONFIGURATIONS = 200
TOKENS = torch.tensor([[1, 5, 9, 40, 3, 22]])
FORMATS: dict[str, Any] = {
    "gptq": lambda shapes: writers.gptq(1, shapes=shapes, act_order=True, bias=False),
    "awq": lambda shapes: writers.awq(2, shapes=shapes, bias=False),
    "pack-quantized": lambda shapes: writers.compressed(3, shapes=shapes, symmetric=False, bias=False),
    "int-quantized": lambda shapes: writers.compressed(
        4, shapes=shapes, bits=8, layout="int-quantized", group_size=None, bias=False
    ),
}


@pytest.fixture(autouse=True)
def real(monkeypatch: pytest.MonkeyPatch) -> bool:
    return use_layers(monkeypatch)


def float_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = {k: v for k, v in {**CONFIG, **changes}.items() if k not in ("model_type", "architectures")}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()


def written_model(make: Any, **changes: Any) -> tuple[Written, Any]:
    """A checkpoint whose linears inside the blocks are quantized, and the float model with the same weights."""
    model = float_model(**changes)
    linears = {n: m for n, m in model.model.named_modules() if isinstance(m, nn.Linear)}
    written = make({"model." + n: (m.out_features, m.in_features) for n, m in linears.items()})
    for name, module in linears.items():
        module.weight.data = torch.from_numpy(np.ascontiguousarray(written.weights["model." + name])) * 0.05
        for key in ("scales", "weight_scale"):
            full = f"model.{name}.{key}"
            if full in written.tensors:  # scaled down, so that the network's outputs stay in range
                scaled = (written.tensors[full] * np.float32(0.05)).astype(written.tensors[full].dtype)
                written.tensors[full] = scaled
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" and name.removesuffix(".weight") not in written.weights:
            written.tensors[name] = tensor.numpy()
    return written, model


def follow(model: Any, loaded: Any, written: Written) -> None:
    """Give the float model the loaded layers' weights: those are compared with the file elsewhere."""
    for name in written.weights:
        model.get_submodule(name).weight.data = loaded.get_submodule(name).dequantize().clone()


@pytest.mark.parametrize("name", FORMATS)
def test_directory(tmp_path: Path, name: str, real: bool) -> None:
    written, model = written_model(FORMATS[name])
    loaded: Any = fc.load_pretrained(save_directory(written, tmp_path, config=CONFIG))
    assert type(loaded) is transformers.LlamaForCausalLM
    assert not loaded.training
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert not any(isinstance(m, nn.Linear) for m in loaded.model.modules())
    checkpoint = fc.formats.checkpoints.read_checkpoint(tmp_path)
    for layer in written.weights:
        assert torch.equal(loaded.get_submodule(layer).dequantize(), checkpoint.layers[layer].dequantize())
    follow(model, loaded, written)
    with torch.no_grad():
        found, expected = loaded(TOKENS).logits, model(TOKENS).logits
    assert found.shape == expected.shape
    if not real:  # the same operations on the same weights
        assert torch.equal(found, expected)
    generated = loaded.generate(TOKENS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 9)


def test_quantized_head_beside_a_float_embedding(tmp_path: Path) -> None:
    def make(shapes: dict[str, tuple[int, int]]) -> Written:
        return writers.awq(5, shapes={**shapes, "lm_head": (48, 64)}, bias=False)

    written, _ = written_model(make, tie_word_embeddings=False)
    loaded: Any = fc.load_pretrained(save_directory(written, tmp_path, config={**CONFIG, "tie_word_embeddings": False}))
    np.testing.assert_array_equal(loaded.lm_head.dequantize().numpy(), written.weights["lm_head"])
    # Said to be tied, but both are there: the file is believed.
    loaded = fc.load_pretrained(save_directory(written, tmp_path / "tied", config=CONFIG))
    assert not isinstance(loaded.lm_head, nn.Linear)
    assert isinstance(loaded.model.embed_tokens, nn.Embedding)


def test_what_earlier_versions_saved_as_well(tmp_path: Path) -> None:
    """Rotary frequencies in every layer, and biases of zeros where the model has none."""
    written, _ = written_model(FORMATS["gptq"])
    plain = fc.load_pretrained(save_directory(written, tmp_path / "plain", config=CONFIG))
    written.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    written.tensors["model.layers.0.mlp.up_proj.bias"] = np.zeros(96, np.float16)
    loaded: Any = fc.load_pretrained(save_directory(written, tmp_path / "more", config=CONFIG))
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, plain(TOKENS).logits)
    written.tensors["model.layers.0.mlp.up_proj.bias"][5] = 1.0
    with pytest.raises(CheckpointError, match="up_proj': the model has no bias"):
        fc.load_pretrained(save_directory(written, tmp_path / "bias", config=CONFIG))


def test_float_directory(tmp_path: Path) -> None:
    model = float_model()
    model.save_pretrained(tmp_path)
    loaded: Any = fc.load_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_gguf(tmp_path: Path, tied: bool, real: bool) -> None:
    """Against transformers' own reader, which dequantizes everything."""
    pytest.importorskip("gguf", reason="transformers reads GGUF with it")
    parts = llama(6, kinds=("Q8_0", "Q4_0", "Q4_1"), tied=tied, vocabulary=48)
    (tmp_path / "model.gguf").write_bytes(parts.to_bytes())
    loaded: Any = fc.load_pretrained(tmp_path / "model.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert loaded.config.rope_parameters == theirs.config.rope_parameters
    quantized = 0
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert torch.equal(loaded.get_submodule(name).dequantize(), module.weight.data), name
            quantized += 1
    assert quantized == 16
    if tied:
        assert loaded.lm_head.packed.data_ptr() == loaded.model.embed_tokens.packed.data_ptr()
    if not real:
        with torch.no_grad():
            assert torch.equal(loaded(TOKENS).logits, theirs(TOKENS).logits)


def test_gguf_with_a_float_embedding(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(llama(7, kinds=("F16", "Q4_0"), bias=True).to_bytes())
    loaded: Any = fc.load_pretrained(tmp_path / "m.gguf", dtype=torch.bfloat16)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in loaded.parameters())


def test_rotary_factors(tmp_path: Path) -> None:
    parts = llama(12, heads=1, kv_heads=1)
    parts.metadata["llama.rope.freq_base"] = struct.pack("<If", 6, 500_000.0)
    factors = llama3_factors(64, 500_000.0, 32.0)
    parts.tensors["rope_freqs.weight"] = (0, (32,), factors.tobytes())
    (tmp_path / "m.gguf").write_bytes(parts.to_bytes())
    loaded: Any = fc.load_pretrained(tmp_path / "m.gguf")
    found = loaded.model.rotary_emb.inv_freq.double().numpy()
    expected = 500_000.0 ** -(np.arange(32) / 32) / factors.astype(np.float64)
    # transformers' float32: a power (its exponent rounded: 13 * 2^-24 of the result, at most), then four operations.
    np.testing.assert_array_less(np.abs(found - expected), 20 * 2.0**-24 * expected)


def test_input_mode(tmp_path: Path) -> None:
    written, _ = written_model(FORMATS["awq"])
    save_directory(written, tmp_path, config=CONFIG)
    for mode, expected in (
        (None, "dynamic_16bit"),
        ("dynamic_16bit", "dynamic_16bit"),
        ("dynamic_symmetric", "dynamic_symmetric"),
    ):
        loaded: Any = fc.load_pretrained(tmp_path, input_mode=mode)
        assert {loaded.get_submodule(name).canonical().input_mode for name in written.weights} == {expected}


class LargestFloat(TorchDispatchMode):
    """The largest float tensor that any operation returned, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point() and not result.is_meta:
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_no_dense_copy_of_a_quantized_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool) -> None:
    parts = llama(8, hidden=128, feed_forward=256, vocabulary=64, kinds=("Q4_0", "Q4_1", "Q8_0"))
    (tmp_path / "m.gguf").write_bytes(parts.to_bytes())
    if not real:  # the stand-ins are dense themselves
        monkeypatch.setattr(pretrained, "place_layers", _nothing_placed)
    with LargestFloat() as largest:
        fc.load_pretrained(tmp_path / "m.gguf")
    # The scales of a [256, 128] matrix are 1,024 values, rotary tables and norms are smaller; the matrix has 32,768.
    assert largest.elements <= 2048


def _nothing_placed(model: Any, layers: Any, tied: Any, dtype: Any) -> Any:
    """`place_layers` with modules that hold nothing."""
    modules = {name: nn.Identity() for name in (*layers, *(target.removesuffix(".weight") for target in tied))}
    for name, module in modules.items():
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, module)
    return Placed(modules, frozenset(tied))


def change_config(key: str, value: Any) -> Any:
    def change(directory: Path, written: Written) -> None:
        body = json.loads((directory / "config.json").read_text())
        body[key] = value
        (directory / "config.json").write_text(json.dumps(body))

    return change


def change_tensors(edit: Any) -> Any:
    def change(directory: Path, written: Written) -> None:
        edit(written.tensors)
        save_directory(written, directory, config=CONFIG)

    return change


def rename(old: str, new: str) -> Any:
    return change_tensors(
        lambda tensors: [tensors.update({k.replace(old, new): tensors.pop(k)}) for k in list(tensors) if old in k]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_config("model_type", "no-such-model"), "model_type"),
        (change_config("model_type", 3), "model_type"),
        (change_config("architectures", ["Trainer"]), "architectures.*no model"),
        (change_config("architectures", []), "architectures"),
        (change_config("hidden_size", 32), "layer 'model.*the weight is"),
        (change_config("hidden_size", "x"), "cannot build"),
        (change_config("num_attention_heads", 0), "cannot build"),
        (change_config("num_hidden_layers", 10**9), "num_hidden_layers: is 1000000000"),
        (change_config("num_hidden_layers", 3), "tensor 'model.layers.2.*lacks it"),
        (change_config("num_hidden_layers", 1), "layer 'model.layers.1.*nothing there"),
        (change_config("vocab_size", 47), "tensor 'model.embed_tokens.weight'.*47, 64"),
        (change_config("dtype", "int8"), "dtype must be one of"),
        (change_config("attention_bias", True), "bias there"),
        (change_tensors(lambda tensors: tensors.pop("model.norm.weight")), "tensor 'model.norm.weight'.*lacks it"),
        (change_tensors(lambda tensors: tensors.update(x=np.ones(1))), "tensor 'x'.*no place"),
        (
            change_tensors(lambda tensors: tensors.update({"model.norm.weight": np.ones(64, np.int32)})),
            "tensor 'model.norm.weight'.*int32",
        ),
        (rename("self_attn.q_proj", "self_attn"), "layer 'model.layers.0.self_attn'.*LlamaAttention"),
        (rename("layers.0.mlp.up_proj", "layers.7.mlp.up_proj"), "layer 'model.layers.7.mlp.up_proj'.*nothing"),
    ],
)
def test_refuses(tmp_path: Path, change: Any, message: str) -> None:
    written, _ = written_model(FORMATS["awq"])
    save_directory(written, tmp_path, config=CONFIG)
    change(tmp_path, written)
    with pytest.raises(CheckpointError, match=message) as caught:
        fc.load_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_configuration_mutations(tmp_path: Path) -> None:
    """Whatever config.json says: a model or one `CheckpointError`, soon, and without much memory."""
    written, _ = written_model(FORMATS["awq"])
    path = save_directory(written, tmp_path, config=CONFIG) / "config.json"
    config, rng = path.read_text(), random.Random(9)
    outcomes = {True: 0, False: 0}
    for _ in range(CONFIGURATIONS):
        body = json.loads(config)
        for _ in range(rng.choice((1, 1, 2))):
            if body:
                key = rng.choice(list(body))
                body[key] = rng.choice((*ODD, 10**6, 2**31 - 1, 65_536, -(2**31), "float32", "silu", key))
        path.write_text(json.dumps(body))
        begin, message = time.process_time(), str(tmp_path)
        try:
            with LargestFloat() as largest:
                loaded: Any = fc.load_pretrained(tmp_path)
            outcomes[True] += 1
            assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
        except CheckpointError as error:
            outcomes[False] += 1
            message = str(error)
        assert str(tmp_path) in message
        assert time.process_time() - begin < 10.0, body
        assert largest.elements <= 1 << 20, body
    assert outcomes[True] > 0.05 * CONFIGURATIONS
    assert outcomes[False] > 0.2 * CONFIGURATIONS


def test_code_in_the_configuration_is_not_looked_at(tmp_path: Path) -> None:
    written, _ = written_model(FORMATS["awq"])
    hostile = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_attn_implementation": "someone/kernel",
               "attn_implementation": "someone/kernel"}  # fmt: skip
    loaded: Any = fc.load_pretrained(save_directory(written, tmp_path, config={**CONFIG, **hostile}))
    assert "/" not in loaded.config._attn_implementation


def test_generation_config(tmp_path: Path) -> None:
    written, _ = written_model(FORMATS["awq"])
    save_directory(written, tmp_path, config=CONFIG)
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 7}')
    loaded: Any = fc.load_pretrained(tmp_path)
    assert loaded.generation_config.max_new_tokens == 7
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        fc.load_pretrained(tmp_path)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="input_mode"):
        fc.load_pretrained(tmp_path, input_mode="static")
    with pytest.raises(ValueError, match="dtype"):
        fc.load_pretrained(tmp_path, dtype=torch.int8)
    with pytest.raises(CheckpointError, match="no such"):
        fc.load_pretrained(tmp_path / "nothing")


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_speaks() -> None:
    """The real file answers a question that every model of its size can."""
    path = smollm2()
    loaded: Any = fc.load_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(loaded.generate(**tokens, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in text
