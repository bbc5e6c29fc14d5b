"""Damaged checkpoints: the right model or one `CheckpointError`, never another exception, a hang or much memory."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastcompress.errors import CheckpointError
from fastcompress.formats import load, save, tensorfile
from tests.formats.models import (
    MANIFEST,
    Snapshot,
    joined,
    make_float,
    make_input,
    make_quantized,
    read_manifest,
    replace_tensor_file,
    split,
    tensor_path,
    write_manifest,
)

RAW_MUTATIONS = 1000
CONSISTENT_MUTATIONS = 1000
SECONDS_PER_LOAD = 5.0


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes (bytes) of all buffers that the reader allocates."""
    sizes: list[int] = [0]
    real = torch.empty

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        size = args[0] if args and isinstance(args[0], int) else 1
        sizes.append(size)
        assert size < 1_000_000, "the reader asked for more memory than the file has"
        return real(*args, **kwargs)

    monkeypatch.setattr(tensorfile.torch, "empty", counting)
    return sizes


def attempt(directory: Path, given: nn.Module) -> nn.Module | None:
    """The loaded model, or None after a `CheckpointError`; any other exception fails the test."""
    begin = time.perf_counter()
    loaded, message = None, str(directory)
    try:
        loaded = load(directory, given)
    except CheckpointError as error:
        message = str(error)
    assert time.perf_counter() - begin < SECONDS_PER_LOAD
    assert str(directory) in message
    return loaded


def test_truncation_at_every_boundary(tmp_path: Path, largest: list[int]) -> None:
    save(make_quantized(), tmp_path)
    path = tensor_path(tmp_path)
    data = path.read_bytes()
    header, tensors = split(data)
    start = len(data) - len(tensors)
    ends = {0, 1, 7, 8, 9, start - 1, start}
    for name, entry in header.items():
        if name != "__metadata__":
            ends |= {start + offset + step for offset in entry["data_offsets"] for step in (-1, 0, 1)}
    given = make_float(3)
    before = Snapshot(given)
    tried = sorted(end for end in ends if 0 <= end < len(data))
    assert len(tried) > 30
    for end in tried:
        path.write_bytes(data[:end])
        assert attempt(tmp_path, given) is None, end
    path.write_bytes(data)
    assert attempt(tmp_path, given) is not None
    original = read_manifest(tmp_path)
    for end in tried:  # and with a manifest that agrees with the short file
        replace_tensor_file(tmp_path, data[:end])
        assert attempt(tmp_path, given) is None, end
        write_manifest(tmp_path, original)
    before.assert_unchanged(given)


def test_truncated_manifest(tmp_path: Path) -> None:
    save(make_quantized(), tmp_path)
    path = tmp_path / MANIFEST
    data = path.read_bytes().rstrip()
    given = make_float(3)
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        assert attempt(tmp_path, given) is None, end


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        kind = rng.randrange(5)
        at = rng.randrange(len(result)) if result else 0
        if kind == 0 and result:
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and result:
            result[at] = rng.randrange(256)
        elif kind == 2:
            result[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            del result[at : at + rng.randrange(1, 9)]
        else:
            result[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"-1", b"1e400", b"{}", b"99999999"))
    return bytes(result)


def test_random_bytes_change(tmp_path: Path, largest: list[int]) -> None:
    """Both checksums stand guard: what loads must be what was saved."""
    saved = make_quantized()
    save(saved, tmp_path)
    paths = (tmp_path / MANIFEST, tensor_path(tmp_path))
    originals = [path.read_bytes() for path in paths]
    rng = random.Random(20261123)
    given = make_float(3)
    before = Snapshot(given)
    expected = saved(make_input())
    refused = 0
    for _ in range(RAW_MUTATIONS):
        which = rng.randrange(2)
        paths[which].write_bytes(mutate_bytes(rng, originals[which]))
        loaded = attempt(tmp_path, given)
        if loaded is None:
            refused += 1
        else:
            assert torch.equal(loaded(make_input()), expected)
        paths[which].write_bytes(originals[which])
    before.assert_unchanged(given)
    assert refused > 0.9 * RAW_MUTATIONS


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**63, 10**30, 0.5, 1e308),
    *("", "x", "conv", "..", "U8", "I8", "F32", "BOOL", [], [0], [1, 1], [0, 0, 0, 0], [2**62], {}),
    {"class": "Identity", "config": {}},
    {"dtype": "F32", "shape": []},
)


def mutate_tree(rng: random.Random, root: Any) -> None:
    """Change, add, delete or move one value somewhere inside ``root``."""
    nodes: list[Any] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, dict | list) and node:
            nodes.append(node)
            stack.extend(node.values() if isinstance(node, dict) else node)
    node = rng.choice(nodes)
    other = rng.choice(nodes)
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    kind = rng.randrange(4)
    if kind == 0:
        node[key] = json.loads(json.dumps(rng.choice(ODD)))
    elif kind == 1:
        node[key] = json.loads(json.dumps(other))
    elif kind == 2:
        del node[key]
    elif isinstance(node, dict):
        node[rng.choice(("x", "conv", "embed.weight", "mask", "conv.weight", key))] = json.loads(
            json.dumps(rng.choice(ODD))
        )
    else:
        node.append(json.loads(json.dumps(rng.choice(ODD))))  # a copy: it is changed with the tree


def assert_holds_the_file(model: nn.Module, directory: Path) -> None:
    """Every tensor of the file is in the model, NaN where it is NaN there."""
    state = model.state_dict()
    for name, tensor in load_file(tensor_path(directory)).items():
        assert torch.equal(torch.nan_to_num(state[name]), torch.nan_to_num(tensor)), name


def test_random_changes_behind_valid_checksums(tmp_path: Path, largest: list[int]) -> None:
    """A file made on purpose: it loads exactly as it says, or is refused."""
    save(make_quantized(), tmp_path)
    original = (read_manifest(tmp_path), tensor_path(tmp_path).read_bytes())
    rng = random.Random(7)
    given = make_float(3)
    before = Snapshot(given)
    outcomes = {True: 0, False: 0}
    for _ in range(CONSISTENT_MUTATIONS):
        header, tensors = split(original[1])
        write_manifest(tmp_path, original[0])
        kind = rng.randrange(3)
        if kind == 0:  # the tensors' values
            replace_tensor_file(tmp_path, joined(header, mutate_values(rng, tensors)))
        elif kind == 1:  # the tensor file's header
            mutate_tree(rng, header)
            replace_tensor_file(tmp_path, joined(header, tensors))
        else:
            replace_tensor_file(tmp_path, original[1])
            body = read_manifest(tmp_path)
            for _ in range(rng.choice((1, 1, 2, 4))):
                mutate_tree(rng, body)
            write_manifest(tmp_path, body)
        loaded = attempt(tmp_path, given)
        outcomes[loaded is not None] += 1
        if loaded is not None:
            assert_holds_the_file(loaded, tmp_path)
    before.assert_unchanged(given)
    assert outcomes[True] > 50
    assert outcomes[False] > 300


def mutate_values(rng: random.Random, tensors: bytes) -> bytes:
    result = bytearray(tensors)
    for _ in range(rng.choice((1, 4, 64))):
        result[rng.randrange(len(result))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(result)
