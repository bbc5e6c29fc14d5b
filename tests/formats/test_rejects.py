"""Every kind of wrong file is one `CheckpointError` that names the file and the tensor, and changes nothing."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.errors import CheckpointError
from fastcompress.formats import load, save
from fastcompress.nn import QuantLinear
from tests.formats.models import (
    MANIFEST,
    Snapshot,
    edit_header,
    edit_manifest,
    edit_tensor,
    joined,
    make_float,
    make_quantized,
    read_manifest,
    replace_tensor_file,
    split,
    tensor_path,
    write_manifest,
)

Body = dict[str, Any]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(make_quantized(), tmp_path)
    return tmp_path


def refused(directory: Path, *parts: str, model: nn.Module | None = None) -> None:
    """`load` must raise one `CheckpointError` that holds all ``parts``, and leave the model as it was."""
    model = make_float(3) if model is None else model
    before = Snapshot(model)
    for inplace in (False, True):
        with pytest.raises(CheckpointError) as caught:
            load(directory, model, inplace=inplace)
        for part in (str(directory), *parts):
            assert part in str(caught.value)
        before.assert_unchanged(model)


def _set(*path: Any, value: Any) -> Callable[[Body], None]:
    def edit(body: Body) -> None:
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return edit


def _delete(*path: Any) -> Callable[[Body], None]:
    def edit(body: Body) -> None:
        for key in path[:-1]:
            body = body[key]
        del body[path[-1]]

    return edit


NAME = ("tensor_file", "name")
CONV = ("modules", "conv", "config")
MANIFEST_CASES: list[tuple[str, Callable[[Body], None], tuple[str, ...]]] = [
    ("other format", _set("format", value="onnx"), ("format: 'onnx' is not one of fastcompress",)),
    ("newer version", _set("format_version", value=2), ("format_version: is 2", "reads up to 1", "newer fastcompress")),
    ("version as float", _set("format_version", value=1.0), ("format_version: must be an integer",)),
    ("version as bool", _set("format_version", value=True), ("format_version: must be an integer",)),
    ("unknown field", _set("extra", value=1), ("unknown field 'extra'",)),
    ("missing field", _delete("modules"), ("modules: is missing",)),
    ("parent directory", _set(*NAME, value="../model-0123456789abcdef.safetensors"), ("tensor_file: name",)),
    ("absolute path", _set(*NAME, value="/etc/passwd"), ("tensor_file: name", "/etc/passwd")),
    ("name of another file", _set(*NAME, value="model-0123456789abcdef.safetensors"), ("tensor_file: sha256",)),
    ("checksum no string", _set("tensor_file", "sha256", value=5), ("sha256: must be a string",)),
    ("wrong file size", _set("tensor_file", "bytes", value=12), ("the file has", "says 12", "truncated")),
    ("class not allowed", _set("modules", "conv", "class", value="Dropout"), ("'conv'", "'Dropout' is not one of")),
    ("class with path", _set("modules", "conv", "class", value="os.system"), ("'conv'", "'os.system' is not one of")),
    ("extra module field", _set("modules", "conv", "state", value=1), ("module 'conv'", "unknown field 'state'")),
    ("unknown option", _set(*CONV, "bits", value=8), ("module 'conv'", "unknown field 'bits'")),
    ("missing option", _delete(*CONV, "stride"), ("module 'conv': stride: is missing",)),
    ("option of wrong type", _set(*CONV, "stride", value="11"), ("module 'conv': stride: must be a list of 2",)),
    ("zero stride", _set(*CONV, "stride", value=[0, 1]), ("module 'conv': stride: must lie in [1,",)),
    ("negative padding", _set(*CONV, "padding", value=[0, 0, -1, 0]), ("module 'conv': padding: must lie in",)),
    ("zero groups", _set(*CONV, "groups", value=0), ("module 'conv': groups: must lie in",)),
    ("groups do not divide", _set(*CONV, "groups", value=2), ("module 'conv': groups: must divide",)),
    (
        "other stride than the model",
        _set(*CONV, "stride", value=[2, 2]),
        ("module 'conv': stride is (2, 2) in the file",),
    ),
    (
        "other size than the model",
        _set(*CONV, "out_channels", value=8),
        ("module 'conv': the weight has 216 elements",),
    ),
    ("huge size", _set(*CONV, "out_channels", value=2**31 - 1), ("module 'conv': the weight has",)),
    (
        "unknown activation",
        _set(*CONV, "activation", value="swish"),
        ("module 'conv': activation: 'swish' is not one",),
    ),
    ("dynamic convolution", _set(*CONV, "input_mode", value="dynamic"), ("module 'conv': input_mode",)),
    ("unknown dtype", _set(*CONV, "dtype", value="int8"), ("module 'conv': dtype: 'int8' is not one of",)),
    ("bias dropped", _set(*CONV, "bias", value=False), ("tensor 'conv.bias': the model has no place",)),
    (
        "mode without its tensors",
        _set("modules", "hidden", "config", "input_mode", value="static"),
        ("hidden.input_scale",),
    ),
    ("module not in the model", _set("modules", "nowhere", value={"class": "Identity", "config": {}}), ("'nowhere'",)),
    ("module inside another", _set("modules", "conv.x", value={"class": "Identity", "config": {}}), ("lies inside",)),
    (
        "weightless target",
        _set(
            "modules", "act", value={"class": "Linear", "config": {"in_features": 1, "out_features": 1, "bias": False}}
        ),
        ("module 'act'", "ReLU without"),
    ),
    ("alias to nothing", _set("tensor_aliases", "out.weight", value="gone"), ("'out.weight' points at 'gone'",)),
    ("alias of an alias", _set("tensor_aliases", "mask", value="out.weight"), ("tensor_aliases",)),
    ("alias that is stored", _set("tensor_aliases", "mask", value="embed.weight"), ("'mask' is stored itself",)),
    ("alias no string", _set("tensor_aliases", "out.weight", value=[]), ("tensor_aliases",)),
    ("module alias to nothing", _set("module_aliases", "act2", value="gone"), ("'act2' points at 'gone'",)),
    ("module alias not in the model", _set("module_aliases", "act2", value="act"), ("module 'act2'",)),
    ("tensor only in the JSON", _set("tensors", "new", value={"dtype": "F32", "shape": [1]}), ("tensor 'new'",)),
    ("tensor only in the file", _delete("tensors", "mask"), ("tensor 'mask'",)),
    ("dtype unknown", _set("tensors", "mask", "dtype", value="I4"), ("tensor 'mask'", "'I4' is not one of")),
    ("dtype other than in the file", _set("tensors", "mask", "dtype", value="U8"), ("tensor 'mask'",)),
    ("shape other than the model's", _set("tensors", "mask", "shape", value=[3, 2]), ("tensor 'mask'", "[3, 2]")),
    ("shape negative", _set("tensors", "mask", "shape", value=[-6]), ("tensor 'mask'", "shape: must lie in [0,")),
    (
        "shape of a quantized weight",
        _set("tensors", "hidden.weight", "shape", value=[4, 5]),
        ("'hidden.weight'", "[4, 5]"),
    ),
    ("dtype of a quantized weight", _set("tensors", "hidden.weight", "dtype", value="U8"), ("'hidden.weight'", "I8")),
    ("name too long", _set("tensors", "x" * 2000, value={"dtype": "F32", "shape": []}), ("2000 characters",)),
    ("record of another kind", _set("record", value=[]), ("record: must be an object",)),
    ("record with an unknown field", _set("record", "code", value="x"), ("record: unknown field 'code'",)),
    ("record with a huge time", _set("record", "layers", 0, "dense_seconds", value=10**400), ("fastcompress.json",)),
    ("manifest is no object", lambda body: None, ()),
]


@pytest.mark.parametrize(
    ("edit", "parts"), [c[1:] for c in MANIFEST_CASES[:-1]], ids=[c[0] for c in MANIFEST_CASES[:-1]]
)
def test_wrong_manifest(saved: Path, edit: Callable[[Body], None], parts: tuple[str, ...]) -> None:
    edit_manifest(saved, edit)
    refused(saved, *parts)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "Expecting value"),
        (b"[]", "must be a JSON object"),
        (b'{"format": "fastcompress", "format": "fastcompress"}', "the key 'format' appears twice"),
        (b'{"format": NaN}', "NaN is not a number"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "integer string conversion"),
    ],
    ids=["empty", "list", "duplicate", "nan", "bytes", "deep", "digits"],
)
def test_manifest_is_not_good_json(saved: Path, text: bytes, part: str) -> None:
    (saved / MANIFEST).write_bytes(text)
    refused(saved, MANIFEST, part)


def test_edited_manifest_is_noticed(saved: Path) -> None:
    text = (saved / MANIFEST).read_text()
    (saved / MANIFEST).write_text(text.replace('"relu"', '"silu"'))
    refused(saved, MANIFEST, "manifest_sha256", "corrupt or was edited")


def _static_scale(value: float) -> tuple[str, torch.Tensor]:
    return "conv.input_scale", torch.tensor(value)


VALUES = {
    "scale zero": ("hidden.weight_scale", torch.zeros(5), ("'hidden'", "weight_scale")),
    "scale negative": ("hidden.weight_scale", torch.full((5,), -1.0), ("'hidden'", "weight_scale")),
    "scale NaN": ("hidden.weight_scale", torch.full((5,), float("nan")), ("'hidden'", "weight_scale")),
    "scale infinite": ("conv.weight_scale", torch.full((4,), float("inf")), ("'conv'", "weight_scale")),
    "input scale zero": (*_static_scale(0.0), ("'conv'", "input_scale")),
    "input scale NaN": (*_static_scale(float("nan")), ("'conv'", "input_scale")),
    "input scale infinite": (*_static_scale(float("inf")), ("'conv'", "input_scale")),
    "input scale denormal": (*_static_scale(1e-42), ("'conv'", "input_scale")),
    "zero point high": ("conv.input_zero_point", torch.tensor(256, dtype=torch.int32), ("'conv'", "zero_point", "256")),
    "zero point low": ("conv.input_zero_point", torch.tensor(-1, dtype=torch.int32), ("'conv'", "zero_point", "-1")),
    "bias NaN": ("hidden.bias", torch.full((5,), float("nan")), ("'hidden'", "bias")),
    "boolean of 2": ("mask", torch.full((6,), 2, dtype=torch.uint8), ("'mask'", "0 or 1")),
}


@pytest.mark.parametrize(("name", "value", "parts"), VALUES.values(), ids=VALUES)
def test_value_out_of_range(saved: Path, name: str, value: torch.Tensor, parts: tuple[str, ...]) -> None:
    edit_tensor(saved, name, value)
    refused(saved, tensor_path(saved).name, *parts)


HEADERS: dict[str, tuple[Callable[[Body], None], str]] = {
    "overlap": (lambda h: h["mask"].update(data_offsets=[0, 6]), "begins at byte 0"),
    "gap": (_delete("mask"), "truncated or corrupt"),
    "beyond the end": (lambda h: h["mask"].update(data_offsets=[10**9, 10**9 + 6]), "begins at byte"),
    "backwards": (lambda h: h["mask"].update(data_offsets=[6, 0]), "span -6 bytes"),
    "too long": (lambda h: h["mask"].update(shape=[7]), "dtype and shape need 7"),
    "huge shape": (lambda h: h["mask"].update(shape=[2**62, 2**62]), "dtype and shape need"),
    "endless shape": (lambda h: h["mask"].update(shape=[1] * 50 + [6]), "at most 16"),
    "negative shape": (lambda h: h["mask"].update(shape=[-2, -3]), "non-negative"),
    "boolean shape": (lambda h: h["mask"].update(shape=[True, 6]), "non-negative"),
    "unknown dtype": (lambda h: h["mask"].update(dtype="I4"), "unknown dtype 'I4'"),
    "dtype no string": (lambda h: h["mask"].update(dtype=["I8"]), "unknown dtype"),
    "extra key": (lambda h: h["mask"].update(code="x"), "exactly dtype, shape and data_offsets"),
    "entry no object": (lambda h: h.update(mask=3), "exactly dtype, shape and data_offsets"),
    "offsets no pair": (lambda h: h["mask"].update(data_offsets=[0]), "two non-negative"),
    "metadata": (lambda h: h.update(__metadata__={"a": 1}), "__metadata__"),
}


@pytest.mark.parametrize(("edit", "part"), HEADERS.values(), ids=HEADERS)
def test_wrong_header(saved: Path, edit: Callable[[Body], None], part: str) -> None:
    edit_header(saved, edit)
    refused(saved, tensor_path(saved).name, part)


@pytest.mark.parametrize("claimed", [2**63, 10**9, 0, 1])
def test_header_length_is_wrong(saved: Path, claimed: int) -> None:
    data = tensor_path(saved).read_bytes()
    replace_tensor_file(saved, struct.pack("<Q", claimed) + data[8:])
    refused(saved, tensor_path(saved).name, "header")


def test_extra_tensor_inside_a_quantized_layer(saved: Path) -> None:
    header, tensors = split(tensor_path(saved).read_bytes())
    header["hidden.more"] = {"dtype": "U8", "shape": [1], "data_offsets": [len(tensors), len(tensors) + 1]}
    replace_tensor_file(saved, joined(header, tensors + b"\0"))
    edit_manifest(saved, _set("tensors", "hidden.more", value={"dtype": "U8", "shape": [1]}))
    refused(saved, "'hidden.more'", "no place for it")


def test_flipped_bit_is_noticed(saved: Path) -> None:
    path = tensor_path(saved)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(saved, path.name, "SHA-256")


def test_tensor_file_is_missing(saved: Path) -> None:
    path = tensor_path(saved)
    path.unlink()
    refused(saved, path.name, "no such file", "copy both files")


def test_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", MANIFEST, "no such file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX only")
@pytest.mark.parametrize("which", ["manifest", "tensors"])
def test_pipe_in_the_place_of_a_file_does_not_block(saved: Path, which: str) -> None:
    path = saved / MANIFEST if which == "manifest" else tensor_path(saved)
    path.unlink()
    os.mkfifo(path)
    refused(saved, path.name, "not a regular file")


@pytest.mark.parametrize("which", ["manifest", "tensors"])
def test_directory_in_the_place_of_a_file(saved: Path, which: str) -> None:
    path = saved / MANIFEST if which == "manifest" else tensor_path(saved)
    path.unlink()
    path.mkdir()
    refused(saved, path.name)


def test_another_architecture(saved: Path) -> None:
    refused(saved, "same architecture", model=nn.Sequential(nn.Linear(4, 4)))


def test_model_has_more_tensors(saved: Path) -> None:
    model = make_float()
    model.head = nn.LayerNorm(3)
    refused(saved, "tensor 'head.bias'", "the file lacks it", model=model)


def test_model_is_narrower(saved: Path) -> None:
    model = make_float()
    model.embed = nn.Embedding(7, 5)
    refused(saved, "'embed.weight'", "[6, 5]", "[7, 5]", model=model)


def test_kind_of_number_differs(saved: Path) -> None:
    model = make_float()
    model.mask = torch.ones(6)
    refused(saved, "'mask'", "BOOL", "torch.float32", model=model)


def test_meta_buffer_that_no_file_holds(saved: Path) -> None:
    model = make_float()
    model.gain = model.gain.to("meta")
    with pytest.raises(CheckpointError, match=r"'gain'.*construct the model on the CPU"):
        load(saved, model)


def test_model_that_cannot_be_copied(saved: Path) -> None:
    model = make_float()
    model.stream = (value for value in ())
    with pytest.raises(CheckpointError, match=r"cannot be copied.*inplace=True"):
        load(saved, model)
    assert isinstance(load(saved, model, inplace=True).hidden, QuantLinear)


def test_model_must_be_a_module(saved: Path) -> None:
    with pytest.raises(TypeError, match=r"load: model must be a torch\.nn\.Module, got type"):
        load(saved, nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"save: model must be a torch\.nn\.Module, got dict"):
        save({}, saved)  # type: ignore[arg-type]


def test_messages_in_full(saved: Path) -> None:
    edit_tensor(saved, "conv.input_zero_point", torch.tensor(256, dtype=torch.int32))
    with pytest.raises(CheckpointError) as caught:
        load(saved, make_float())
    assert str(caught.value).startswith(f"load: {tensor_path(saved)}: module 'conv': ")
    (saved / MANIFEST).write_text(json.dumps({"format": "x"}))
    with pytest.raises(CheckpointError) as caught:
        load(saved, make_float())
    assert str(caught.value) == f"load: {saved / MANIFEST}: manifest: format: 'x' is not one of fastcompress"


def test_rewriting_a_manifest_in_tests_is_itself_accepted(saved: Path) -> None:
    write_manifest(saved, read_manifest(saved))  # otherwise the cases above could fail for the wrong reason
    header, tensors = split(tensor_path(saved).read_bytes())
    replace_tensor_file(saved, joined(header, tensors))
    load(saved, make_float())
