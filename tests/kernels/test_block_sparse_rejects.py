"""Hostile block indices, wrong kinds and forged blobs: refused with the argument's name, before any kernel runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.block_problems import FORMS, REAL_FORMS, S8_FORMS, Form
from tests.kernels.blocks import BlockLayer, layer

#: Blocks of the layers below: rows, columns.
ROWS, COLUMNS = 4, 6
MASK = np.ones((ROWS, COLUMNS), bool)
REMEDY = r"(?i)repack|pack.* again|re-?load|load .* again"

per_form = pytest.mark.parametrize("form", FORMS, ids=str)

#: What is done to crow and col of a layer all of whose blocks are stored, and the message.
HOSTILE: dict[str, tuple[Callable[[np.ndarray, np.ndarray], None], str]] = {
    "out of range": (lambda crow, col: col.__setitem__(5, COLUMNS), r"col\[5\] is 6, allowed: 0 to 5"),
    "far out of range": (lambda crow, col: col.__setitem__(5, 2**31 - 1), r"col\[5\] is 2147483647, allowed: 0 to 5"),
    "negative": (lambda crow, col: col.__setitem__(0, -1), r"col\[0\] is -1"),
    "most negative": (lambda crow, col: col.__setitem__(0, -(2**31)), r"col\[0\] is -2147483648"),
    "duplicate": (lambda crow, col: col.__setitem__(1, 0), r"col\[1\] is 0.*ascending within a block row"),
    "unsorted": (lambda crow, col: col.__setitem__([0, 1], [1, 0]), r"ascending within a block row"),
    "decreasing crow": (lambda crow, col: crow.__setitem__(1, crow[2] + 1), r"ascending within a block row"),
    "negative crow": (lambda crow, col: crow.__setitem__(1, -5), r"crow decreases, .* at block row 0"),
    "crow beyond the end": (
        lambda crow, col: crow.__setitem__(1, 10_000),
        r"crow decreases, or exceeds the number of blocks, at block row 0",
    ),
    "crow starts late": (lambda crow, col: crow.__setitem__(0, 1), r"crow must begin with 0"),
    "crow ends late": (lambda crow, col: crow.__setitem__(-1, len(col) + 1), r"end with the number of blocks"),
    "crow ends early": (lambda crow, col: crow.__setitem__(-1, len(col) - 1), r"end with the number of blocks"),
}


@per_form
@pytest.mark.parametrize("kernel", [None, (1, 3)])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_indices_are_refused(native: Any, form: Form, kernel: tuple[int, int] | None, name: str) -> None:
    b = layer(form, MASK, kernel)
    crow, col, values = (a.copy() for a in b.blocks)
    spoil, message = HOSTILE[name]
    spoil(crow, col)
    with pytest.raises(ValueError, match=message):
        native.pack_bsr(crow, col, values, b.shape, *b.parameters)


def _pack(native: Any, b: BlockLayer, **changes: Any) -> Any:
    crow, col, values = b.blocks
    arguments = {"crow": crow, "col": col, "values": values, "weight_shape": b.shape}
    names = ("weight_scale", "bias", "input_mode", "input_scale", "input_zero_point", "activation")
    return native.pack_bsr(**{**arguments, **dict(zip(names, b.parameters, strict=True)), **changes})


@per_form
def test_wrong_lengths_and_dtypes_are_refused(native: Any, form: Form) -> None:
    b = layer(form, MASK)
    crow, col, values = b.blocks
    for name, bad in (("crow", crow.astype(np.int64)), ("col", col.astype(np.int64)), ("col", col.astype(np.float32))):
        with pytest.raises(TypeError, match=name):
            _pack(native, b, **{name: bad})
    for dtype in (np.uint8, np.int16, np.float16, np.float64, np.int32):
        with pytest.raises(TypeError, match="values"):
            _pack(native, b, values=values.astype(dtype))
    with pytest.raises(ValueError, match=r"col has shape .*one per block"):
        _pack(native, b, col=col[:-1].copy())
    with pytest.raises(ValueError, match=r"col has shape .*one per block"):
        _pack(native, b, values=values[:-1].copy())
    for bad in (crow[:-1].copy(), np.append(crow, crow[-1:]), crow[None], crow[:1].copy()):
        with pytest.raises(ValueError, match="crow has shape"):
            _pack(native, b, crow=bad)
    for bad in (values[..., 0].copy(), values[None], values[:, :0].copy()):
        with pytest.raises(ValueError, match="values has shape"):
            _pack(native, b, values=bad)
    with pytest.raises(ValueError, match="bias has shape"):
        _pack(native, b, bias=b.bias[:-1].copy())
    with pytest.raises(ValueError, match="activation is 8, allowed: 0 to 7"):
        _pack(native, b, activation=8)


@per_form
def test_weight_scale_belongs_to_s8_values_alone(native: Any, form: Form) -> None:
    b = layer(form, MASK)
    other = None if b.exact else np.ones(b.shape[0], np.float32)
    with pytest.raises(ValueError, match="s8 values, and no others, have a weight_scale"):
        _pack(native, b, weight_scale=other)
    if b.exact:
        for bad in (0.0, -1.0, np.nan, np.inf):
            scale = np.ones(b.shape[0], np.float32)
            scale[-1] = bad
            with pytest.raises(ValueError, match=rf"weight_scale\[{b.shape[0] - 1}\] is not a positive finite number"):
                _pack(native, b, weight_scale=scale)


@per_form
def test_weight_shapes_that_do_not_fit_are_refused(native: Any, form: Form) -> None:
    b = layer(form, MASK)
    out, k = b.shape
    for bad in ((out,), (out, k, 1), (out, k, 1, 1, 1), (0, k), (out, -k), (out, 2**31), (out, k, 0, 1), ()):
        with pytest.raises(ValueError, match=r"weight_shape must be \[out, in\] or \[out, in, kh, kw\]"):
            _pack(native, b, weight_shape=bad)
    with pytest.raises(ValueError, match=r"crow has shape .*out / block_h \+ 1"):
        _pack(native, b, weight_shape=(out + form.height, k))
    if form.width > 1:
        with pytest.raises(ValueError, match=f"cannot be cut into blocks of {form.height}x{form.width}"):
            _pack(native, b, weight_shape=(out, k + 1))
    with pytest.raises(ValueError, match=r"col\[5\] is 5, allowed: 0 to 4"):
        _pack(native, b, weight_shape=(out, k - form.width))
    with pytest.raises(ValueError, match=r"col\[4\] is 4, allowed: 0 to 3"):
        _pack(native, b, weight_shape=(out, form.width, 2, 2))
    with pytest.raises(ValueError, match=r"65[,_ ]?793"):
        _pack(native, b, weight_shape=(out, 65_796))
    with pytest.raises(ValueError, match=r"65[,_ ]?793"):
        _pack(native, b, weight_shape=(out, 7_312, 3, 3))
    for huge in ((out, 65_793, 65_793, 65_793), (out, 2**31 - 1, 1, 1), (out, 4, 2**31 - 1, 2**31 - 1)):
        with pytest.raises(ValueError, match="65793"):
            _pack(native, b, weight_shape=huge)


@pytest.mark.parametrize("form", [f for f in FORMS if f.width > 1], ids=str)
def test_a_block_does_not_cross_from_one_tap_into_the_next(native: Any, form: Form) -> None:
    """24 = 3 taps of 8 channels may be cut; 12 taps of 2, or 24 of 1, may not when a block takes 4 (or 2) inputs."""
    b = layer(form, MASK)
    out, k = b.shape
    with pytest.raises(ValueError, match="cannot be cut into blocks"):
        _pack(native, b, weight_shape=(out, 1, 1, k))


@per_form
def test_blocks_without_a_kernel_are_refused(native: Any, form: Form) -> None:
    b = layer(form, MASK)
    _, col, values = b.blocks
    for height, width in ((8, 8), (2, form.width), (16, 8), (32, form.width)):
        wrong = np.zeros((len(col), height, width), values.dtype)
        scale = np.ones(ROWS * height, np.float32) if b.exact else None
        shape = (ROWS * height, COLUMNS * width)
        with pytest.raises(ValueError, match=f"blocks of {height}x{width} have no kernel, allowed: 16x4, 4x4, 1x4"):
            _pack(native, b, values=wrong, weight_shape=shape, weight_scale=scale, bias=None)


def test_convolutions_have_static_activations_and_no_groups(native: Any) -> None:
    b = layer(S8_FORMS[0], MASK, (1, 1))
    for mode in (1, 2):
        with pytest.raises(ValueError, match="static activations"):
            _pack(native, b, input_mode=mode)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _pack(native, b, groups=2)
    # A grouped convolution's weight has too few input channels for its index.
    with pytest.raises(ValueError, match=r"col\[3\] is 3, allowed: 0 to 2"):
        _pack(native, b, weight_shape=(b.shape[0], b.shape[1] // 2, 1, 1))


def _run(native: Any, b: BlockLayer, packed: np.ndarray, function: str) -> None:
    out, k = b.shape[:2]
    if function.startswith("linear"):
        getattr(native, function)(np.ones((2, k), np.float32), packed, np.empty((2, out), np.float32))
    else:
        image, result = np.ones((1, 2, 2, k), np.float32), np.empty((1, 2, 2, out), np.float32)
        getattr(native, function)(image, packed, result, (1, 1), (0, 0, 0, 0), (1, 1))


@per_form
@pytest.mark.parametrize("kernel", [None, (1, 1)])
def test_the_wrong_operator_names_the_right_one(
    native: Any, isa: str, form: Form, kernel: tuple[int, int] | None
) -> None:
    b = layer(form, MASK, kernel)
    packed = b.pack(native)
    right = f"{'linear' if kernel is None else 'conv2d'}_{'w8a8' if b.exact else 'bsr'}"
    _run(native, b, packed, right)
    for wrong in {"linear_w8a8", "conv2d_w8a8", "linear_bsr", "conv2d_bsr"} - {right}:
        with pytest.raises(ValueError, match=rf"{wrong}: the packed weights belong to a .*; use {right}"):
            _run(native, b, packed, wrong)


@per_form
def test_each_unpack_refuses_the_other_kind(native: Any, form: Form) -> None:
    with pytest.raises(ValueError, match="block-sparse; use unpack_bsr"):
        native.unpack_w8a8(layer(form, MASK).pack(native))
    dense = native.pack_w8a8(np.ones((16, 8), np.int8), np.ones(16, np.float32), None, 1, 1.0, 0, 0)
    with pytest.raises(ValueError, match="dense; use unpack_w8a8"):
        native.unpack_bsr(dense)
    for real in ("linear_bsr", "conv2d_bsr"):
        with pytest.raises(ValueError, match="use linear_w8a8"):
            _run(native, layer(form, np.ones((1, 8 // form.width), bool)), dense, real)


@pytest.mark.parametrize("form", REAL_FORMS, ids=str)
@pytest.mark.parametrize("kernel", [None, (1, 1)])
def test_float_layers_take_floats_and_have_no_accumulator(
    native: Any, form: Form, kernel: tuple[int, int] | None
) -> None:
    b = layer(form, MASK, kernel)
    packed, (out, k) = b.pack(native), b.shape[:2]
    x, y = ((2, k), (2, out)) if kernel is None else ((1, 2, 2, k), (1, 2, 2, out))
    geometry = () if kernel is None else ((1, 1), (0, 0, 0, 0), (1, 1))
    operator = b.operator(native)
    with pytest.raises((TypeError, ValueError), match="u8"):
        operator(np.ones(x, np.uint8), packed, np.empty(y, np.float32), *geometry, dtype="u8")
    with pytest.raises((TypeError, ValueError), match="no int32 output; ask for float32"):
        operator(np.ones(x, np.float32), packed, np.empty(y, np.int32), *geometry, out_dtype="i32")


#: Header fields (csrc/include/fastcompress/blob.h): offset, numpy type.
FIELDS = {
    "family": (8, np.int32),
    "total_bytes": (16, np.int64),
    "out_channels": (24, np.int64),
    "in_channels": (32, np.int64),
    "groups": (40, np.int64),
    "kernel_h": (48, np.int64),
    "kernel_w": (56, np.int64),
    "input_mode": (124, np.int32),
    "weight_rank": (140, np.int32),
    "blocks": (152, np.int64),
    "entries": (160, np.int64),
    "pointer_offset": (168, np.int64),
    "index_offset": (176, np.int64),
    "block_h": (184, np.int32),
    "block_w": (188, np.int32),
    "value_dtype": (192, np.int32),
}
_MASK64 = 2**64 - 1


def _seal(blob: np.ndarray) -> np.ndarray:
    """The header's checksum made right again (csrc/cpu/pack/blob_header.cpp, blob_checksum)."""
    h = 0x9E3779B97F4A7C15 ^ 248
    for word in [*blob[:248].view(np.uint64).tolist(), 0]:
        h = (h ^ word) * 0xFF51AFD7ED558CCD & _MASK64
        h = (h << 29 | h >> 35) & _MASK64
    blob[248:256].view(np.uint64)[0] = h ^ (h >> 32)
    return blob


def _forge(good: np.ndarray, **fields: int) -> np.ndarray:
    blob = good.copy()
    for name, value in fields.items():
        offset, dtype = FIELDS[name]
        blob[offset:].view(np.uint8)[: np.dtype(dtype).itemsize].view(dtype)[0] = value
    return _seal(blob)


def _describes_another_layer(b: BlockLayer, name: str, value: int) -> bool:
    """Whether the field may have this value: other channels of the same panel, dynamic activations."""
    if name == "out_channels":
        return 0 < value <= -(-b.shape[0] // 16) * 16 and value % b.form.height == 0 and b.form.height < 16
    return name == "input_mode" and value in (1, 2) and b.exact and len(b.shape) == 2


@per_form
@pytest.mark.parametrize("kernel", [None, (1, 1)])
def test_forged_headers_are_refused(native: Any, isa: str, form: Form, kernel: tuple[int, int] | None) -> None:
    b = layer(form, MASK, kernel)
    good = b.pack(native)
    assert np.array_equal(_forge(good), good)  # the checksum above is the right one
    forged: list[dict[str, int]] = []
    for name, (offset, dtype) in FIELDS.items():
        now = int(good[offset:][: np.dtype(dtype).itemsize].view(dtype)[0])
        edges = {0, 1, -1, now - 1, now + 1, 2 * now, now + 64, 65_536, 2**31 - 1, -(2**31)}
        if dtype == np.int64:
            edges |= {2**62, 2**63 - 1, -(2**63)}
        forged += [{name: value} for value in edges - {now} if not _describes_another_layer(b, name, value)]
    # Several at once, so that sizes agree with each other but not with a kernel.
    forged += [{"block_h": 8, "block_w": 2 * form.width}, {"block_h": 0, "block_w": 0}, {"block_h": 2, "block_w": 8}]
    forged += [{"kernel_h": 2**31, "kernel_w": 2**31}, {"in_channels": 2**40, "kernel_h": 2**40}]
    for fields in forged:
        bad = _forge(good, **fields)
        for use in (lambda p: _run(native, b, p, b.operator(native).__name__), native.unpack_bsr, native.blob_check):
            with pytest.raises((RuntimeError, ValueError), match=rf"{REMEDY}|use "):
                use(bad)


@per_form
def test_damaged_and_truncated_blobs_are_refused(native: Any, isa: str, form: Form) -> None:
    b = layer(form, MASK)
    good = b.pack(native)
    uses = (lambda p: _run(native, b, p, b.operator(native).__name__), native.unpack_bsr, native.blob_check)
    bad = [good[:size].copy() for size in (0, 1, 248, 255, 256, 257, len(good) // 2, len(good) - 1)]
    bad.append(np.concatenate([good, np.zeros(64, np.uint8)]))
    for position in range(0, 256, 3):
        bad.append(good.copy())
        bad[-1][position] ^= 0x41
    for blob in bad:
        for use in uses:
            with pytest.raises(RuntimeError):
                use(blob)
    for position in range(256, len(good), 5):
        flipped = good.copy()
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises(RuntimeError, match=r"(?i)checksum"):
            native.blob_check(flipped)


@per_form
def test_unpacking_a_damaged_index_ends_in_an_error_or_in_other_numbers(native: Any, form: Form) -> None:
    """No byte of the pointers or of the index leads out of the blob."""
    for mask in (MASK, np.arange(2 * 600).reshape(2, 600) % 300 == 299):
        b = layer(form, mask)
        good = b.pack(native)
        end = len(good) - b.blocks[2].nbytes
        refused: set[str] = set()
        for position in range(256, end):
            for value in (0x00, 0x01, 0x7F, 0x80, 0xFF):
                bad = good.copy()
                bad[position] = value
                try:
                    back = native.unpack_bsr(bad)
                except RuntimeError as error:
                    refused.add(str(error))
                    continue
                assert len(back["col"]) == len(b.blocks[1])
                assert ((back["col"] >= 0) & (back["col"] < mask.shape[1])).all()
        assert len(refused) == 1
        assert "index of blocks is corrupt" in refused.pop()


def test_blob_of_another_isa_is_refused_with_the_remedy(native: Any) -> None:
    b = layer(REAL_FORMS[0], MASK)
    names = native.isa_supported()
    for made_for in names:
        native.set_isa(made_for)
        packed = b.pack(native)
        for run_on in set(names) - {made_for}:
            native.set_isa(run_on)
            with pytest.raises(RuntimeError, match=made_for) as caught:
                _run(native, b, packed, "linear_bsr")
            assert caught.match(REMEDY)
            assert np.array_equal(native.unpack_bsr(packed)["values"], b.blocks[2])


@pytest.mark.parametrize("form", REAL_FORMS, ids=str)
def test_geometry_errors_name_the_operator_that_was_called(native: Any, form: Form) -> None:
    crow, col = np.array([0] + [1] * (16 // form.height), np.int32), np.zeros(1, np.int32)
    values = np.zeros((1, form.height, form.width), np.uint16 if form.value == "bf16" else np.float32)
    packed = native.pack_bsr(crow, col, values, (16, 4, 1, 1), None, None)
    image, out = np.zeros((1, 3, 3, 4), np.float32), np.zeros((1, 3, 3, 16), np.float32)
    with pytest.raises(ValueError, match="conv2d_bsr: padding is -1, allowed: 0 to"):
        native.conv2d_bsr(image, packed, out, (1, 1), (-1, 0, 0, 0), (1, 1))
