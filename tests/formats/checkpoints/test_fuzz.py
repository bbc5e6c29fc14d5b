"""Damaged checkpoints of every format: what the file says or one `CheckpointError`, and nothing else.

2,000 mutations of each format; ``--cases N`` makes it N.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from fastcompress.errors import CheckpointError
from fastcompress.formats.checkpoints import Checkpoint, read_checkpoint
from fastcompress.ops.canonical_w4 import W4Canonical
from tests.conftest import MIN_CASES
from tests.formats.checkpoints import decoders, writers
from tests.formats.checkpoints.gguf_writer import llama
from tests.formats.checkpoints.writers import Written, save_directory
from tests.formats.models import joined, split
from tests.formats.test_fuzz import mutate_bytes, mutate_tree, mutate_values

CASES = 2000
#: Of the processor, not of the clock: other tests may run beside these.
SECONDS_PER_LOAD = 5.0
SHAPES = {"a": (8, 32), "b": (16, 64)}

FORMATS: dict[str, tuple[Written, Callable[..., Any] | None]] = {
    "gptq": (writers.gptq(1, shapes=SHAPES, act_order=True), decoders.gptq_weight),
    "gptq-8-bit": (writers.gptq(2, shapes=SHAPES, bits=8, symmetric=True), decoders.gptq_weight),
    "awq": (writers.awq(3, shapes=SHAPES), decoders.awq_weight),
    "pack-quantized": (writers.compressed(4, shapes=SHAPES, symmetric=False), decoders.compressed_weight),
    "int-quantized": (
        writers.compressed(
            5, shapes=SHAPES, bits=8, layout="int-quantized", group_size=None,
            activations={"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
        ),
        None,
    ),
}  # fmt: skip


class Allocations(TorchDispatchMode):
    """Fails when one operation returns a tensor larger than the file could ask for."""

    def __init__(self, file_bytes: int) -> None:
        super().__init__()
        # int64 copies of four-byte group indices are the widest: 2 times the file; small files have a floor.
        self.limit = 4 * file_bytes + 4096

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                assert value.untyped_storage().nbytes() <= self.limit, f"{func} allocates too much"
        return result


def attempt(path: Path, file_bytes: int, watched: bool = True) -> Checkpoint | None:
    """What was read, or None after a `CheckpointError`; any other exception fails the test.

    Watching every allocation doubles the time, so only some of the mutations are.
    """
    begin = time.process_time()
    checkpoint, message = None, str(path)
    try:
        with Allocations(file_bytes) if watched else contextlib.nullcontext():
            checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        message = str(error)
    assert time.process_time() - begin < SECONDS_PER_LOAD
    assert str(path) in message
    return checkpoint


def overwrite(path: Path, content: bytes) -> None:
    """Other content for a file that exists; opening it to be written anew takes longer than all the rest."""
    with open(path, "r+b", buffering=0) as file:
        file.write(content)
        file.truncate()


def check_invariants(checkpoint: Checkpoint) -> None:
    """What kernels and `pack` rely on."""
    for layer in checkpoint.layers.values():
        c = layer.canonical
        out, inputs = c.weight_shape
        assert out > 0
        assert inputs > 0
        assert bool(torch.isfinite(c.weight_scale).all())
        assert c.bias is None or (c.bias.dtype == torch.float32 and list(c.bias.shape) == [out])
        if layer.input_order is not None:
            assert torch.equal(layer.input_order.sort().values, torch.arange(inputs))
        if isinstance(c, W4Canonical):
            assert list(c.weight_packed.shape) == [out, -(-inputs // 8)]
            assert list(c.weight_scale.shape) == [out, c.groups]
            for part in (c.weight_zero_point, c.weight_min):
                assert part is None or list(part.shape) == [out, c.groups]
            assert c.weight_zero_point is None or int(c.weight_zero_point.max()) <= 15
            assert c.group_size % 8 == 0 or c.group_size == inputs
        assert list(layer.dequantize().shape) == [out, inputs]


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """torch imports much more at the first use of a dispatch mode; no load is to be charged with it."""
    with Allocations(0):
        torch.ones(1) + 1


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> int:
    asked = int(request.config.getoption("--cases"))
    return CASES if asked == MIN_CASES else asked


@pytest.mark.parametrize("name", FORMATS)
def test_truncation_at_every_boundary(tmp_path: Path, name: str) -> None:
    save_directory(FORMATS[name][0], tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    header, tensors = split(data)
    start = len(data) - len(tensors)
    ends = {0, 1, 7, 8, 9, start - 1, start}
    for key, entry in header.items():
        if key != "__metadata__":
            ends |= {start + offset + step for offset in entry["data_offsets"] for step in (-1, 0, 1)}
    for end in sorted(end for end in ends if 0 <= end < len(data)):
        path.write_bytes(data[:end])
        assert attempt(tmp_path, len(data)) is None, end
        # And with a header that agrees with the short file: whole tensors are missing then.
        kept = {k: v for k, v in header.items() if k == "__metadata__" or v["data_offsets"][1] <= end - start}
        whole = max((v["data_offsets"][1] for k, v in kept.items() if k != "__metadata__"), default=0)
        path.write_bytes(joined(kept, tensors[:whole]))
        checkpoint = attempt(tmp_path, len(data))
        if checkpoint is not None:  # nothing can tell that a bias or a whole layer was there
            assert set(checkpoint.layers) <= set(SHAPES)
            for module, layer in checkpoint.layers.items():
                np.testing.assert_array_equal(layer.dequantize().numpy(), FORMATS[name][0].weights[module])
    config = (tmp_path / "config.json").read_bytes()
    path.write_bytes(data)
    for end in range(len(config) - 1):
        (tmp_path / "config.json").write_bytes(config[:end])
        assert attempt(tmp_path, len(data)) is None, end


@pytest.mark.parametrize("name", FORMATS)
def test_mutations(tmp_path: Path, name: str, cases: int) -> None:
    written, decode = FORMATS[name]
    save_directory(written, tmp_path)
    path, config_path = tmp_path / "model.safetensors", tmp_path / "config.json"
    data, config = path.read_bytes(), config_path.read_bytes()
    rng = random.Random(20261126)
    outcomes = {True: 0, False: 0}
    there = {path: data, config_path: config}
    for number in range(cases):
        wanted = {path: data, config_path: config}
        header, tensors = split(data)
        kind = rng.randrange(5)
        if kind == 0:
            wanted[path] = mutate_bytes(rng, data)
        elif kind == 1:
            wanted[path] = joined(header, mutate_values(rng, tensors))
        elif kind == 2:
            mutate_tree(rng, header)
            wanted[path] = joined(header, tensors)
        elif kind == 3:
            wanted[config_path] = mutate_bytes(rng, config)
        else:
            body = json.loads(config)
            for _ in range(rng.choice((1, 1, 2, 4))):
                if body:
                    mutate_tree(rng, body)
            wanted[config_path] = json.dumps(body).encode()
        for file, content in wanted.items():
            if there[file] != content:
                overwrite(file, content)
        there = wanted
        checkpoint = attempt(tmp_path, len(data) + len(config), watched=number % 8 == 0)
        outcomes[checkpoint is not None] += 1
        if checkpoint is not None:
            check_invariants(checkpoint)
            if kind <= 2 and decode is not None:
                found = load_file(path)
                for module, layer in checkpoint.layers.items():
                    with np.errstate(over="ignore", invalid="ignore"):
                        expected = decode(written.settings, found, module)
                    np.testing.assert_array_equal(layer.dequantize().numpy(), expected)
    assert outcomes[True] > 0.05 * cases
    assert outcomes[False] > 0.2 * cases


def test_index_mutations(tmp_path: Path, cases: int) -> None:
    written = FORMATS["awq"][0]
    save_directory(written, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(written.tensors, "model-1.safetensors")}
    path = tmp_path / "model.safetensors.index.json"
    rng = random.Random(6)
    loaded = 0
    for _ in range(cases // 4):
        body = json.loads(json.dumps(index))
        if rng.randrange(2):
            mutate_tree(rng, body)
            path.write_text(json.dumps(body))
        else:
            path.write_bytes(mutate_bytes(rng, json.dumps(index).encode()))
        checkpoint = attempt(tmp_path, 100_000)
        if checkpoint is not None:
            loaded += 1
            assert set(checkpoint.layers) == set(SHAPES)
    assert loaded > 0


def gguf_bytes() -> bytes:
    return llama(7, blocks=1, hidden=32, heads=2, kv_heads=1, feed_forward=32, vocabulary=8).to_bytes()


def test_gguf_truncation(tmp_path: Path) -> None:
    """Around every tensor, and all over the header."""
    data = gguf_bytes()
    path = tmp_path / "model.gguf"
    padding = 31  # at most so many bytes at the end are no tensor's
    last = len(data) - padding - 1
    ends = {*range(0, 2500, 5), *(end for start in range(0, last, 32) for end in (start - 1, start, start + 1)), last}
    for end in sorted(end for end in ends if 0 <= end <= last):
        path.write_bytes(data[:end])
        assert attempt(path, len(data), watched=end % 8 == 0) is None, end
    path.write_bytes(data)
    assert attempt(path, len(data)) is not None


def test_gguf_mutations(tmp_path: Path, cases: int) -> None:
    data = gguf_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    head = data.rindex(b"output_norm.weight") + 60
    rng = random.Random(8)
    outcomes = {True: 0, False: 0}
    for number in range(cases):
        if rng.randrange(4):  # most faults are worth trying in the header
            mutated = mutate_bytes(rng, data[:head]) + data[head:]
        else:
            mutated = data[:head] + mutate_values(rng, data[head:])
        overwrite(path, mutated)
        checkpoint = attempt(path, len(data), watched=number % 8 == 0)
        outcomes[checkpoint is not None] += 1
        if checkpoint is not None:
            check_invariants(checkpoint)
    assert outcomes[True] > 0.05 * cases
    assert outcomes[False] > 0.2 * cases
