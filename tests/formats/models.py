"""Small models for checkpoint tests, and tools that tamper with checkpoints."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.formats import strictjson
from fastcompress.nn import QuantConv2d, QuantLinear
from fastcompress.record import RECORD_ATTRIBUTE, CompressionRecord, LayerDecision

MANIFEST = "fastcompress.json"


class Net(nn.Module):
    """A convolution with BatchNorm and ReLU, a linear, an embedding tied to the output, a boolean buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.hidden = nn.Linear(4, 5)
        self.embed = nn.Embedding(6, 5)
        self.out = nn.Linear(5, 6, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, True]))
        self.register_buffer("gain", torch.ones(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.act(self.norm(self.conv(x))).mean((2, 3))
        return self.out(self.hidden(features)) * self.mask * self.gain


def make_input() -> Tensor:
    return torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(5))


def make_float(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def make_quantized(seed: int = 0) -> Net:
    """`Net` as `quantize` would leave it, with a record."""
    net = make_float(seed)
    folded = nn.Conv2d(3, 4, 3, padding=1)
    net.conv = QuantConv2d.from_float(
        folded, input_scale=1 / 255, input_zero_point=3, activation="relu", padding=(1, 1, 0, 2)
    ).eval()
    net.norm = nn.Identity()
    net.act = nn.Identity()
    net.hidden = QuantLinear.from_float(net.hidden, input_mode="dynamic")
    decision = LayerDecision("conv", "Conv2d", "quantized", shapes=((2, 3, 6, 7),), dense_seconds=2e-3)
    setattr(net, RECORD_ATTRIBUTE, CompressionRecord("W8A8", {"fuse": True}, (decision,), "0.1.0", {"cpu": "x"}))
    return net


def read_manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / MANIFEST).read_text())


def write_manifest(directory: Path, body: dict[str, Any]) -> None:
    """Write ``body`` with a checksum that matches, so that the checks behind it are reached."""
    body = {key: value for key, value in body.items() if key != "manifest_sha256"}
    body["manifest_sha256"] = strictjson.digest(body)
    (directory / MANIFEST).write_text(json.dumps(body))


def edit_manifest(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    body = read_manifest(directory)
    edit(body)
    write_manifest(directory, body)


def tensor_path(directory: Path) -> Path:
    return next(directory.glob("model-*.safetensors"))


def replace_tensor_file(directory: Path, data: bytes) -> None:
    """Put ``data`` in the tensor file's place and correct name, size and checksum."""
    tensor_path(directory).unlink()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"model-{sha256[:16]}.safetensors"
    (directory / name).write_bytes(data)
    edit_manifest(directory, lambda b: b.update(tensor_file={"name": name, "bytes": len(data), "sha256": sha256}))


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def edit_tensor(directory: Path, name: str, value: Tensor) -> None:
    """Overwrite one tensor's bytes with those of ``value``."""
    header, tensors = split(tensor_path(directory).read_bytes())
    begin, end = header[name]["data_offsets"]
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert len(data) == end - begin
    replace_tensor_file(directory, joined(header, tensors[:begin] + data + tensors[end:]))


def edit_header(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    header, tensors = split(tensor_path(directory).read_bytes())
    edit(header)
    replace_tensor_file(directory, joined(header, tensors))


class Snapshot:
    """What a model looks like, to prove later that it was not touched."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.values = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def assert_unchanged(self, model: nn.Module) -> None:
        now = Snapshot(model)
        assert now.modules.keys() == self.modules.keys()
        assert all(now.modules[name] is module for name, module in self.modules.items())
        assert all(now.tensors[name] is tensor for name, tensor in self.tensors.items())
        assert all(torch.equal(now.values[name], value) for name, value in self.values.items())
