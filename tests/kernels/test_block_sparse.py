"""Block-sparse blobs: exact round trips, hostile indices, dense and sparse kernels agree to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.runner import block_csr

N, K = 64, 24
SHAPE = (N // 16, K // 4)


def _layer(seed: int, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, tuple[Any, ...]]:
    """A dense weight of the blocks in ``mask``, the mask, and what follows the index in the packer's arguments."""
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) < 0.4 if mask is None else mask
    weight = rng.integers(-128, 128, (N, K), dtype=np.int8) * np.repeat(np.repeat(mask, 16, axis=0), 4, axis=1)
    scale = rng.uniform(0.5, 2.0, N).astype(np.float32)
    return weight, mask, (scale, rng.standard_normal(N, dtype=np.float32), 1, 1.0, 0, 3)


@pytest.mark.parametrize("kind", ["random", "none", "all", "one"])
def test_unpack_gives_back_every_bit(native: Any, kind: str) -> None:
    masks = {"random": None, "none": np.zeros(SHAPE, bool), "all": np.ones(SHAPE, bool), "one": np.eye(*SHAPE) > 1}
    mask = masks[kind]
    if kind == "one" and mask is not None:
        mask[2, 3] = True
    weight, mask, rest = _layer(1, mask)
    crow, col, values = block_csr(weight, mask)
    for isa in native.isa_supported():
        native.set_isa(isa)
        packed = native.pack_bsr(crow, col, values, (N, K), *rest)
        native.blob_check(packed)
        back = native.unpack_bsr(packed)
        for name, want in (("crow", crow), ("col", col), ("values", values), ("weight_scale", rest[0])):
            assert np.array_equal(back[name], want), name
        assert np.array_equal(back["bias"], rest[1])
        assert (back["weight_shape"], back["input_mode"], back["activation"]) == ((N, K), 1, 3)
        info = native.blob_info(packed)
        assert (info["block_size"], info["blocks"], info["n"], info["k"]) == ((16, 4), len(col), N, K)


def test_each_unpack_refuses_the_other_kind(native: Any) -> None:
    weight, mask, rest = _layer(2)
    sparse, dense = native.pack_bsr(*block_csr(weight, mask), (N, K), *rest), native.pack_w8a8(weight, *rest)
    with pytest.raises(ValueError, match="block-sparse; use unpack_bsr"):
        native.unpack_w8a8(sparse)
    with pytest.raises(ValueError, match="dense; use unpack_w8a8"):
        native.unpack_bsr(dense)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 16, 17, 33, 70])
def test_sparse_and_dense_kernels_agree_to_the_last_bit(native: Any, rows: int) -> None:
    weight, mask, rest = _layer(3)
    x = np.random.default_rng(4).standard_normal((rows, K), dtype=np.float32)
    for isa in native.isa_supported():
        native.set_isa(isa)
        outs = []
        for packed in (native.pack_w8a8(weight, *rest), native.pack_bsr(*block_csr(weight, mask), (N, K), *rest)):
            out = np.empty((rows, N), np.float32)
            native.linear_w8a8(x, packed, out)
            outs.append(out)
        assert np.array_equal(outs[0].view(np.uint32), outs[1].view(np.uint32)), isa


def _hostile(name: str, crow: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    crow, col = crow.copy(), col.copy()
    if name == "out of range":
        col[crow[1] - 1] = SHAPE[1]
        return crow, col, r"col\[\d+\] is 6, allowed: 0 to 5"
    if name == "negative":
        col[0] = -1
        return crow, col, r"col\[0\] is -1"
    if name == "duplicate":
        col[1] = col[0]
        return crow, col, r"col\[1\] is .*ascending within a block row"
    if name == "unsorted":
        col[0], col[1] = col[1], col[0]
        return crow, col, r"ascending within a block row"
    if name == "decreasing crow":
        crow[1] = crow[2] + 1
        return crow, col, r"ascending within a block row"
    if name == "crow beyond the end":
        crow[1] = 10_000
        return crow, col, r"crow decreases, or exceeds the number of blocks, at block row 0"
    if name == "crow starts late":
        crow[0] = 1
        return crow, col, r"crow must begin with 0"
    crow[-1] += 1
    return crow, col, r"end with the number of blocks"


@pytest.mark.parametrize(
    "name",
    [
        "out of range",
        "negative",
        "duplicate",
        "unsorted",
        "decreasing crow",
        "crow beyond the end",
        "crow starts late",
        "crow ends late",
    ],
)
def test_hostile_indices_are_refused_before_any_kernel_runs(native: Any, name: str) -> None:
    weight, mask, rest = _layer(5, np.ones(SHAPE, bool))
    crow, col, values = block_csr(weight, mask)
    crow, col, message = _hostile(name, crow, col)
    with pytest.raises(ValueError, match=message):
        native.pack_bsr(crow, col, values, (N, K), *rest)


def test_wrong_kinds_are_refused(native: Any) -> None:
    weight, mask, rest = _layer(6)
    crow, col, values = block_csr(weight, mask)
    with pytest.raises(TypeError, match="col"):
        native.pack_bsr(crow, col.astype(np.int64), values, (N, K), *rest)
    with pytest.raises(ValueError, match=r"col has shape .*one per block"):
        native.pack_bsr(crow, col[:-1].copy(), values, (N, K), *rest)
    with pytest.raises(ValueError, match="blocks of 8x8 have no kernel, allowed: 16x4"):
        native.pack_bsr(crow, col, np.zeros((len(col), 8, 8), np.int8), (32, K), np.ones(32, np.float32), None)
    with pytest.raises(ValueError, match="cannot be cut into blocks of 16x4"):
        native.pack_bsr(crow, col, values, (N, K + 1), *rest)


def test_a_sparse_blob_takes_the_memory_of_its_blocks(native: Any) -> None:
    rng = np.random.default_rng(7)
    mask = rng.random((256, 1024)) < 0.1
    crow, col, values = block_csr(np.zeros((4096, 4096), np.int8), mask)
    rest = (np.ones(4096, np.float32), np.zeros(4096, np.float32), 1, 1.0, 0, 0)
    packed = native.pack_bsr(crow, col, values, (4096, 4096), *rest)
    assert len(packed) <= 0.11 * 4096 * 4096 * mask.mean() / 0.1
