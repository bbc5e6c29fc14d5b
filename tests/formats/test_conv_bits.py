"""Files with four-bit convolutions: half the bytes, every wrong field or word shape refused, nothing changed then."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastcompress.errors import CheckpointError
from fastcompress.formats import load, save
from fastcompress.nn import QuantConv2d
from tests.formats.models import (
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
from tests.formats.test_fuzz import attempt, mutate_tree, mutate_values


def make_float(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 9, 1)).eval()


def make_quantized() -> nn.Sequential:
    """Four bits, a depthwise convolution with eight, four bits again."""
    model = make_float()
    for i, bits in enumerate((4, 8, 4)):
        layer: Any = model[i]
        model[i] = QuantConv2d.from_float(layer, input_scale=0.02, input_zero_point=128, weight_bits=bits).eval()
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(make_quantized(), tmp_path)
    return tmp_path


def layers(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → the configuration of each convolution in a manifest."""
    return {name: module["config"] for name, module in body["modules"].items() if "kernel_size" in module["config"]}


def test_model_comes_back_bit_for_bit(saved: Path) -> None:
    model, given = make_quantized(), make_float(1)
    before = Snapshot(given)
    loaded: Any = load(saved, given)
    before.assert_unchanged(given)
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(3))
    assert torch.equal(loaded(x), model(x))
    assert [layer.weight_bits for layer in loaded] == [4, 8, 4]
    again: Any = load(saved, make_quantized())
    assert torch.equal(again(x), model(x))


def test_file_holds_words_and_says_so_only_where_there_are_some(saved: Path) -> None:
    stored = load_file(tensor_path(saved))
    assert stored["0.weight_packed"].shape == (12, 4)  # 27 values
    assert stored["0.weight_packed"].dtype == torch.int32
    assert stored["1.weight"].dtype == torch.int8
    assert stored["2.weight_packed"].shape == (9, 2)
    assert "0.weight" not in stored
    found = {name: config.get("weight_bits") for name, config in layers(read_manifest(saved)).items()}
    assert found == {"0": 4, "1": None, "2": 4}


def refused(directory: Path, *parts: str) -> None:
    given = make_float(2)
    before = Snapshot(given)
    with pytest.raises(CheckpointError) as caught:
        load(directory, given)
    for part in (str(directory), *parts):
        assert part in str(caught.value)
    before.assert_unchanged(given)


@pytest.mark.parametrize("bits", [3, 5, 8, 0, -4, "4", 4.0, True, None])
def test_other_bits_are_refused(saved: Path, bits: Any) -> None:
    edit_manifest(saved, lambda body: layers(body)["0"].update(weight_bits=bits))
    refused(saved, "weight_bits")


def test_depthwise_has_eight(saved: Path) -> None:
    edit_manifest(saved, lambda body: layers(body)["1"].update(weight_bits=4))
    refused(saved, "weight_bits", "a depthwise convolution has eight")


def test_bits_and_tensors_must_agree(saved: Path) -> None:
    edit_manifest(saved, lambda body: layers(body)["0"].pop("weight_bits"))
    refused(saved, "0.weight")


def test_words_of_another_shape_are_refused(saved: Path) -> None:
    edit_header(saved, lambda header: header["0.weight_packed"].update(shape=[16, 3]))
    refused(saved, "0.weight_packed")


def test_any_word_is_a_weight(saved: Path) -> None:
    """Every nibble is a value; those behind the last input are not read."""
    edit_tensor(saved, "2.weight_packed", torch.full((9, 2), -1, dtype=torch.int32))
    loaded: Any = load(saved, make_float(1))
    assert torch.equal(loaded[2].canonical().weight, torch.full((9, 12, 1, 1), 7, dtype=torch.int8))


def test_random_changes_behind_valid_checksums(saved: Path) -> None:
    """Each file loads as it says, but for bits behind a row's last input, or is refused."""
    manifest, data = read_manifest(saved), tensor_path(saved).read_bytes()
    rng = random.Random(11)
    given = make_float(3)
    before = Snapshot(given)
    outcomes = {True: 0, False: 0}
    for turn in range(400):
        header, tensors = split(data)
        write_manifest(saved, manifest)
        if turn % 4 == 0:
            tensors = mutate_values(rng, tensors)
        elif turn % 4 == 1:
            mutate_tree(rng, header)
        replace_tensor_file(saved, joined(header, tensors))
        if turn % 4 > 1:
            body = read_manifest(saved)
            mutate_tree(rng, body["modules"] if turn % 4 == 2 else layers(body)[str(rng.randrange(3))])
            write_manifest(saved, body)
        loaded: Any = attempt(saved, given)
        outcomes[loaded is not None] += 1
        if loaded is not None:
            stored = load_file(tensor_path(saved))
            assert torch.equal(
                values(loaded.state_dict()["0.weight_packed"], 27), values(stored["0.weight_packed"], 27)
            )
            assert torch.equal(
                values(loaded.state_dict()["2.weight_packed"], 12), values(stored["2.weight_packed"], 12)
            )
    before.assert_unchanged(given)
    assert outcomes[True] > 50
    assert outcomes[False] > 100


def values(words: torch.Tensor, inputs: int) -> torch.Tensor:
    """The nibbles of each row."""
    bytes_ = words.contiguous().view(torch.uint8)
    return torch.stack([bytes_ & 15, bytes_ >> 4], dim=-1).flatten(1)[:, :inputs]
