"""Problems of weights in groups: buffers, the oracle's answer, and the call, for which there is only the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastcompress.ops import W4Canonical, W8Canonical
from tests import group_oracle, oracles, problems
from tests.group_problems import GroupLinear
from tests.kernels.runner import Case, expected_output, make_epilogue
from tests.kernels.torch_bridge import TORCH, array, tensor

__all__ = ["GroupCase", "build_group_linear", "group_canonical", "words_of"]

Array = NDArray[Any]
#: Input modes by the contract's code.
_MODES = (*problems.MODES, "dynamic_16bit")


@dataclass(frozen=True)
class GroupCase(Case):
    """A call of torch.ops.fastcompress.linear_w4 or linear_w8 on the memory of numpy arrays."""

    def call(self, native: Any, packed: Array | None, out: dict[str, Array], threads: int) -> None:
        """Run the operator with at most ``threads`` threads (it takes fewer for little work); copies its output."""
        a, before = self.arguments, torch.get_num_threads()
        shape, dtype = self.outputs["out"]
        residual = a["residual"]
        torch.set_num_threads(threads)
        try:
            result = getattr(torch.ops.fastcompress, self.function)(
                tensor(self.inputs[0], a["dtype"]),
                torch.from_numpy(packed),
                shape[1],
                None if residual is None else tensor(residual, "bf16" if residual.dtype == np.uint16 else ""),
                TORCH[dtype],
                a["out_scale"],
                a["out_zero_point"],
            )
        finally:
            torch.set_num_threads(before)
        out["out"][...] = array(result, dtype)


def words_of(values: Array) -> NDArray[np.int32]:
    """Values 0 to 15 ``[N,K]`` as ``[N, ceil(K / 8)]`` words, the first in the lowest bits; zeros fill the last."""
    n, k = values.shape
    padded = np.zeros((n, -(-k // 8) * 8), dtype=np.uint8)
    padded[:, :k] = values
    return np.ascontiguousarray(padded[:, ::2] | padded[:, 1::2] << 4).view("<i4").astype(np.int32)


def _input(rng: np.random.Generator, p: GroupLinear) -> Array:
    shape = (p.m, p.k)
    x = problems.float_values(rng, shape, p.in_dtype, p.magnitude)
    if p.extreme:  # the ends of the integers' range, the same sign beside each other or one after another
        sign = np.where(rng.integers(2) * np.arange(p.k) % 2, -1.0, 1.0) * rng.choice([-1.0, 1.0], size=(p.m, 1))
        x = oracles.encode_float((sign * p.magnitude).astype(np.float32), p.in_dtype)
    if rng.random() < 0.05:
        x[int(rng.integers(p.m))] = 0  # a row of zeros takes the smallest scale
    if p.hostile:
        problems.spoil(rng, x, p.in_dtype)
    return x


def _values(rng: np.random.Generator, p: GroupLinear) -> Array:
    low, high, dtype = (0, 15, np.uint8) if p.bits == 4 else (-128, 127, np.int8)
    if p.extreme:  # both ends, or mostly one, where sums get large
        share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        return np.where(rng.random((p.n, p.k)) < share, high, low).astype(dtype)
    return rng.integers(low, high + 1, size=(p.n, p.k), dtype=dtype)


def _scales(rng: np.random.Generator, p: GroupLinear) -> Array:
    """Encoded scales ``[N,groups]`` that put results near 1, where activations bend."""
    spread = np.exp(rng.uniform(np.log(0.3), np.log(6.0), size=(p.n, p.groups)))
    typical = 4.6 if p.bits == 4 else 73.9  # standard deviations of uniform values
    scale = spread / (typical * np.sqrt(p.k) * max(p.magnitude, 0.1 if p.scale_dtype == "f16" else 1e-30))
    if p.extreme:
        scale[:, 0] *= 2.0**-10  # f16: below its normal range
    if p.signed_scales:
        scale *= rng.choice([-1.0, 1.0], size=scale.shape)
    return oracles.encode_float(scale.astype(np.float32), p.scale_dtype)


def _zeros(rng: np.random.Generator, p: GroupLinear, scale: Array) -> tuple[Array | None, Array | None]:
    """Zero points and minima ``[N,groups]``, as far as the problem has them."""
    if p.zero_kind == "zero point":
        ends = rng.choice(np.array([0, 15], dtype=np.uint8), size=scale.shape)
        return ends if p.extreme else rng.integers(0, 16, size=scale.shape, dtype=np.uint8), None
    if p.zero_kind == "minimum":
        return None, (rng.uniform(-12.0, 2.0, size=scale.shape) * scale).astype(np.float32)
    return None, None


def build_group_linear(p: GroupLinear) -> GroupCase:
    """Buffers and expected result of a problem of linear_w4 or linear_w8."""
    rng = np.random.default_rng([26, p.bits, len(p.mode), p.index])
    x, values, encoded = _input(rng, p), _values(rng, p), _scales(rng, p)
    scale = oracles.decode(encoded, p.scale_dtype)
    zero_point, minimum = _zeros(rng, p, scale)
    bias = rng.standard_normal(p.n, dtype=np.float32) if p.has_bias else None
    v = group_oracle.weighted_sums(
        oracles.decode(x, p.in_dtype),
        values,
        scale,
        p.group_size,
        zero=8 if p.zero_kind == "middle" else 0 if zero_point is None else zero_point,
        minimum=minimum,
        sixteen_bits=p.mode == "dynamic_16bit",
    )
    residual, epilogue = make_epilogue(rng, p, np.ones(p.n, np.float32), bias, (p.m, p.n))
    out_scale, out_zero, expected = expected_output(rng, oracles.add_terms(v, epilogue), epilogue, p.out_dtype)
    arguments = {
        "residual": residual,
        "dtype": p.in_dtype,
        "out_scale": out_scale,
        "out_zero_point": out_zero,
    }
    codes = (p.group_size, _MODES.index(p.mode), oracles.ACTIVATIONS.index(p.activation))
    pack: tuple[Any, ...]
    if p.bits == 4:
        pack = (words_of(values), p.k, encoded, p.scale_dtype, zero_point, minimum, bias, *codes)
    else:
        pack = (values, encoded, p.scale_dtype, bias, *codes)
    outputs: dict[str, tuple[tuple[int, ...], str]] = {"out": ((p.m, p.n), p.out_dtype)}
    function = f"linear_w{p.bits}"
    return GroupCase(
        str(p), function, pack, (x,), outputs, arguments, {"out": expected}, function.replace("linear", "pack")
    )


def group_canonical(pack: tuple[Any, ...]) -> W4Canonical | W8Canonical:
    """The packer's positional arguments as the Python layer's dataclass."""
    *parts, bias, group_size, mode, activation = pack
    added = None if bias is None else torch.from_numpy(bias)
    name = oracles.ACTIVATIONS[activation]
    if len(parts) == 3:
        weight, scale, dtype = parts
        return W8Canonical(torch.from_numpy(weight), tensor(scale, dtype), added, group_size, _MODES[mode], name)
    words, k, scale, dtype, zero_point, minimum = parts
    return W4Canonical(
        torch.from_numpy(words),
        tensor(scale, dtype),
        added,
        k,
        group_size,
        _MODES[mode],
        None if zero_point is None else torch.from_numpy(zero_point),
        None if minimum is None else torch.from_numpy(minimum),
        name,
    )
