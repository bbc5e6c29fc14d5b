"""torch's sparse tensors: exact round trips both ways, and hostile ones that torch builds without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcompress.formats.torch_sparse import from_sparse_bsr, from_sparse_csr, to_sparse_bsr, to_sparse_csr
from fastcompress.ops.block_csr import BlockCSR

pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CSR|BSR) tensor support is in beta")

BLOCKS = [(16, 4), (4, 4), (1, 4), (4, 1), (16, 1), (16, 2), (1, 1)]
DTYPES = [torch.int8, torch.float32, torch.bfloat16]
REBUILD = "; rebuild it with BlockCSR.from_dense"


def matrix(block: tuple[int, int], dtype: torch.dtype, density: float = 0.4, seed: int = 0) -> BlockCSR:
    """Random blocks; about every third value in a block is an explicit zero, and some blocks hold zeros only."""
    generator = torch.Generator().manual_seed(seed)
    shape = (5 * block[0], 7 * block[1])
    values = torch.randint(-128, 128, shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.7)
    keep = torch.rand(5, 7, generator=generator) < density
    mask = keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return BlockCSR.from_dense(values.to(dtype), block, mask)


def assert_same(a: BlockCSR, b: BlockCSR) -> None:
    assert (a.shape, a.dtype, a.block_size) == (b.shape, b.dtype, b.block_size)
    assert torch.equal(a.crow, b.crow)
    assert torch.equal(a.col, b.col)
    assert torch.equal(a.values, b.values)


def assert_torch_agrees(t: torch.Tensor, b: BlockCSR) -> None:
    assert (t.shape, t.dtype) == (b.shape, b.dtype)
    assert t.crow_indices().dtype == t.col_indices().dtype == torch.int32
    assert torch.equal(t.to_dense(), b.to_dense())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.4, 1.0])
def test_bsr_round_trip(block: tuple[int, int], dtype: torch.dtype, density: float) -> None:
    b = matrix(block, dtype, density)
    t = to_sparse_bsr(b)
    assert_torch_agrees(t, b)
    assert_same(from_sparse_bsr(t), b)
    wide = torch.sparse_bsr_tensor(b.crow.long(), b.col.long(), b.values, b.shape, check_invariants=True)
    assert_same(from_sparse_bsr(wide), b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.4, 1.0])
def test_csr_round_trip(dtype: torch.dtype, density: float) -> None:
    b = matrix((1, 1), dtype, density)
    t = to_sparse_csr(b)
    assert_torch_agrees(t, b)
    assert t.values().dim() == 1
    assert_same(from_sparse_csr(t), b)


@settings(max_examples=40, deadline=None)
@given(
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from(DTYPES),
    density=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_round_trip_of_anything(block: tuple[int, int], dtype: torch.dtype, density: float, seed: int) -> None:
    b = matrix(block, dtype, density, seed)
    assert_same(from_sparse_bsr(to_sparse_bsr(b)), b)
    single = BlockCSR.from_dense(b.to_dense(), (1, 1))
    assert_same(from_sparse_csr(to_sparse_csr(single)), single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_what_torch_makes(dtype: torch.dtype) -> None:
    dense = matrix((4, 2), dtype).to_dense()
    assert_same(from_sparse_bsr(dense.to_sparse_bsr((4, 2))), BlockCSR.from_dense(dense, (4, 2)))
    assert_same(from_sparse_csr(dense.to_sparse_csr()), BlockCSR.from_dense(dense, (1, 1)))


def test_explicit_zeros_stay() -> None:
    zeros = torch.zeros(2, 4, 4)
    b = BlockCSR(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), zeros, (8, 8))
    assert torch.equal(from_sparse_bsr(to_sparse_bsr(b)).values, zeros)
    single = BlockCSR(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.zeros(2, 1, 1), (2, 2))
    assert from_sparse_csr(to_sparse_csr(single)).nnz_blocks == 2


def test_memory_is_shared() -> None:
    b = matrix((4, 4), torch.float32)
    assert to_sparse_bsr(b).values().data_ptr() == b.values.data_ptr()


def index(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


#: crow, col and the shape, with two blocks in two block rows and two block columns, and what `from_sparse_*` says.
HOSTILE: list[tuple[torch.Tensor, torch.Tensor, str]] = [
    (index(0, 1, 2), index(1, 2), "`col` is 2 in block row 1, allowed: 0 to 1" + REBUILD),
    (index(0, 1, 2), index(-1, 0), "`col` is -1 in block row 0, allowed: 0 to 1" + REBUILD),
    (index(0, 1, 2), index(0, 2**32), "`col` is 4294967296 in block row 1, allowed: 0 to 1" + REBUILD),
    (index(0, 2, 2), index(1, 0), "`col` is unsorted in block row 0: 0 follows 1; sort the blocks of each block row"),
    (index(0, 0, 2), index(1, 1), "`col` repeats block column 1 in block row 1; merge the duplicate blocks"),
    (index(0, 5, 2), index(0, 1), "`crow` is 5 at index 1, allowed: 0 to 2 (the blocks)" + REBUILD),
    (index(0, -1, 2), index(0, 1), "`crow` is -1 at index 1, allowed: 0 to 2 (the blocks)" + REBUILD),
    (index(1, 1, 2), index(0, 1), "`crow` must start at 0, starts at 1" + REBUILD),
    (index(0, 1, 9), index(0, 1), "`crow` ends at 9, but `col` has 2 elements" + REBUILD),
    (index(0, 2), index(0, 1), "`crow` has 2 elements, expected 3 (block rows + 1)" + REBUILD),
]


@pytest.mark.parametrize(("crow", "col", "message"), HOSTILE)
def test_hostile(crow: torch.Tensor, col: torch.Tensor, message: str) -> None:
    bsr = torch.sparse_bsr_tensor(crow, col, torch.ones(2, 4, 4), (8, 8), check_invariants=False)
    csr = torch.sparse_csr_tensor(crow, col, torch.ones(2), (2, 2), check_invariants=False)
    for function, tensor in ((from_sparse_bsr, bsr), (from_sparse_csr, csr)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
            function(tensor)
        assert str(caught.value) == f"{function.__name__}: {message}"


def bsr(values: torch.Tensor, crow: torch.Tensor | None = None, size: tuple[int, ...] = (8, 8)) -> torch.Tensor:
    crow = index(0, 1, 2) if crow is None else crow
    return torch.sparse_bsr_tensor(crow, index(1, 0), values, size, check_invariants=False)


SINGLE = BlockCSR.from_dense(torch.eye(8), (4, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: from_sparse_bsr(bsr(torch.ones(2, 4, 4).half())),
            TypeError,
            "from_sparse_bsr: `values` has dtype float16, allowed: float32, bfloat16, int8; "
            "convert it with .to(torch.float32)",
        ),
        (
            lambda: from_sparse_bsr(bsr(torch.ones(2, 4, 4), index(0, 1, 2).float())),
            TypeError,
            "from_sparse_bsr: `crow` has dtype float32, allowed: int32, int64; convert it with .to(torch.int32)",
        ),
        (
            lambda: from_sparse_bsr(bsr(torch.ones(2, 4, 4), size=(9, 8))),
            ValueError,
            "from_sparse_bsr: `shape` (9, 8) is no multiple of the block (4, 4); choose a block that divides it",
        ),
        (
            lambda: from_sparse_bsr(bsr(torch.full((2, 4, 4), float("inf")))),
            ValueError,
            "from_sparse_bsr: `values` holds NaN or infinity in block row 0; repair the model first",
        ),
        (
            lambda: from_sparse_bsr(bsr(torch.ones(2, 4, 4, 3), size=(8, 8, 3))),
            ValueError,
            "from_sparse_bsr: `tensor` must be a matrix without batch or dense dimensions, got shape [8, 8, 3]; "
            "convert its slices one by one",
        ),
        (
            lambda: from_sparse_bsr(torch.eye(8)),
            TypeError,
            "from_sparse_bsr: `tensor` has layout torch.strided, allowed: torch.sparse_bsr; "
            "convert it with .to_sparse_bsr((bh, bw))",
        ),
        (
            lambda: from_sparse_csr(torch.eye(8).to_sparse()),
            TypeError,
            "from_sparse_csr: `tensor` has layout torch.sparse_coo, allowed: torch.sparse_csr; "
            "convert it with .to_sparse_csr()",
        ),
        (
            lambda: from_sparse_csr(None),  # type: ignore[arg-type]
            TypeError,
            "from_sparse_csr: `tensor` must be a torch.Tensor, got NoneType",
        ),
        (
            lambda: to_sparse_csr(SINGLE),
            ValueError,
            "to_sparse_csr: `matrix` has blocks (4, 4), allowed: (1, 1); use to_sparse_bsr, or "
            "BlockCSR.from_dense(matrix.to_dense(), (1, 1))",
        ),
        (
            lambda: to_sparse_bsr(torch.eye(8)),  # type: ignore[arg-type]
            TypeError,
            "to_sparse_bsr: `matrix` must be a BlockCSR, got Tensor; BlockCSR.from_dense makes one",
        ),
    ],
)
def test_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_a_matrix_changed_after_its_making_is_refused() -> None:
    b = matrix((1, 1), torch.float32)
    b.col[0] = 100
    for function in (to_sparse_bsr, to_sparse_csr):
        with pytest.raises(
            ValueError, match=rf"{function.__name__}: `matrix\.col` is 100 in block row 0, allowed: 0 to 6"
        ):
            function(b)
