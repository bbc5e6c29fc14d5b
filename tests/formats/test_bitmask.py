"""The sparse-bitmask format: exact round trips, bytes written down by hand, and every field made hostile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcompress.formats.bitmask import compress_bitmask, decompress_bitmask

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int8]
AGAIN = "; write the file again"


def random_matrix(rows: int, columns: int, dtype: torch.dtype, density: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 100, (rows, columns), generator=generator).float()
    return (numbers * (torch.rand(rows, columns, generator=generator) < density)).to(dtype)


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    density=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)),
    seed=st.integers(0, 1000),
)
def test_round_trip(rows: int, columns: int, dtype: torch.dtype, density: float, seed: int) -> None:
    dense = random_matrix(rows, columns, dtype, density, seed)
    tensors = compress_bitmask(dense, "fc.weight")
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {
        "fc.weight.shape": torch.int64,
        "fc.weight.bitmask": torch.uint8,
        "fc.weight.compressed": dtype,
        "fc.weight.row_offsets": torch.int64,
    }
    assert_same(decompress_bitmask("fc.weight", {**tensors, "fc.bias": torch.ones(3)}), dense)
    assert_same(decompress_bitmask("", compress_bitmask(dense)), dense)


def test_the_bytes() -> None:
    """Written down by hand: lowest bit first, values row after row, offsets without the end."""
    dense = torch.zeros(3, 10)
    dense[0, [0, 3, 8]] = torch.tensor([1.0, 2.0, 3.0])
    dense[2, [7, 9]] = torch.tensor([-4.0, 5.0])
    tensors = compress_bitmask(dense)
    assert list(tensors) == ["shape", "bitmask", "compressed", "row_offsets"]
    assert tensors["shape"].tolist() == [3, 10]
    assert tensors["bitmask"].tolist() == [[0b00001001, 0b01], [0, 0], [0b10000000, 0b10]]
    assert tensors["compressed"].tolist() == [1.0, 2.0, 3.0, -4.0, 5.0]
    assert tensors["row_offsets"].tolist() == [0, 3, 3]


def test_odd_values() -> None:
    dense = torch.tensor([[0.0, -0.0, float("nan"), float("-inf"), 1e-45]])
    tensors = compress_bitmask(dense.requires_grad_())
    assert tensors["bitmask"].tolist() == [[0b11100]]
    assert not any(tensor.requires_grad for tensor in tensors.values())
    back = decompress_bitmask("", tensors)
    assert_same(back[:, 2:], dense.detach()[:, 2:])
    assert not torch.signbit(back[0, :2]).any()


def test_views_and_columns_and_stored_zeros() -> None:
    dense = random_matrix(8, 12, torch.float32, 0.5)
    assert_same(decompress_bitmask("", compress_bitmask(dense.T)), dense.T)
    tensors = compress_bitmask(dense)
    strided = {key: torch.stack([tensor, tensor], -1)[..., 0] for key, tensor in tensors.items()}
    assert_same(decompress_bitmask("", strided), dense)
    columns = {key: tensor if key == "bitmask" else tensor[:, None] for key, tensor in tensors.items()}
    assert_same(decompress_bitmask("", columns), dense)
    narrow = {**tensors, "shape": tensors["shape"].int(), "row_offsets": tensors["row_offsets"].int()}
    assert_same(decompress_bitmask("", narrow), dense)
    zeros = {**tensors, "compressed": torch.zeros_like(tensors["compressed"])}
    assert_same(decompress_bitmask("", zeros), torch.zeros(8, 12))


#: Three rows of ten columns with 3, 0 and 2 values; each case changes one tensor.
BITS = torch.tensor([[0b00001001, 0b01], [0, 0], [0b10000000, 0b10]], dtype=torch.uint8)
GOOD = {
    "w.shape": torch.tensor([3, 10]),
    "w.bitmask": BITS,
    "w.compressed": torch.arange(1.0, 6.0),
    "w.row_offsets": torch.tensor([0, 3, 3]),
}
HUGE = torch.tensor([3, 2**62])
SIZES = "`w.shape` must be two positive sizes (rows, columns), got {}; only matrices have this format"
CASES: list[tuple[str, Any, type[Exception], str]] = [
    ("shape", [3, 10], TypeError, "`w.shape` must be a torch.Tensor, got list"),
    ("shape", torch.tensor([3.0, 10.0]), TypeError, "`w.shape` has dtype float32, allowed: int64, int32; "
     "convert it with .to(torch.int64)"),
    ("shape", torch.tensor([3, 10, 1]), ValueError, SIZES.format([3, 10, 1])),
    ("shape", torch.tensor([30]), ValueError, SIZES.format([30])),
    ("shape", torch.tensor([], dtype=torch.int64), ValueError, SIZES.format([])),
    ("shape", torch.tensor([0, 10]), ValueError, SIZES.format([0, 10])),
    ("shape", torch.tensor([3, -10]), ValueError, SIZES.format([3, -10])),
    ("shape", torch.tensor(3), ValueError, "`w.shape` must be a list, [n] or [n, 1], got shape []" + AGAIN),
    ("shape", HUGE, ValueError, "`w.bitmask` has shape [3, 2], expected [3, 576460752303423488] for 3 rows of "
     "4611686018427387904 bits" + AGAIN),
    ("shape", torch.tensor([4, 10]), ValueError, "`w.bitmask` has shape [3, 2], expected [4, 2] for 4 rows of 10 "
     "bits" + AGAIN),
    ("shape", torch.tensor([3, 17]), ValueError, "`w.bitmask` has shape [3, 2], expected [3, 3] for 3 rows of 17 "
     "bits" + AGAIN),
    ("shape", torch.tensor([3, 9]), ValueError, "`w.bitmask` has bits beyond column 8 in row 2" + AGAIN),
    ("bitmask", BITS.int(), TypeError, "`w.bitmask` has dtype int32, allowed: uint8; convert it with "
     ".to(torch.uint8)"),
    ("bitmask", BITS.to_sparse(), TypeError, "`w.bitmask` has layout torch.sparse_coo, allowed: torch.strided; "
     "convert it with .to_dense()"),
    ("bitmask", BITS.reshape(-1), ValueError, "`w.bitmask` has shape [6], expected [3, 2] for 3 rows of 10 bits"
     + AGAIN),
    ("bitmask", BITS.T, ValueError, "`w.bitmask` has shape [2, 3], expected [3, 2] for 3 rows of 10 bits" + AGAIN),
    ("bitmask", BITS + torch.tensor([[0, 0], [0, 4], [0, 0]], dtype=torch.uint8), ValueError,
     "`w.bitmask` has bits beyond column 9 in row 1" + AGAIN),
    ("bitmask", BITS * 0, ValueError, "`w.compressed` has 5 values, but the bitmask has 0 bits" + AGAIN),
    ("bitmask", BITS.flip(0), ValueError, "`w.row_offsets` is 3 at row 1, but 2 bits are set in the rows before"
     + AGAIN),
    ("compressed", torch.arange(4.0), ValueError, "`w.compressed` has 4 values, but the bitmask has 5 bits" + AGAIN),
    ("compressed", torch.ones(2, 5), ValueError, "`w.compressed` must be a list, [n] or [n, 1], got shape [2, 5]"
     + AGAIN),
    ("compressed", torch.ones(5).bool(), TypeError, "`w.compressed` has dtype bool, allowed: float32, bfloat16, "
     "float16, float64, float8_e4m3fn, int8; convert it with .to(torch.float32)"),
    ("row_offsets", torch.tensor([0, 3, 3, 5]), ValueError, "`w.row_offsets` has 4 elements, expected 3, one a row"
     + AGAIN),
    ("row_offsets", torch.tensor([0, 3, 4]), ValueError, "`w.row_offsets` is 4 at row 2, but 3 bits are set in the "
     "rows before" + AGAIN),
    ("row_offsets", torch.tensor([-(2**63), 3, 3]), ValueError, "`w.row_offsets` is -9223372036854775808 at row 0, "
     "but 0 bits are set in the rows before" + AGAIN),
    ("row_offsets", torch.tensor([0.0, 3.0, 3.0]), TypeError, "`w.row_offsets` has dtype float32, allowed: int64, "
     "int32; convert it with .to(torch.int64)"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "error", "message"), CASES)
def test_hostile(field: str, value: Any, error: type[Exception], message: str) -> None:
    assert decompress_bitmask("w", GOOD)[2, 9] == 5
    with pytest.raises(error) as caught:
        decompress_bitmask("w", {**GOOD, f"w.{field}": value})
    assert str(caught.value) == f"decompress_bitmask: {message}"


@pytest.mark.parametrize("field", ["shape", "bitmask", "compressed", "row_offsets"])
def test_missing(field: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        decompress_bitmask("w", {key: tensor for key, tensor in GOOD.items() if key != f"w.{field}"})
    assert str(caught.value) == (
        f"decompress_bitmask: `w.{field}` is missing; sparse-bitmask needs w.shape, w.bitmask, "
        "w.compressed, w.row_offsets"
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_an_error_or_another_matrix(data: st.DataObject) -> None:
    """Bytes of any field overwritten: never anything but TypeError, ValueError or a matrix that round-trips."""
    field = data.draw(st.sampled_from(sorted(GOOD)))
    broken = {key: tensor.clone() for key, tensor in GOOD.items()}
    raw = broken[field].reshape(-1).view(torch.uint8)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, raw.numel() - 1))] = data.draw(st.integers(0, 255))
    try:
        dense = decompress_bitmask("w", broken)
    except ValueError:
        return
    again = compress_bitmask(dense, "w")
    assert torch.equal(decompress_bitmask("w", again).nan_to_num(), dense.nan_to_num())
    assert dense.shape == (3, int(broken["w.shape"][1]))


@pytest.mark.parametrize(
    ("dense", "error", "message"),
    [
        (torch.ones(2, 3).int(), TypeError, "`dense` has dtype int32, allowed: float32, bfloat16, float16, float64, "
         "float8_e4m3fn, int8; convert it with .to(torch.float32)"),
        (torch.ones(2, 3).to_sparse(), TypeError, "`dense` has layout torch.sparse_coo, allowed: torch.strided; "
         "convert it with .to_dense()"),
        (torch.ones(2, 3, 1, 1), ValueError, "`dense` must be a matrix with no empty dimension, got shape [2, 3, 1, "
         "1]; flatten a convolution's weight with fastcompress.ops.block_csr.matrix_of"),
        (torch.ones(0, 3), ValueError, "`dense` must be a matrix with no empty dimension, got shape [0, 3]; "
         "flatten a convolution's weight with fastcompress.ops.block_csr.matrix_of"),
        (None, TypeError, "`dense` must be a torch.Tensor, got NoneType"),
    ],
)  # fmt: skip
def test_compress_refuses(dense: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        compress_bitmask(dense)
    assert str(caught.value) == f"compress_bitmask: {message}"
