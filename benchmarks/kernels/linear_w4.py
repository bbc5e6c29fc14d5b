"""Linear layers with weights in groups: one row against the read bandwidth, many against the int8 ceiling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness.rotation import copies_needed, rotate
from benchmarks.harness.suite import Context
from benchmarks.harness.timing import Timing, interleave
from benchmarks.w4_targets import GEMM_SHAPES, GEMV_SHAPES, GROUP_SIZE, SMALL_SHAPES, shape_name
from fastcompress.nn import GroupQuantLinear
from fastcompress.ops import native, packing

__all__ = ["run"]

_C = native.require("the four-bit benchmarks")

#: Scheme → bits of a weight, and how the layer takes its activations.
_SCHEMES = {"W4A8": (4, "dynamic_symmetric"), "W4A16": (4, "dynamic_16bit"), "W8A16": (8, "dynamic_16bit")}

Shape = tuple[int, int, int]


def run(context: Context) -> None:
    """Measure every row of the ``linear_w4`` suite."""
    for shape in (*GEMV_SHAPES, *SMALL_SHAPES):
        with context.part(f"weights in groups {shape_name(shape)}, operands rotated"):
            _streamed_rows(context, shape)
    for shape in GEMM_SHAPES:
        with context.part(f"weights in groups {shape_name(shape)}"):
            _gemm_rows(context, shape)
    with context.part("bytes of a packed layer"):
        layer = _layers(4096, 4096)["W4A8"]
        context.add("w4.bits", layer.packed.numel() * 8 / 4096**2)


def _layers(k: int, n: int) -> dict[str, GroupQuantLinear]:
    """Scheme → a layer without bias, all of the same weights."""
    dense = nn.Linear(k, n, bias=False).eval()
    return {
        scheme: GroupQuantLinear.from_float(dense, weight_bits=bits, group_size=GROUP_SIZE, input_mode=mode)
        for scheme, (bits, mode) in _SCHEMES.items()
    }


def _packed_anew(layer: GroupQuantLinear) -> GroupQuantLinear:
    """A copy whose weights lie in memory as those of a layer that was quantized or loaded."""
    copied = copy.deepcopy(layer)
    copied.packed = packing.pack(layer.canonical())
    return copied


def _int4pack(k: int, n: int) -> tuple[Tensor, Tensor]:
    """Weights and scales as torch's own four-bit kernel takes them."""
    values = torch.randint(0, 16, (n, k), dtype=torch.int32)
    scales_and_zeros = torch.rand(k // GROUP_SIZE, n, 2).to(torch.bfloat16)
    return torch._convert_weight_to_int4pack_for_cpu(values, 1), scales_and_zeros


def _streamed_rows(context: Context, shape: Shape) -> None:
    """Few rows: weights stream from memory, so copies of them rotate past the last-level cache."""
    m, k, n = shape
    x = torch.randn(m, k)
    rings: dict[str, Callable[[], object]] = {}
    for scheme, layer in _layers(k, n).items():
        copies = 3 if context.quick else copies_needed(layer.packed.numel())
        ring = [layer, *(_packed_anew(layer) for _ in range(copies - 1))]
        rings[scheme] = rotate(ring, lambda each: each(x))
        # Half a ring away: the copy that the layer has just read would come from a cache.
        away = [*ring[copies // 2 :], *ring[: copies // 2]]
        reading = rotate([each.packed.numpy() for each in away], _C.read_buffer)
        times = interleave({scheme: rings[scheme], "reading alone": reading}, context.budget)
        _record_bandwidth(context, f"w4.{scheme}.{shape_name(shape)}.bandwidth", scheme, times, shape)
    x_half = x.to(torch.bfloat16)
    words, scales = _int4pack(k, n)
    packs = [words.clone() for _ in range(3 if context.quick else copies_needed(k * n // 2))]
    halves = [torch.randn(n, k).to(torch.bfloat16) for _ in range(3 if context.quick else copies_needed(2 * k * n))]
    multiply = partial(torch._weight_int4pack_mm_for_cpu, x_half)
    rings["int4pack"] = rotate(packs, lambda each: multiply(each, GROUP_SIZE, scales))
    rings["bf16"] = rotate(halves, lambda each: nn.functional.linear(x_half, each))
    times = interleave(rings, context.budget)
    for scheme in _SCHEMES:
        _record_ratios(context, f"w4.{scheme}.{shape_name(shape)}", scheme, times, shape)


def _record_bandwidth(context: Context, key: str, scheme: str, times: dict[str, Timing], shape: Shape) -> None:
    reading, seconds = times["reading alone"].median, times[scheme].median
    nbytes = shape[1] * shape[2] * _SCHEMES[scheme][0] / 8
    note = f"{nbytes / seconds / 1e9:.1f} of {nbytes / reading / 1e9:.1f} GB/s"
    context.add(key, reading / seconds, times, note)


def _record_ratios(context: Context, key: str, scheme: str, times: dict[str, Timing], shape: Shape) -> None:
    if shape[0] > 1:
        context.add_ratio(f"{key}.best", times, min(("int4pack", "bf16"), key=lambda name: times[name].median), scheme)
    elif scheme != "W8A16":
        context.add_ratio(f"{key}.int4pack", times, "int4pack", scheme)
        context.add_ratio(f"{key}.bf16", times, "bf16", scheme)


def _gemm_rows(context: Context, shape: Shape) -> None:
    """Many rows, as a prompt has: products bind."""
    m, k, n = shape
    x, dense = torch.randn(m, k), nn.Linear(k, n, bias=False).eval()
    half, x_half = nn.Linear(k, n, bias=False).eval().to(torch.bfloat16), x.to(torch.bfloat16)
    ceiling = context.ceilings.sampler(f"int8:{_C.isa()}")
    candidates: dict[str, Callable[[], object]] = {
        scheme: partial(layer.forward, x) for scheme, layer in _layers(k, n).items()
    }
    candidates |= {"bf16": lambda: half(x_half), "fp32": lambda: dense(x), "ceiling": ceiling}
    times = interleave(candidates, context.budget)
    for scheme in _SCHEMES:
        key = f"w4.{scheme}.{shape_name(shape)}"
        for baseline in ("bf16", "fp32"):
            context.add_ratio(f"{key}.{baseline}", times, baseline, scheme)
    operations, seconds = 2.0 * m * k * n, times["W4A8"].median
    limit = context.ceilings.own_int8(_C.isa())
    context.check_ceiling(f"W4A8 {shape_name(shape)}", operations, seconds, limit)
    rate = operations / seconds
    note = f"{rate / 1e9:.0f} of {ceiling.median() / 1e9:.0f} GOPS"
    context.add(f"w4.W4A8.{shape_name(shape)}.ceiling", rate / ceiling.median(), times, note)
