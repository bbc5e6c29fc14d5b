"""Build one problem's buffers, ask the oracle, call a kernel on raw buffers, compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import oracles, problems, tolerances
from tests.block_problems import BlockConv, BlockLinear, Form, block_mask
from tests.problems import ConvProblem, FourBitConv, LinearProblem, QuantizeProblem

__all__ = [
    "Case",
    "Expected",
    "block_csr",
    "build_conv",
    "build_linear",
    "build_quantize",
    "check",
    "conv_case",
    "expected_output",
    "make_epilogue",
    "matrix_of",
    "only_blocks",
    "place",
    "same_bits",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Expected:
    """What the oracle says: exact values, or ``y`` with the bound of `tolerances`."""

    dtype: str
    exact: Array | None
    signed_zero: bool = True
    y: Array | None = None
    bound: Array | None = None


@dataclass(frozen=True)
class Case:
    """One kernel call: ``pack`` (None for quantizers) and call arguments, and the expected outputs by name."""

    label: str
    function: str
    pack: tuple[Any, ...] | None
    inputs: tuple[Array, ...]
    outputs: dict[str, tuple[tuple[int, ...], str]]
    arguments: dict[str, Any]
    expected: dict[str, Expected]
    packer: str = "pack_w8a8"
    exact: bool = True  # the result is the same bits on every ISA

    def packed(self, native: Any) -> Any:
        """The packed weights for the ISA that is set, None for quantizers."""
        return None if self.pack is None else getattr(native, self.packer)(*self.pack)

    def new_outputs(self) -> dict[str, Array]:
        """Fresh output buffers, poisoned."""
        return {name: problems.zeros_like_dtype(shape, dtype) for name, (shape, dtype) in self.outputs.items()}

    def call(self, native: Any, packed: Array | None, out: dict[str, Array], threads: int) -> None:
        """Run the kernel on its buffers."""
        first = (self.inputs[0],) if packed is None else (self.inputs[0], packed)
        getattr(native, self.function)(*first, **out, **self.arguments, threads=threads)

    def run(self, native: Any, threads: int) -> dict[str, Array]:
        """Pack under the ISA that is set, run, return the outputs."""
        out = self.new_outputs()
        self.call(native, self.packed(native), out, threads)
        return out


def _finish(
    rng: np.random.Generator, acc: Array, x_scale: Any, e: oracles.Epilogue, out_dtype: str
) -> tuple[float, int, Expected]:
    """Output scale and zero point, and the expected ``[M,N]`` output."""
    if out_dtype == "i32":
        return 1.0, 0, Expected("i32", acc.astype(np.int32))
    return expected_output(rng, oracles.pre_activation(acc, x_scale, e), e, out_dtype)


def expected_output(
    rng: np.random.Generator, v: NDArray[np.float32], e: oracles.Epilogue, out_dtype: str
) -> tuple[float, int, Expected]:
    """Output scale and zero point, and what becomes of ``v [M,N]``, the value in front of the activation."""
    exact = e.activation in oracles.EXACT_ACTIVATIONS
    if out_dtype in ("u8", "s8"):
        signed = out_dtype == "s8"
        finite = np.abs(v[np.isfinite(v)])
        top = float(finite.max()) if finite.size else 1.0
        scale = float(np.float32(max(top, 1e-3) * rng.uniform(0.3, 2.0) / 127.0))
        zero_point = int(rng.integers(-128, 128)) if signed else int(rng.integers(0, 256))
        if exact:
            q = oracles.requantize(oracles.activate32(v, e.activation), scale, zero_point, signed)
            return scale, zero_point, Expected(out_dtype, q)
        rounded = oracles.activate64(v, e.activation).astype(np.float32)
        steps = oracles.requantize(rounded, scale, zero_point, signed).astype(np.float64)
        one = np.full(steps.shape, float(tolerances.INT_STEPS_AFTER_ACTIVATION))
        return scale, zero_point, Expected(out_dtype, None, y=steps, bound=one)
    if exact:
        out = oracles.encode_float(oracles.activate32(v, e.activation), out_dtype)
        return 1.0, 0, Expected(out_dtype, out, signed_zero=e.activation == "none")
    y = oracles.activate64(v, e.activation)
    return 1.0, 0, Expected(out_dtype, None, y=y, bound=tolerances.output_bound(e.activation, out_dtype, v, y))


def make_epilogue(
    rng: np.random.Generator, p: Any, weight_scale: Array, bias: Array | None, shape: tuple[int, int]
) -> tuple[Array | None, oracles.Epilogue]:
    """The problem's residual, encoded, and its epilogue."""
    wanted = p.residual is not None and p.out_dtype != "i32"  # raw accumulators take no residual
    residual = problems.float_values(rng, shape, p.residual, 1.0) if wanted else None
    decoded = None if residual is None else oracles.decode(residual, p.residual)
    return residual, oracles.Epilogue(weight_scale, bias, decoded, p.activation)


def build_linear(p: LinearProblem) -> Case:
    """Buffers and expected result of a linear problem."""
    rng = np.random.default_rng([21, p.index])
    x, scale = problems.fill_inputs(rng, (p.m, p.k), p)
    weight, weight_scale, bias = problems.fill_weights(rng, (p.n, p.k), p.k, scale, p)
    stored: tuple[Any, ...] = (weight,)
    if isinstance(p, BlockLinear):
        mask = block_mask(p)
        weight = only_blocks(weight, mask, p.form)
        stored = (*block_csr(weight, mask, p.form), weight.shape)
    residual, epilogue = make_epilogue(rng, p, weight_scale, bias, (p.m, p.n))
    static = p.mode == "static"
    zero_point = int(rng.integers(256)) if static else 0
    arguments: dict[str, Any] = {"residual": residual, "dtype": p.in_dtype, "out_dtype": p.out_dtype}
    q: Array
    x_scale: Any
    x_zero: Any
    if p.per_token_given:
        x_scale = (rng.uniform(0.5, 2.0, size=p.m) * scale).astype(np.float32)
        x_zero = rng.integers(0, 256, size=p.m, dtype=np.int32)
        q = x
        arguments |= {"input_scale": x_scale, "input_zero_point": x_zero}
    elif p.in_dtype == "u8":
        q, x_scale, x_zero = x, scale, zero_point
    elif static:
        q = oracles.quantize_per_tensor(oracles.decode(x, p.in_dtype), scale, zero_point)
        x_scale, x_zero = scale, zero_point
    else:
        q, x_scale, x_zero = oracles.quantize_per_token(oracles.decode(x, p.in_dtype), p.mode == "dynamic_symmetric")
    acc = oracles.linear_acc(q, x_zero, weight)
    out_scale, out_zero, expected = _finish(rng, acc, x_scale, epilogue, p.out_dtype)
    arguments |= {"out_scale": out_scale, "out_zero_point": out_zero}
    pack = (
        *stored,
        weight_scale,
        bias,
        problems.MODES.index(p.mode),
        scale if static else 1.0,
        zero_point,
        oracles.ACTIVATIONS.index(p.activation),
    )
    return Case(
        str(p),
        "linear_w8a8",
        pack,
        (x,),
        {"out": ((p.m, p.n), p.out_dtype)},
        arguments,
        {"out": expected},
        "pack_w8a8" if len(stored) == 1 else "pack_bsr",
    )


def matrix_of(weight: Array) -> Array:
    """``[out, in]``, or ``[out, kh * kw * in]`` of a convolution's ``[out, in, kh, kw]``."""
    return weight if weight.ndim == 2 else weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)


def only_blocks(matrix: Array, mask: Array, form: Form) -> Array:
    """The matrix with zeros where ``mask`` has no block."""
    grid = matrix.reshape(mask.shape[0], form.height, mask.shape[1], form.width)
    return np.asarray(grid * mask[:, None, :, None]).reshape(matrix.shape)


def block_csr(matrix: Array, mask: Array, form: Form) -> tuple[Array, Array, Array]:
    """crow, col and values of the blocks in ``mask``, written out without package code."""
    rows, columns = np.nonzero(mask)
    crow = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    blocks = matrix.reshape(mask.shape[0], form.height, mask.shape[1], form.width).transpose(0, 2, 1, 3)
    return crow, columns.astype(np.int32), np.ascontiguousarray(blocks[rows, columns])


def place(a: Array | None, p: ConvProblem) -> Array | None:
    """[pixels, channels] or NHWC → the problem's layout, 4-D."""
    if a is None:
        return None
    a = a.reshape(p.batch, *p.out_size, p.out_channels) if a.ndim == 2 else a
    return np.ascontiguousarray(a.transpose(0, 3, 1, 2)) if p.layout == "nchw" else a


def build_conv(p: ConvProblem) -> Case:
    """Buffers and expected result of a convolution problem."""
    rng = np.random.default_rng([22, p.index])
    x, scale = problems.fill_inputs(rng, (p.batch, p.height, p.width, p.channels), p)
    shape = (p.out_channels, p.channels // p.groups, *p.kernel)
    weight, weight_scale, bias = problems.fill_weights(rng, shape, p.k, scale, p)
    stored: tuple[Any, ...] = (weight,)
    if isinstance(p, BlockConv):
        mask = block_mask(p)
        matrix = only_blocks(matrix_of(weight), mask, p.form)
        weight = matrix.reshape(p.out_channels, *p.kernel, p.channels).transpose(0, 3, 1, 2)
        stored = (*block_csr(matrix, mask, p.form), shape)
    residual, epilogue = make_epilogue(rng, p, weight_scale, bias, (p.pixels, p.out_channels))
    zero_point = int(rng.integers(256))
    q = x if p.in_dtype == "u8" else oracles.quantize_per_tensor(oracles.decode(x, p.in_dtype), scale, zero_point)
    acc = oracles.conv2d_acc(q, zero_point, weight, p.stride, p.padding, p.dilation, p.groups)
    out_scale, out_zero, flat = _finish(rng, acc.reshape(p.pixels, -1), scale, epilogue, p.out_dtype)
    activation = oracles.ACTIVATIONS.index(p.activation)
    pack = (*stored, weight_scale, bias, 0, scale, zero_point, activation)
    dense = len(stored) == 1
    if dense:
        pack = (*pack, p.groups, 4 if isinstance(p, FourBitConv) else 8)
    packer = "pack_w8a8" if dense else "pack_bsr"
    return conv_case(p, "conv2d_w8a8", pack, packer, x, residual, (out_scale, out_zero), flat)


def conv_case(
    p: ConvProblem,
    function: str,
    pack: tuple[Any, ...],
    packer: str,
    x: Array,
    residual: Array | None,
    out: tuple[float, int],
    flat: Expected,
    exact: bool = True,
) -> Case:
    """The case of a convolution; NHWC ``x``, ``residual`` and ``flat`` ``[pixels, channels]`` get its layout."""
    expected = Expected(flat.dtype, place(flat.exact, p), flat.signed_zero, place(flat.y, p), place(flat.bound, p))
    height, width = p.out_size
    channels = p.out_channels
    out_shape = (p.batch, height, width, channels) if p.layout == "nhwc" else (p.batch, channels, height, width)
    arguments = {
        "stride": p.stride,
        "padding": p.padding,
        "dilation": p.dilation,
        "residual": place(residual, p),
        "dtype": p.in_dtype,
        "out_dtype": p.out_dtype,
        "layout": p.layout,
        "out_scale": out[0],
        "out_zero_point": out[1],
    }
    inputs = (np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if p.layout == "nchw" else x,)
    outputs = {"out": (out_shape, p.out_dtype)}
    return Case(str(p), function, pack, inputs, outputs, arguments, {"out": expected}, packer, exact)


def build_quantize(p: QuantizeProblem) -> Case:
    """Buffers and expected result of a quantization problem."""
    rng = np.random.default_rng([23, p.index])
    x = problems.float_values(rng, (p.m, p.k), p.dtype, p.magnitude)
    if p.hostile:
        problems.spoil(rng, x, p.dtype)
    if rng.random() < 0.05:
        x[int(rng.integers(p.m))] = 0  # a row of zeros takes the smallest scale
    values = oracles.decode(x, p.dtype)
    if p.symmetric is None:
        q = oracles.quantize_per_tensor(values, p.scale, p.zero_point, p.signed)
        dtype = "s8" if p.signed else "u8"
        arguments = {"scale": p.scale, "zero_point": p.zero_point, "dtype": p.dtype}
        return Case(
            str(p), "quantize_per_tensor", None, (x,), {"out": (x.shape, dtype)}, arguments, {"out": Expected(dtype, q)}
        )
    q, scale, zero_point = oracles.quantize_per_token(values, p.symmetric)
    outputs = {"out_q": (x.shape, "u8"), "out_scale": ((p.m,), "f32"), "out_zero_point": ((p.m,), "i32")}
    expected = {
        "out_q": Expected("u8", q),
        "out_scale": Expected("f32", scale),
        "out_zero_point": Expected("i32", zero_point),
    }
    arguments = {"symmetric": p.symmetric, "dtype": p.dtype}
    return Case(str(p), "quantize_per_token", None, (x,), outputs, arguments, expected)


def _bits(a: Array, dtype: str) -> Array:
    """Integer bits, every NaN mapped to one value: which NaN it is, is not part of the contract."""
    if dtype == "f32":
        return np.where(np.isnan(a), np.uint32(0x7FC00000), a.view(np.uint32))
    if dtype == "f16":
        return np.where(np.isnan(a), np.uint16(0x7E00), a.view(np.uint16))
    if dtype == "bf16":
        return np.where((a & 0x7FFF) > 0x7F80, np.uint16(0x7FC0), a)
    return a


def same_bits(a: Array, b: Array, dtype: str) -> bool:
    """Whether two outputs agree to the last bit (NaN equals NaN)."""
    return bool(np.array_equal(_bits(a, dtype), _bits(b, dtype)))


def _first(bad: Array) -> str:
    where = np.argwhere(bad)
    return f"{len(where)} of {bad.size} elements differ, first at {tuple(int(i) for i in where[0])}"


def check(expected: Expected, got: Array) -> str:
    """Empty when ``got`` is what the oracle allows, else what is wrong."""
    if expected.exact is not None:
        if same_bits(expected.exact, got, expected.dtype):
            return ""
        if expected.dtype in ("f32", "bf16", "f16"):
            want_f, got_f = oracles.decode(expected.exact, expected.dtype), oracles.decode(got, expected.dtype)
            bad = ~((want_f == got_f) | (np.isnan(want_f) & np.isnan(got_f)))
            if not expected.signed_zero and not bad.any():
                return ""  # max(-0, 0) may be either zero
            bad |= np.signbit(want_f) != np.signbit(got_f) if expected.signed_zero else False
            bad &= ~(np.isnan(want_f) & np.isnan(got_f))
        else:
            want_f, got_f = expected.exact, got
            bad = want_f != got_f
        at = tuple(np.argwhere(bad)[0])
        return f"{_first(bad)}: want {want_f[at]!r}, got {got_f[at]!r} (exact comparison)"
    assert expected.y is not None
    assert expected.bound is not None
    values = oracles.decode(got, "bf16") if expected.dtype == "bf16" else got
    values = values.astype(np.float64)
    y = expected.y
    with np.errstate(invalid="ignore"):
        fine = np.abs(values - y) <= expected.bound
    if expected.dtype == "f16":  # beyond the largest f16 the right answer is an infinity
        fine |= np.isinf(values) & (np.abs(y) >= 65504.0) & (np.sign(y) == np.sign(values))
    fine |= (np.isnan(values) & np.isnan(y)) | (np.isinf(y) & (values == y))
    if fine.all():
        return ""
    at = tuple(np.argwhere(~fine)[0])
    return f"{_first(~fine)}: want {y[at]!r} within {expected.bound[at]!r}, got {values[at]!r}"
