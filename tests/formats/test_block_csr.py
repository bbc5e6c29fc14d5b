"""Block-CSR: exact round trips, every way an index can be wrong, and the speed of saying so."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcompress.ops.block_csr import BlockCSR, matrix_of, validate_block_csr, weight_of

BLOCKS = [(16, 4), (4, 4), (1, 4), (4, 1), (16, 1), (16, 2), (1, 1)]
DTYPES = [torch.int8, torch.float32, torch.bfloat16]
REBUILD = "; rebuild it with BlockCSR.from_dense"


def sparse(keep: torch.Tensor, block: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A matrix whose blocks are non-zero (their first element at least) exactly where `keep` is True."""
    generator = torch.Generator().manual_seed(seed)
    height, width = block
    blocks = torch.randint(-128, 128, (*keep.shape, height, width), generator=generator)
    blocks[:, :, 0, 0] |= 1
    blocks *= keep[:, :, None, None]
    return blocks.permute(0, 2, 1, 3).reshape(keep.shape[0] * height, keep.shape[1] * width).to(dtype)


def assert_holds(b: BlockCSR, dense: torch.Tensor, keep: torch.Tensor) -> None:
    assert torch.equal(b.to_dense(), dense)
    assert b.dtype == b.to_dense().dtype == dense.dtype
    assert (b.crow.dtype, b.col.dtype, b.shape) == (torch.int32, torch.int32, tuple(dense.shape))
    assert torch.equal(b.crow.diff(), keep.sum(1))
    assert b.col.tolist() == keep.nonzero()[:, 1].tolist()
    assert b.nnz_blocks == int(keep.sum())
    assert b.density == b.nnz_blocks / keep.numel()
    assert all(tensor.is_contiguous() for tensor in (b.crow, b.col, b.values))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("case", ["random", "empty-rows", "full-rows", "single", "zero", "full", "one-block"])
def test_round_trip(block: tuple[int, int], dtype: torch.dtype, case: str) -> None:
    keep = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    if case == "empty-rows":
        keep[[0, 2, 4]] = False
    elif case == "full-rows":
        keep[[0, 3]] = True
    elif case == "single":
        keep[:] = False
        keep[3, 6] = True
    elif case in ("zero", "full"):
        keep[:] = case == "full"
    elif case == "one-block":
        keep = torch.ones(1, 1, dtype=torch.bool)
    dense = sparse(keep, block, dtype)
    b = BlockCSR.from_dense(dense, block)
    assert b.block_size == block
    assert_holds(b, dense, keep)
    assert_holds(BlockCSR(b.crow.long(), b.col.long(), b.values, b.shape), dense, keep)
    assert_holds(BlockCSR.from_dense(dense.T.contiguous().T, block), dense, keep)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    block=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from(DTYPES),
    density=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_round_trip_of_anything(
    rows: int, columns: int, block: tuple[int, int], dtype: torch.dtype, density: float, seed: int
) -> None:
    keep = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    dense = sparse(keep, block, dtype, seed)
    assert_holds(BlockCSR.from_dense(dense, block), dense, keep)


def test_mask_decides_alone() -> None:
    dense = torch.ones(4, 8)
    dense[:, 4:] = 0
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[0, 3] = mask[3, 7] = True
    b = BlockCSR.from_dense(dense, (2, 4), mask)
    assert b.crow.tolist() == [0, 1, 2]
    assert b.col.tolist() == [0, 1]
    assert torch.equal(b.values, torch.stack([torch.ones(2, 4), torch.zeros(2, 4)]))


def test_negative_zero_is_zero_alone_but_kept_in_company() -> None:
    b = BlockCSR.from_dense(torch.tensor([[-0.0, -0.0, -0.0, 1.0]]), (1, 2))
    assert b.col.tolist() == [1]
    assert torch.signbit(b.values).tolist() == [[[True, False]]]


def test_gradients_stay_outside() -> None:
    b = BlockCSR.from_dense(torch.nn.Parameter(torch.eye(4)), (2, 2))
    assert not b.values.requires_grad
    assert not BlockCSR(b.crow, b.col, b.values.requires_grad_(), b.shape).values.requires_grad


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3), (6, 1, 5, 1), (1, 3, 1, 7)])
def test_convolution_matrix(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    matrix = matrix_of(weight)
    assert torch.equal(weight_of(matrix, weight.shape), weight)
    assert weight_of(matrix, shape).is_contiguous()
    if len(shape) == 4:
        out, channels, height, width = shape
        for o, i, y, x in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
            assert matrix[o, (y * width + x) * channels + i] == weight[o, i, y, x]
        assert matrix.shape == (out, height * width * channels)


def index(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


#: A good matrix: three block rows, four block columns, blocks (0, 1) (0, 3) (2, 0) (2, 2); the cases change one field.
GOOD = {"crow": index(0, 2, 2, 4), "col": index(1, 3, 0, 2), "values": torch.ones(4, 2, 4), "shape": (6, 16)}
NAN = torch.ones(4, 2, 4).index_fill(0, torch.tensor(2), float("nan"))
LONG = torch.int64
CASES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"crow": [0, 2, 2, 4]}, TypeError, "`n.crow` must be a torch.Tensor, got list"),
    ({"values": None}, TypeError, "`n.values` must be a torch.Tensor, got NoneType"),
    ({"crow": index(0, 2, 2, 4).float()}, TypeError, "`n.crow` has dtype float32, allowed: int32, int64; "
     "convert it with .to(torch.int32)"),
    ({"col": index(1, 3, 0, 2).short()}, TypeError, "`n.col` has dtype int16, allowed: int32, int64; "
     "convert it with .to(torch.int32)"),
    ({"col": index(1, 3, 0, 2).bool()}, TypeError, "`n.col` has dtype bool, allowed: int32, int64; "
     "convert it with .to(torch.int32)"),
    ({"values": torch.ones(4, 2, 4).half()}, TypeError, "`n.values` has dtype float16, allowed: float32, bfloat16, "
     "int8; convert it with .to(torch.float32)"),
    ({"col": index(1, 3, 0, 2).to_sparse()}, TypeError, "`n.col` has layout torch.sparse_coo, allowed: torch.strided; "
     "convert it with .to_dense()"),
    ({"col": index(1, 3, 0, 2).to("meta")}, ValueError, "`n.col` is on device meta, the values on cpu; "
     "move one of them with .to()"),
    ({"crow": index(0, 2, 2, 4)[None]}, ValueError, "`n.crow` must have 1 dimension(s), got shape [1, 4]" + REBUILD),
    ({"col": index(1, 3, 0, 2)[:, None]}, ValueError, "`n.col` must have 1 dimension(s), got shape [4, 1]" + REBUILD),
    ({"values": torch.ones(4, 8)}, ValueError, "`n.values` must have 3 dimension(s), got shape [4, 8]" + REBUILD),
    ({"shape": (6, 16, 1)}, ValueError, "`n.shape` must be two integers (rows, columns) from 1 to 2147483647, "
     "got (6, 16, 1)"),
    ({"shape": (6, -16)}, ValueError, "`n.shape` must be two integers (rows, columns) from 1 to 2147483647, "
     "got (6, -16)"),
    ({"shape": (6, 2**62)}, ValueError, "`n.shape` must be two integers (rows, columns) from 1 to 2147483647, "
     "got (6, 4611686018427387904)"),
    ({"shape": (6, 16.0)}, ValueError, "`n.shape` must be two integers (rows, columns) from 1 to 2147483647, "
     "got (6, 16.0)"),
    ({"shape": (6, 18)}, ValueError, "`n.shape` (6, 18) is no multiple of the block (2, 4); "
     "choose a block that divides it"),
    ({"shape": (7, 16)}, ValueError, "`n.shape` (7, 16) is no multiple of the block (2, 4); "
     "choose a block that divides it"),
    ({"values": torch.ones(5, 2, 4)}, ValueError, "`n.values` has shape [5, 2, 4], expected [4, bh, bw]: one block, "
     "not empty, for each element of `col`, at most 2147483647" + REBUILD),
    ({"values": torch.ones(4, 0, 4)}, ValueError, "`n.values` has shape [4, 0, 4], expected [4, bh, bw]: one block, "
     "not empty, for each element of `col`, at most 2147483647" + REBUILD),
    ({"col": index(1).expand(2**31), "values": torch.ones(1, 2, 4).expand(2**31, 2, 4)}, ValueError,
     "`n.values` has shape [2147483648, 2, 4], expected [2147483648, bh, bw]: one block, not empty, for each element "
     "of `col`, at most 2147483647" + REBUILD),
    ({"crow": index(0, 2, 4)}, ValueError, "`n.crow` has 3 elements, expected 4 (block rows + 1)" + REBUILD),
    ({"crow": index()}, ValueError, "`n.crow` has 0 elements, expected 4 (block rows + 1)" + REBUILD),
    ({"shape": (8, 16)}, ValueError, "`n.crow` has 4 elements, expected 5 (block rows + 1)" + REBUILD),
    ({"crow": index(1, 2, 2, 4)}, ValueError, "`n.crow` must start at 0, starts at 1" + REBUILD),
    ({"crow": index(0, 2, 2, 3)}, ValueError, "`n.crow` ends at 3, but `col` has 4 elements" + REBUILD),
    ({"crow": index(0, 2, 2, 2**32 + 4, dtype=LONG)}, ValueError, "`n.crow` ends at 4294967300, but `col` has 4 "
     "elements" + REBUILD),
    ({"crow": index(0, -2, 2, 4)}, ValueError, "`n.crow` is -2 at index 1, allowed: 0 to 4 (the blocks)" + REBUILD),
    ({"crow": index(0, 2, 5, 4)}, ValueError, "`n.crow` is 5 at index 2, allowed: 0 to 4 (the blocks)" + REBUILD),
    ({"crow": index(0, 2**63 - 1, -(2**63), 4, dtype=LONG)}, ValueError, "`n.crow` is 9223372036854775807 at index 1, "
     "allowed: 0 to 4 (the blocks)" + REBUILD),
    ({"crow": index(0, 3, 2, 4)}, ValueError, "`n.crow` decreases from 3 to 2 in block row 1" + REBUILD),
    ({"col": index(1, 3, 0, 4)}, ValueError, "`n.col` is 4 in block row 2, allowed: 0 to 3" + REBUILD),
    ({"col": index(-1, 3, 0, 2)}, ValueError, "`n.col` is -1 in block row 0, allowed: 0 to 3" + REBUILD),
    ({"col": index(1, 3, 2**32, 2**32 + 2, dtype=LONG)}, ValueError, "`n.col` is 4294967296 in block row 2, "
     "allowed: 0 to 3" + REBUILD),
    ({"col": index(3, 1, 0, 2)}, ValueError, "`n.col` is unsorted in block row 0: 1 follows 3; "
     "sort the blocks of each block row"),
    ({"col": index(1, 3, 2, 2)}, ValueError, "`n.col` repeats block column 2 in block row 2; "
     "merge the duplicate blocks"),
    ({"values": NAN}, ValueError, "`n.values` holds NaN or infinity in block row 2; repair the model first"),
    ({"values": -torch.ones(4, 2, 4).bfloat16() / 0}, ValueError, "`n.values` holds NaN or infinity in block row 0; "
     "repair the model first"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), CASES)
def test_hostile_tensors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        validate_block_csr("pack", "n", **{**GOOD, **changes})
    assert str(caught.value) == f"pack: {message}"
    with pytest.raises(error) as caught:
        BlockCSR(**{**GOOD, **changes})
    assert str(caught.value) == f"BlockCSR: {message}".replace("`n.", "`")


def test_the_good_one_is_good() -> None:
    crow, col = validate_block_csr("pack", "", **{**GOOD, "crow": GOOD["crow"].long(), "col": GOOD["col"].long()})
    assert torch.equal(crow, GOOD["crow"])
    assert torch.equal(col, GOOD["col"])
    assert (crow.dtype, col.dtype) == (torch.int32, torch.int32)
    none = BlockCSR(index(0, 0), index(), torch.ones(0, 4, 4), (4, 8))
    assert (none.density, none.block_size) == (0.0, (4, 4))
    assert torch.equal(none.to_dense(), torch.zeros(4, 8))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: BlockCSR.from_dense(torch.ones(4, 6), (4, 4)),
            ValueError,
            "BlockCSR.from_dense: `block_size` must be two integers (bh, bw) that divide the matrix [4, 6], got (4, 4)",
        ),
        (
            lambda: BlockCSR.from_dense(torch.ones(4, 6), (0, 4)),
            ValueError,
            "BlockCSR.from_dense: `block_size` must be two integers (bh, bw) that divide the matrix [4, 6], got (0, 4)",
        ),
        (
            lambda: BlockCSR.from_dense(torch.ones(4, 6).half(), (2, 2)),
            TypeError,
            "BlockCSR.from_dense: `matrix` has dtype float16, allowed: float32, bfloat16, int8; "
            "convert it with .to(torch.float32)",
        ),
        (
            lambda: BlockCSR.from_dense(torch.ones(4, 6), (2, 2), torch.ones(4, 6)),
            TypeError,
            "BlockCSR.from_dense: `mask` has dtype float32, allowed: bool; convert it with .to(torch.bool)",
        ),
        (
            lambda: BlockCSR.from_dense(torch.ones(4, 6), (2, 2), torch.ones(2, 3, dtype=torch.bool)),
            ValueError,
            "BlockCSR.from_dense: `mask` has shape [2, 3], expected the matrix's [4, 6]",
        ),
        (
            lambda: BlockCSR.from_dense(torch.ones(0, 6), (2, 2)),
            ValueError,
            "BlockCSR.from_dense: `matrix` must have no empty dimension, got shape [0, 6]",
        ),
        (
            lambda: matrix_of(torch.ones(4, 6, 3)),
            ValueError,
            "matrix_of: `weight` must be [out, in] or [out, in/groups, kh, kw], got shape [4, 6, 3]; reshape it first",
        ),
        (
            lambda: weight_of(torch.ones(4, 6), (4, 6, 1)),
            ValueError,
            "weight_of: `weight_shape` must be [out, in] or [out, in/groups, kh, kw], got (4, 6, 1); "
            "pass the weight's shape",
        ),
        (
            lambda: weight_of(torch.ones(4, 6), (4, 3, 2, 2)),
            ValueError,
            "weight_of: `matrix` has shape [4, 6], expected [4, 12] for the weight [4, 3, 2, 2]; "
            "pass the shape that matrix_of got",
        ),
    ],
)
def test_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_index_gets_past(data: st.DataObject) -> None:
    """Whatever the integers are: either an error, or a matrix that agrees with the definition written as loops."""
    col = data.draw(st.lists(st.integers(0, 2), max_size=5))
    crow = [0, *sorted(data.draw(st.lists(st.integers(0, len(col)), min_size=2, max_size=2))), len(col)]
    extreme = st.one_of(st.integers(-2, 5), st.sampled_from([2**31, -(2**31), 2**32 + 1, 2**63 - 1, -(2**63)]))
    for numbers in (crow, col):
        if numbers and data.draw(st.booleans()):
            numbers[data.draw(st.integers(0, len(numbers) - 1))] = data.draw(extreme)
    values = torch.arange(1.0, len(col) + 1).reshape(-1, 1, 1)
    good = crow[0] == 0 and crow[-1] == len(col) and crow == sorted(crow) and all(0 <= c < 3 for c in col)
    good = good and all(col[a:b] == sorted(set(col[a:b])) for a, b in pairwise(crow))
    try:
        b = BlockCSR(index(*crow, dtype=LONG), index(*col, dtype=LONG), values, (3, 3))
    except ValueError:
        assert not good
        return
    assert good
    expected = torch.zeros(3, 3)
    for row in range(3):
        for i in range(crow[row], crow[row + 1]):
            expected[row, col[i]] = values[i, 0, 0]
    assert torch.equal(b.to_dense(), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_million_blocks_take_less_than_two_seconds(dtype: torch.dtype) -> None:
    rows = columns = 1000
    crow = torch.arange(0, rows * columns + 1, columns, dtype=dtype)
    col = torch.arange(columns, dtype=dtype).repeat(rows)
    values = torch.ones(rows * columns, 1, 4)
    start = time.perf_counter()
    validate_block_csr("pack", "", crow, col, values, (rows, 4 * columns))
    assert time.perf_counter() - start < 2
