"""Files with four-bit convolutions: half the bytes, every wrong field or word shape refused, nothing changed then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastcompress.errors import CheckpointError
from fastcompress.formats import load, save
from fastcompress.nn import QuantConv2d
from tests.formats.models import Snapshot, edit_header, edit_manifest, edit_tensor, read_manifest, tensor_path


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
