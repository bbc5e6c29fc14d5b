"""Block-sparse layers in files: every kind comes back bit for bit, every forged field or index is one error."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.errors import CheckpointError
from fastcompress.formats import checkpoint_info, load, save
from fastcompress.nn import SparseConv2d
from tests.formats.models import (
    Snapshot,
    edit_manifest,
    edit_tensor,
    joined,
    read_manifest,
    replace_tensor_file,
    split,
    tensor_path,
)
from tests.nn.sparse_cases import CASES, Case, pruned_conv2d, pruned_linear

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def make_plain(case: Case) -> nn.Sequential:
    """The float model that the layer of `case` stands in."""
    if case.family.startswith("linear"):
        return nn.Sequential(pruned_linear(32, 16, seed=9))
    return nn.Sequential(pruned_conv2d(seed=9))


@each
def test_round_trip(case: Case, tmp_path: Path) -> None:
    saved = nn.Sequential(case.make(0).to(torch.bfloat16))
    save(saved, tmp_path)
    loaded = load(tmp_path, make_plain(case))
    assert type(loaded[0]) is type(saved[0])
    assert repr(loaded) == repr(saved)
    assert torch.equal(loaded(case.x), saved(case.x))
    state, again = saved.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    entry = read_manifest(tmp_path)["modules"]["0"]
    assert entry["config"]["block_size"] == list(case.block)
    assert entry["config"]["values"] == str(case.dtype).removeprefix("torch.")
    assert checkpoint_info(tmp_path)["modules"] == {type(saved[0]).__name__: 1}
    replaced = nn.Sequential(case.make(1))
    assert torch.equal(load(tmp_path, replaced, inplace=True)(case.x), saved(case.x))


def test_same_padding_comes_back(tmp_path: Path) -> None:
    saved = nn.Sequential(SparseConv2d.from_float(pruned_conv2d(), padding=0, same_padding=True))
    save(saved, tmp_path)
    loaded = load(tmp_path, nn.Sequential(pruned_conv2d(seed=9)))
    x = torch.randn(1, 8, 7, 6)
    assert loaded[0].same_padding
    assert torch.equal(loaded(x), saved(x))


def refused(directory: Path, model: nn.Module, *parts: str) -> None:
    before = Snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load(directory, model)
    for part in (str(directory), "'0", *parts):
        assert part in str(caught.value)
    before.assert_unchanged(model)


def _config(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["modules"]["0"]["config"].update(changes)


FORGED: list[tuple[dict[str, Any], str]] = [
    ({"block_size": [8, 4]}, "no kernel for 8x4 blocks"),
    ({"block_size": [16]}, "block_size: must be a list of 2 integers"),
    ({"block_size": [16, 0]}, "block_size: must lie in [1,"),
    ({"block_size": "16x4"}, "block_size: must be a list"),
    ({"blocks": 10**9}, "blocks: 1000000000 are more than the"),
    ({"blocks": -1}, "blocks: must lie in [0,"),
    ({"blocks": True}, "blocks: must be an integer"),
    ({"blocks": 1}, "its layer must have"),
    ({"values": "float16"}, "values: 'float16' is not one of"),
    ({"values": 3}, "values: must be a string"),
    ({"activation": "swish"}, "activation: 'swish' is not one of"),
    ({"dtype": "int8"}, "dtype: 'int8' is not one of"),
    ({"bias": 1}, "bias: must be true or false"),
    ({"extra": 1}, "unknown field 'extra'"),
]


@each
@pytest.mark.parametrize(("changes", "part"), FORGED)
def test_a_forged_configuration_is_refused(case: Case, changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    save(nn.Sequential(case.make(0)), tmp_path)
    edit_manifest(tmp_path, _config(**changes))
    refused(tmp_path, make_plain(case), part)


@each
def test_missing_fields_are_named(case: Case, tmp_path: Path) -> None:
    save(nn.Sequential(case.make(0)), tmp_path)
    config = read_manifest(tmp_path)["modules"]["0"]["config"]
    for key in config:
        edit_manifest(tmp_path, lambda body, k=key: body["modules"]["0"]["config"].pop(k))
        refused(tmp_path, make_plain(case), f"{key}: is missing")
        edit_manifest(tmp_path, _config(**{key: config[key]}))
    load(tmp_path, make_plain(case))


def test_the_class_decides_what_values_are_allowed(tmp_path: Path) -> None:
    by_name = {case.name: case for case in CASES}
    case = by_name["linear_bsr-float32-16x1"]
    save(nn.Sequential(case.make(0)), tmp_path)
    edit_manifest(tmp_path, lambda body: body["modules"]["0"].update({"class": "SparseQuantLinear"}))
    refused(tmp_path, make_plain(case), "input_mode: is missing")
    edit_manifest(tmp_path, _config(input_mode="dynamic"))
    refused(tmp_path, make_plain(case), "values: 'float32' is not one of int8")
    case = by_name["conv2d_w8a8-int8-16x4"]
    save(nn.Sequential(case.make(0)), tmp_path)
    edit_manifest(tmp_path, _config(input_mode="dynamic"))
    refused(tmp_path, make_plain(case), "input_mode: 'dynamic' is not one of static")
    edit_manifest(tmp_path, _config(input_mode="static", groups=2))
    refused(tmp_path, make_plain(case), "2 groups")


BAD_TENSORS: list[tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = [
    ("col", lambda t: t.flip(0), "col"),
    ("col", lambda t: t + 1_000_000, "allowed: 0 to"),
    ("col", lambda t: t - 1_000_000, "allowed: 0 to"),
    ("crow", lambda t: t.flip(0), "crow` must start at 0"),
    ("crow", lambda t: torch.cat([t[:-1], t[-1:] + 1]), "crow` ends at"),
    ("bias", lambda t: t * float("inf"), "`bias` holds NaN or infinity"),
]


@each
@pytest.mark.parametrize(("key", "change", "part"), BAD_TENSORS)
def test_every_wrong_index_is_refused(case: Case, key: str, change: Any, part: str, tmp_path: Path) -> None:
    layer = case.make(0)
    save(nn.Sequential(layer), tmp_path)
    edit_tensor(tmp_path, f"0.{key}", change(layer.state_dict()[key]))
    refused(tmp_path, make_plain(case), part)


def test_nan_among_float_values_is_refused(tmp_path: Path) -> None:
    for case in CASES:
        if case.dtype != torch.int8:
            layer = case.make(0)
            save(nn.Sequential(layer), tmp_path)
            edit_tensor(tmp_path, "0.values", layer.state_dict()["values"] * float("nan"))
            refused(tmp_path, make_plain(case), "values` holds NaN or infinity")


@each
def test_a_layer_of_another_size_is_refused(case: Case, tmp_path: Path) -> None:
    save(nn.Sequential(case.make(0)), tmp_path)
    other = nn.Linear(16, 16) if case.family.startswith("linear") else nn.Conv2d(8, 16, 3, (1, 2), (1, 2))
    refused(tmp_path, nn.Sequential(other), "the weight has", "is it the same architecture?")


@each
def test_random_damage_is_one_error_or_a_working_model(case: Case, tmp_path: Path) -> None:
    layer = nn.Sequential(case.make(0))
    save(layer, tmp_path)
    body = read_manifest(tmp_path)
    header, tensors = split(tensor_path(tmp_path).read_bytes())
    choose = random.Random(case.name)
    loaded = 0
    for _ in range(60):
        changed, data = copy.deepcopy(body), bytearray(tensors)
        config = changed["modules"]["0"]["config"]
        if choose.random() < 0.5:
            key = choose.choice(sorted(config))
            config[key] = choose.choice([0, 1, -1, 2**31, "x", None, [], [1, 1], [16, 4], 1.5, True, "float32"])
        else:
            for _ in range(3):
                data[choose.randrange(len(data))] = choose.randrange(256)
        edit_manifest(tmp_path, lambda b, c=changed: b.update(json.loads(json.dumps(c))))
        replace_tensor_file(tmp_path, joined(header, bytes(data)))
        model = make_plain(case)
        before = Snapshot(model)
        with contextlib.suppress(CheckpointError):  # any other exception fails the test
            load(tmp_path, model)(case.x)
            loaded += 1
        before.assert_unchanged(model)
    assert loaded < 60
