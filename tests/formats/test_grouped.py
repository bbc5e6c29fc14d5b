"""Checkpoints of models with weights in groups: what comes back, what is refused, damaged files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.formats import load, save
from fastcompress.nn import GroupQuantLinear, QuantEmbedding
from fastcompress.ops import W4Canonical
from fastcompress.ops.canonical_w4 import pack_nibbles
from fastcompress.record import record_of
from tests.formats.models import (
    MANIFEST,
    Snapshot,
    edit_header,
    edit_manifest,
    edit_tensor,
    joined,
    read_manifest,
    replace_tensor_file,
    split,
    tensor_path,
    write_manifest,
)
from tests.formats.test_fuzz import assert_holds_the_file, attempt, largest, mutate_bytes, mutate_tree, mutate_values
from tests.formats.test_rejects import refused as load_is_refused
from tests.ops.cases import rng
from tests.quantization.groupwise.problems import tiny_llama, tokens

__all__ = ["largest"]  # a fixture

MUTATIONS = 300


class Net(nn.Module):
    """An embedding tied to the output, a linear for every form of weights, a float one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 24, padding_idx=2)
        self.layers = nn.ModuleList(nn.Linear(24, 24, bias=bool(index % 2)) for index in range(6))
        self.dense = nn.Linear(24, 24)
        self.head = nn.Linear(24, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, at: Tensor) -> Tensor:
        x = self.embed(at)
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        out: Tensor = self.head(self.dense(x))
        return out


def make_float(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Net().eval()


def make_quantized(seed: int = 0, bits: int = 4) -> Any:
    net = make_float(seed)
    forms: list[dict[str, Any]] = [
        {"group_size": 8},
        {"group_size": 16, "symmetric": False, "scale_dtype": torch.float16},
        {"input_mode": "dynamic_symmetric", "activation": "silu", "scale_dtype": torch.float32},
        {"weight_bits": 8, "group_size": 8},
    ]
    for index, form in enumerate(forms):
        net.layers[index] = GroupQuantLinear.from_float(net.layers[index], **form)
    g = rng(seed)
    values = torch.randint(0, 16, (24, 24), generator=g, dtype=torch.uint8)
    scale, low = torch.rand(24, 3, generator=g) / 16 + 0.01, torch.randn(24, 3, generator=g) / 16
    minimum = W4Canonical(pack_nibbles(values), scale, None, 24, 8, "dynamic_16bit", None, low)
    net.layers[4] = GroupQuantLinear.from_canonical(minimum).eval()
    ordered = GroupQuantLinear.from_float(net.layers[5], group_size=8)
    net.layers[5] = ordered.reorder(torch.randperm(24, generator=g), None)
    net.embed = QuantEmbedding.from_float(net.embed, weight_bits=bits, group_size=8)
    net.head = net.embed.head()
    return net


def at() -> Tensor:
    return torch.randint(0, 12, (3, 5), generator=rng(9))


@pytest.mark.parametrize("bits", [4, 8])
def test_every_form_comes_back_bit_for_bit(tmp_path: Path, bits: int) -> None:
    saved = make_quantized(bits=bits)
    save(saved, tmp_path)
    given = make_float(1)
    before = Snapshot(given)
    loaded: Any = load(tmp_path, given)
    before.assert_unchanged(given)
    assert repr(loaded) == repr(saved)
    assert torch.equal(loaded(at()), saved(at()))
    left, right = saved.state_dict(), loaded.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name
    assert loaded.embed.padding_idx == 2
    assert not loaded.embed.training
    assert not loaded.head.training
    assert fc.verify(loaded) == fc.verify(saved)


def test_other_models_that_a_checkpoint_goes_into(tmp_path: Path) -> None:
    saved = make_quantized()
    save(saved, tmp_path)
    with torch.device("meta"):
        empty = make_float()
    for given in (make_quantized(3), make_quantized(3, bits=8), empty):
        assert torch.equal(load(tmp_path, given)(at()), saved(at()))
    given = make_float(4)
    assert load(tmp_path, given, inplace=True) is given
    assert torch.equal(given(at()), saved(at()))


def test_a_float_checkpoint_turns_linears_back(tmp_path: Path) -> None:
    saved = make_float()
    save(saved, tmp_path)
    given = make_quantized(2)
    given.embed, given.head = make_float().embed, make_float().head
    loaded: Any = load(tmp_path, given)
    assert all(type(layer) is nn.Linear for layer in loaded.layers)
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded(at()), saved(at()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logical_dtypes_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = make_quantized().to(dtype)
    save(saved, tmp_path)
    loaded: Any = load(tmp_path, make_float(1))
    assert loaded.embed(at()).dtype == dtype
    assert loaded.layers[0].weight.dtype == dtype
    assert torch.equal(loaded(at()), saved(at()))


def test_a_tied_head_is_stored_once_and_shares_memory(tmp_path: Path) -> None:
    save(make_quantized(), tmp_path)
    stored = load_file(tensor_path(tmp_path))
    assert "embed.weight_packed" in stored
    assert not any(name.startswith("head.") for name in stored)
    loaded: Any = load(tmp_path, make_float(1))
    assert loaded.head.packed.data_ptr() == loaded.embed.packed.data_ptr()
    untied = make_float(1)
    untied.head.weight = nn.Parameter(torch.zeros(12, 24))
    loaded = load(tmp_path, untied)
    assert loaded.head.packed.data_ptr() == loaded.embed.packed.data_ptr()


def test_layers_that_only_look_alike_are_not_tied(tmp_path: Path) -> None:
    """Equal values, memory of their own: two layers before, two layers after."""
    saved = make_quantized()
    saved.head = GroupQuantLinear.from_canonical(saved.embed.canonical()).eval()
    save(saved, tmp_path)
    loaded: Any = load(tmp_path, make_float(1))
    assert torch.equal(loaded(at()), saved(at()))
    assert loaded.head.packed.data_ptr() != loaded.embed.packed.data_ptr()


def test_files_are_as_small_as_promised(tmp_path: Path) -> None:
    """4.3 bits a weight at group 128 with bf16 scales; loaded, at most 1.1 times the file."""
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.ReLU(), nn.Linear(1024, 512, bias=False))  # noqa: E731
    saved = fc.quantize(make(), "W4A16", progress=False)
    save(saved, tmp_path)
    size = tensor_path(tmp_path).stat().st_size
    assert size * 8 <= 4.3 * 1024 * (1024 + 512)
    loaded: Any = load(tmp_path, make())
    assert sum(t.numel() * t.element_size() for t in (*loaded.buffers(), *loaded.parameters())) <= 1.1 * size


@pytest.mark.parametrize("scheme", ["W4A8", "W4A16", "W8A16"])
def test_quantized_llama_comes_back(tmp_path: Path, scheme: str) -> None:
    timer = lambda calls: {name: 2.0 if name == "dense" else 1.0 for name in calls}  # noqa: E731
    options = {"awq_steps": 4}  # for time
    config = fc.QuantConfig(scheme, group_size=8, embedding_bits=8, algorithm="awq", algorithm_options=options)
    model = tiny_llama(layers=2, tied=True)
    saved: Any = fc.quantize(model, config, tokens(), timer=timer, progress=False)
    fc.save(saved, tmp_path)
    fresh = tiny_llama(layers=2, tied=True)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
        loaded: Any = fc.load(tmp_path, model=fresh)
        batch = tokens(1)[0]
        assert torch.equal(loaded(**batch).logits, saved(**batch).logits)
    assert record_of(loaded) == record_of(saved)
    assert loaded.lm_head.packed.data_ptr() == loaded.model.embed_tokens.packed.data_ptr()
    assert str(fc.explain(loaded)) == str(fc.explain(saved))


def refused(directory: Path, *parts: str) -> None:
    load_is_refused(directory, *parts, model=make_float(3))


FIRST, SECOND, EIGHT, EMBED = "layers.0", "layers.1", "layers.3", "embed"
CONFIGS: list[tuple[str, str, Any, tuple[str, ...]]] = [
    (FIRST, "weight_bits", 5, ("weight_bits",)),
    (FIRST, "weight_bits", 8, ()),
    (FIRST, "weight_bits", True, ("weight_bits",)),
    (FIRST, "group_size", 0, ("group_size",)),
    (FIRST, "group_size", 12, ("group_size", "multiple of 8", "12")),
    (FIRST, "group_size", 32, ("group_size", "multiple of 8", "32")),
    (FIRST, "group_size", 16, ("weight_scale",)),
    (FIRST, "group_size", "8", ("group_size",)),
    (FIRST, "scale_dtype", "float64", ("scale_dtype", "float64")),
    (FIRST, "scale_dtype", "float16", ("weight_scale",)),
    (FIRST, "zero", "nine", ("zero", "nine")),
    (FIRST, "zero", "zero_point", ("weight_zero_point",)),
    (SECOND, "zero", "eight", ("weight_zero_point",)),
    (EIGHT, "zero", "zero_point", ("zero",)),
    (FIRST, "input_mode", "static", ("input_mode",)),
    (EIGHT, "input_mode", "dynamic_symmetric", ("input_mode",)),
    (FIRST, "in_features", 32, ()),
    (FIRST, "out_features", 2**31 - 1, ()),
    (EMBED, "num_embeddings", 13, ("312 elements in the file, 288 in the model",)),
    (EMBED, "embedding_dim", 16, ("192 elements in the file, 288 in the model",)),
    (EMBED, "padding_idx", 12, ("padding_idx",)),
    (EMBED, "activation", "relu", ("embedding",)),
    (EMBED, "bias", True, ("embedding",)),
]


@pytest.mark.parametrize(("module", "key", "value", "parts"), CONFIGS)
def test_wrong_configurations(tmp_path: Path, module: str, key: str, value: Any, parts: tuple[str, ...]) -> None:
    save(make_quantized(), tmp_path)
    edit_manifest(tmp_path, lambda body: body["modules"][module]["config"].update({key: value}))
    refused(tmp_path, module, *parts)


TENSORS: list[tuple[str, Tensor, tuple[str, ...]]] = [
    (f"{FIRST}.weight_scale", torch.full((24, 3), float("nan")).bfloat16(), ("weight_scale",)),
    (f"{SECOND}.weight_scale", torch.full((24, 2), float("inf")).half(), ("weight_scale",)),
    (f"{SECOND}.weight_zero_point", torch.full((24, 2), 16, dtype=torch.uint8), ("weight_zero_point", "15")),
    (f"{SECOND}.bias", torch.full((24,), float("nan")), ("bias",)),
    ("layers.4.weight_min", torch.full((24, 3), -float("inf")), ("weight_min",)),
    ("layers.5.input_order", torch.zeros(24, dtype=torch.int64), ("input_order",)),
    ("layers.5.input_order", torch.arange(24) + 1, ("input_order",)),
    (f"{EMBED}.weight_scale", torch.full((12, 3), float("nan")).bfloat16(), ("weight_scale",)),
]


@pytest.mark.parametrize(("name", "value", "parts"), TENSORS)
def test_wrong_values(tmp_path: Path, name: str, value: Tensor, parts: tuple[str, ...]) -> None:
    save(make_quantized(), tmp_path)
    edit_tensor(tmp_path, name, value)
    refused(tmp_path, name.rsplit(".", 1)[0], *parts)


def test_wrong_dtypes_and_missing_tensors(tmp_path: Path) -> None:
    name = f"{FIRST}.weight_packed"
    save(make_quantized(), tmp_path)
    edit_header(tmp_path, lambda header: header[name].update(dtype="F32"))
    refused(tmp_path, name)
    save(make_quantized(), tmp_path)
    edit_manifest(tmp_path, lambda body: body["modules"].pop(FIRST))
    refused(tmp_path, FIRST)
    save(make_quantized(), tmp_path)
    edit_manifest(tmp_path, lambda body: body["modules"][EMBED].update({"class": "GroupQuantLinear"}))
    refused(tmp_path, EMBED)


def test_truncated_files(tmp_path: Path, largest: list[int]) -> None:
    save(make_quantized(), tmp_path)
    path = tensor_path(tmp_path)
    data = path.read_bytes()
    header, tensors = split(data)
    ends = {value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"}
    for end in sorted({0, *ends} - {len(tensors)}):
        path.write_bytes(data[: len(data) - len(tensors) + end])
        refused(tmp_path)


def test_random_damage(tmp_path: Path, largest: list[int]) -> None:
    saved = make_quantized()
    save(saved, tmp_path)
    paths = (tmp_path / MANIFEST, tensor_path(tmp_path))
    originals = [path.read_bytes() for path in paths]
    generator, given = random.Random(4), make_float(3)
    before, expected, refusals = Snapshot(given), saved(at()), 0
    for _ in range(MUTATIONS):
        which = generator.randrange(2)
        paths[which].write_bytes(mutate_bytes(generator, originals[which]))
        loaded = attempt(tmp_path, given)
        refusals += loaded is None
        assert loaded is None or torch.equal(loaded(at()), expected)
        paths[which].write_bytes(originals[which])
    before.assert_unchanged(given)
    assert refusals > 0.9 * MUTATIONS


def test_random_changes_behind_valid_checksums(tmp_path: Path, largest: list[int]) -> None:
    save(make_quantized(), tmp_path)
    body, data = read_manifest(tmp_path), tensor_path(tmp_path).read_bytes()
    generator, given = random.Random(8), make_float(3)
    before, outcomes = Snapshot(given), {True: 0, False: 0}
    for _ in range(MUTATIONS):
        header, tensors = split(data)
        write_manifest(tmp_path, body)
        kind = generator.randrange(3)
        if kind == 0:
            tensors = mutate_values(generator, tensors)
        elif kind == 1:
            mutate_tree(generator, header)
        replace_tensor_file(tmp_path, joined(header, tensors))
        if kind == 2:
            changed = read_manifest(tmp_path)
            for _ in range(generator.choice((1, 1, 2, 4))):
                mutate_tree(generator, changed)
            write_manifest(tmp_path, changed)
        loaded = attempt(tmp_path, given)
        outcomes[loaded is not None] += 1
        if loaded is not None:
            loaded(at())
            assert_holds_the_file(loaded, tmp_path)
    before.assert_unchanged(given)
    assert outcomes[True] > 20
    assert outcomes[False] > 100
