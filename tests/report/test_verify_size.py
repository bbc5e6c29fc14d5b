"""Checksums of packed layers, sizes in bytes, and the description of the machine."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fastcompress
from fastcompress.errors import PackedBlobError
from fastcompress.report import environment, size_bytes, verify
from tests.formats.models import make_float, make_quantized


def test_intact_model_lists_its_packed_layers() -> None:
    assert verify(make_quantized()) == ["conv", "hidden"]
    assert verify(make_float()) == []


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_is_found_and_named(where: str) -> None:
    model = make_quantized()
    blob = model.hidden.packed
    # The blob's end may be padding; the last byte of the header's checksum and the payload's first byte are not.
    index = {"first": 16, "middle": 256, "last": 257}[where]
    blob[index] ^= 1 << 3
    with pytest.raises(
        PackedBlobError, match=r"verify: 1 of 2 packed layers are corrupt; load the model again"
    ) as caught:
        verify(model)
    assert "layer 'hidden': " in str(caught.value)
    assert "'conv'" not in str(caught.value)


def test_every_weight_byte_is_guarded() -> None:
    model = make_quantized()
    blob = model.hidden.packed
    for index in range(256, 256 + 5 * 4):
        blob[index] ^= 1
        with pytest.raises(PackedBlobError, match="layer 'hidden'"):
            verify(model)
        blob[index] ^= 1
    assert verify(model) == ["conv", "hidden"]


def test_all_corrupt_layers_are_named() -> None:
    model = make_quantized()
    for layer in (model.conv, model.hidden):
        layer.packed[260] ^= 1
    with pytest.raises(PackedBlobError, match=r"verify: 2 of 2 .*layer 'conv': .*layer 'hidden': "):
        verify(model)


def test_verify_needs_a_module() -> None:
    with pytest.raises(TypeError, match=r"verify: model must be a torch\.nn\.Module, got list"):
        verify([])  # type: ignore[arg-type]


def test_size_counts_each_storage_once() -> None:
    linear = nn.Linear(10, 10)
    assert size_bytes(linear) == 440
    tied = nn.Sequential(linear, nn.Linear(10, 10, bias=False), linear)
    tied[1].weight = linear.weight
    assert size_bytes(tied) == 440
    tied.register_buffer("view", linear.weight.detach()[2:5])
    assert size_bytes(tied) == 440
    tied.register_buffer("small", torch.zeros(3, dtype=torch.float16), persistent=False)
    assert size_bytes(tied) == 446
    assert size_bytes(nn.ReLU()) == 0


def test_size_counts_packed_blobs() -> None:
    model = make_quantized()
    packed = model.conv.packed.untyped_storage().nbytes() + model.hidden.packed.untyped_storage().nbytes()
    rest = model.embed.weight.nbytes + model.mask.nbytes + model.gain.nbytes
    assert size_bytes(model) == packed + rest


def test_environment_says_what_results_need() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["fastcompress"] == fastcompress.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__
    assert found["cpu"]
    assert set(found) == {
        "cpu", "cpus_available", "threads", "isa", "system", "python", "torch", "numpy", "fastcompress", "commit",
    }  # fmt: skip
